"""Predicts large images in overlapping tiles, and joins the tiles' segments to those of the image.

The rules:

* Along each axis, tiles begin every `tile - overlap` pixels, and the last one ends with the image. One tile decides
  each pixel: neighbors meet in the middle of their overlap.
* Two things of neighboring tiles are one if they have the same class and an IoU above 0.5 in the overlap of the tiles.
  Segments that are joined in turn, such as those of four tiles around a corner, are all one.
* Stuff of a class is one segment.
* A thing that is joined with none, and lies mostly where other tiles decide, is dropped: its pixels become void. It is
  the rest of an object that another tile sees better.

The network's memory is that of a tile. What grows with the image: its pixels, its label map (4 bytes a pixel), the
overlaps of one row of tiles, and a record of each segment of a tile.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
from scipy import ndimage

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.errors import UserError
from maxdl_tf.evaluation.matching import overlap_of
from maxdl_tf.evaluation.segment_map import compact_ids
from maxdl_tf.files.images import ImageLike, as_pixels
from maxdl_tf.inference.prediction import Prediction, Segment
from maxdl_tf.panoptic_ids import MAX_SEGMENT_ID, encode_label

_VOID = 0  # Number of void among the parts.
_BAND_ROWS = 256  # Rows renumbered at a time, which saves memory.


class Span(NamedTuple):
    """A tile along one axis, in pixels.

    Attributes:
      start: First pixel that the tile sees.
      end: Pixel behind the last one that it sees.
      own_start: First pixel that it decides.
      own_end: Pixel behind the last one that it decides.
    """

    start: int
    end: int
    own_start: int
    own_end: int


def spans(length: int, tile: int, overlap: int) -> list[Span]:
    """The tiles along an axis; one that sees all if the axis is not longer than a tile.

    Args:
      length: Number of pixels of the axis.
      tile: Number of pixels of a tile.
      overlap: Number of pixels that neighbors share at least, less than `tile`.
    """
    starts = [*range(0, max(length - tile, 0), tile - overlap), max(length - tile, 0)]
    ends = [min(start + tile, length) for start in starts]
    borders = [0, *((start + end) // 2 for start, end in zip(starts[1:], ends)), length]
    return [Span(*span) for span in zip(starts, ends, borders, borders[1:])]


def with_room_for_instances(dataset_info: DatasetInfo) -> DatasetInfo:
    """The class table with the largest power of ten as label divisor for which labels fit into a COCO panoptic PNG."""
    largest_class = max(dataset_info.num_semantic_channels, dataset_info.ignore_label + 1)
    divisor = 10 ** (len(str(MAX_SEGMENT_ID // largest_class)) - 1)
    return dataclasses.replace(dataset_info, label_divisor=max(divisor, dataset_info.label_divisor))


class TilePredictor(Protocol):
    """What predicts a tile, such as `Predictor`."""

    dataset_info: DatasetInfo

    def __call__(self, image: np.ndarray) -> Prediction: ...


class TiledPredictor:
    """Predicts images of any size in tiles.

    Example:
      predictor = TiledPredictor(maxdl_tf.load_predictor("exports/nuclei/1"), tile=257, overlap=64)
      predictor("slide.png").overlay().save("overlay.png")

    Args:
      predictor: Predicts a tile.
      tile: Side of a tile in pixels.
      overlap: Number of pixels that neighbors share. Things up to this size are whole in a tile.

    Attributes:
      predictor, tile, overlap: The arguments.
      dataset_info: Class table of the predictions. Its label divisor leaves room for the things of all tiles.
      on_tile: Receives the number of predicted tiles and that of all tiles of the image, after each tile.

    Raises:
      ValueError: The overlap is negative or not smaller than the tile.
    """

    def __init__(self, predictor: TilePredictor, *, tile: int, overlap: int):
        if not 0 <= overlap < tile:
            raise ValueError(f"overlap {overlap} must be at least 0 and less than the tile, {tile}")
        self.predictor = predictor
        self.tile = tile
        self.overlap = overlap
        self.dataset_info = with_room_for_instances(predictor.dataset_info)
        self.on_tile: Callable[[int, int], None] = lambda done, total: None

    def __call__(self, image: ImageLike) -> Prediction:
        """Predicts the segmentation of an image; see `Predictor`.

        Raises:
          UserError: As for `Predictor`, or there are more things of a class than label maps can number.
        """
        pixels = as_pixels(image, self.dataset_info.intensity)  # Percentiles are those of the whole image.
        rows, columns = (spans(length, self.tile, self.overlap) for length in pixels.shape[:2])
        parts = _Parts(self.dataset_info)
        numbers = np.zeros(pixels.shape[:2], np.int32)  # Of the parts.
        above: list[np.ndarray] = []  # For each column, what the row of tiles above found in the overlap.
        done = 0
        for row, next_row in zip(rows, [*rows[1:], None]):
            below = []
            left = None  # What the tile before found in the overlap.
            for place, (column, next_column) in enumerate(zip(columns, [*columns[1:], None])):
                found = parts.add(self.predictor(pixels[row.start : row.end, column.start : column.end]))
                done += 1
                self.on_tile(done, len(rows) * len(columns))
                if above:
                    parts.join(above[place], found[: len(above[place])])
                if left is not None:
                    parts.join(left, found[:, : left.shape[1]])
                numbers[row.own_start : row.own_end, column.own_start : column.own_end] = found[
                    row.own_start - row.start : row.own_end - row.start,
                    column.own_start - column.start : column.own_end - column.start,
                ]
                below += [found[next_row.start - row.start :]] if next_row else []
                left = found[:, next_column.start - column.start :] if next_column else None
            above = below
        segments = parts.finish(numbers)
        return Prediction(numbers, segments, pixels, self.dataset_info)


@dataclasses.dataclass
class _Part:
    """A segment of a tile.

    Attributes:
      segment: The segment.
      joined_with: Number of a part of the same segment of the image; its own number if there is no lower one.
      is_alone: Whether no thing of another tile is joined with it.
    """

    segment: Segment
    joined_with: int
    is_alone: bool = True

    def is_rest(self, own_area: int) -> bool:
        """Whether it is only the rest of a thing that another tile sees better; its tile decides `own_area` pixels."""
        return self.segment.is_thing and self.is_alone and 2 * own_area < self.segment.area


class _Parts:
    """The segments of all tiles, numbered from 1 as they come.

    Args:
      dataset_info: Class table of the whole image.
    """

    def __init__(self, dataset_info: DatasetInfo):
        self._info = dataset_info
        self._parts: dict[int, _Part] = {}
        self._first_of_stuff: dict[int, int] = {}  # The first part of each class.

    def add(self, tile: Prediction) -> np.ndarray:
        """Adds the segments of a tile, and returns the map of the tile with their numbers, int32."""
        ids, index = compact_ids(tile.label_map.reshape(-1))
        place_of_id = {segment_id: place for place, segment_id in enumerate(ids.tolist())}
        numbers = np.full(len(ids), _VOID, np.int32)
        for number, segment in enumerate(tile.segments, start=len(self._parts) + 1):
            numbers[place_of_id[segment.id]] = number
            first = number if segment.is_thing else self._first_of_stuff.setdefault(segment.class_id, number)
            self._parts[number] = _Part(segment, joined_with=first)
        return numbers[index].reshape(tile.label_map.shape)

    def join(self, one: np.ndarray, other: np.ndarray) -> None:
        """Joins the things of two tiles.

        Args:
          one: int32 [height, width], the numbers of one tile where it overlaps with the other.
          other: Those of the other tile.
        """
        overlap = overlap_of(one, other)
        union = overlap.pixels.sum(axis=1)[:, np.newaxis] + overlap.pixels.sum(axis=0) - overlap.pixels
        for row, column in np.argwhere(2 * overlap.pixels > union).tolist():
            numbers = int(overlap.true_ids[row]), int(overlap.ids[column])
            if _VOID in numbers:
                continue
            parts = [self._parts[number] for number in numbers]
            classes = {part.segment.class_id for part in parts}
            if len(classes) == 1 and parts[0].segment.is_thing:
                low, high = sorted(map(self._first, numbers))
                self._parts[high].joined_with = low
                for part in parts:
                    part.is_alone = False

    def _first(self, number: int) -> int:
        """The lowest number of the parts that a part is joined with."""
        while self._parts[number].joined_with != number:
            number = self._parts[number].joined_with
        return number

    def finish(self, numbers: np.ndarray) -> list[Segment]:
        """Replaces the numbers of parts in the map of the image by labels, and returns its segments, ordered by id.

        Raises:
          UserError: There are more things of a class than label maps can number.
        """
        own_areas = sum(np.bincount(band.reshape(-1), minlength=len(self._parts) + 1) for band in _bands(numbers))
        wholes: dict[int, list[int]] = {}  # The parts of each segment of the image, by the first.
        for number, part in self._parts.items():
            if own_areas[number] and not part.is_rest(own_areas[number]):
                wholes.setdefault(self._first(number), []).append(number)
        place_of_part = np.full(len(self._parts) + 1, _VOID, np.int32)
        for place, whole in enumerate(wholes.values(), start=1):
            place_of_part[whole] = place
        _renumber(numbers, place_of_part)

        labels = [self._info.void]
        instances: collections.Counter[int] = collections.Counter()
        segments = []
        for whole, (rows, columns) in zip(wholes.values(), ndimage.find_objects(numbers)):
            first = self._parts[whole[0]].segment
            instances[first.class_id] += first.is_thing
            labels.append(self._label(first.class_id, instances[first.class_id]))
            areas = own_areas[whole]
            scores = [self._parts[number].segment.score for number in whole]
            segments.append(
                Segment(
                    id=labels[-1],
                    class_id=first.class_id,
                    is_thing=first.is_thing,
                    score=float(np.average(scores, weights=areas)),
                    area=int(areas.sum()),
                    bbox=(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start),
                )
            )
        _renumber(numbers, np.array(labels, np.int32))
        return sorted(segments, key=lambda segment: segment.id)

    def _label(self, class_id: int, instance: int) -> int:
        if instance >= self._info.label_divisor:
            raise UserError(
                f"the tiles have more than {instance - 1} things of class {self._info.by_id[class_id].name}, and label "
                f"maps of {self._info.name} cannot number more; predict parts of the image"
            )
        return encode_label(class_id, instance, self._info.label_divisor)


def _bands(numbers: np.ndarray) -> Iterator[np.ndarray]:
    """Views of some rows at a time."""
    for top in range(0, len(numbers), _BAND_ROWS):
        yield numbers[top : top + _BAND_ROWS]


def _renumber(numbers: np.ndarray, new: np.ndarray) -> None:
    """Replaces each number by `new[number]`."""
    for band in _bands(numbers):
        band[...] = new[band]
