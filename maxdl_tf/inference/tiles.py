"""Predicts large images in overlapping tiles, and joins the tiles' segments to those of the image.

The rules:

* Along each axis, tiles begin every `tile - overlap` pixels, and the last one ends with the image. One tile decides
  each pixel: neighbors meet in the middle of their overlap.
* Two things of neighboring tiles are one if they have the same class and an IoU above 0.5 in the overlap of the tiles.
  Segments that are joined in turn, such as those of four tiles around a corner, are all one.
* Stuff of a class is one segment.
* A thing that is joined with none, and lies mostly where other tiles decide, is dropped: its pixels become void. It is
  the rest of an object that another tile sees better.

Memory grows with the image only by the image itself and its label map.
"""

from __future__ import annotations

import collections
import dataclasses
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
Box = tuple[int, int, int, int]


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
      dataset_info: Class table of the predictions. Its label divisor leaves room for the things of all tiles.

    Raises:
      ValueError: The overlap is negative or not smaller than the tile.
    """

    def __init__(self, predictor: TilePredictor, *, tile: int, overlap: int):
        if not 0 <= overlap < tile:
            raise ValueError(f"overlap {overlap} must be at least 0 and less than the tile, {tile}")
        self._predict_tile = predictor
        self._tile = tile
        self._overlap = overlap
        self.dataset_info = with_room_for_instances(predictor.dataset_info)

    def __call__(self, image: ImageLike) -> Prediction:
        """Predicts the segmentation of an image; see `Predictor`.

        Raises:
          UserError: As for `Predictor`, or there are more things of a class than label maps can number.
        """
        pixels = as_pixels(image)
        rows, columns = (spans(length, self._tile, self._overlap) for length in pixels.shape[:2])
        segments = _Segments(self.dataset_info)
        numbers = np.zeros(pixels.shape[:2], np.int32)  # Of the segments.
        above: list[np.ndarray] = []  # For each column, what the row of tiles above found in the overlap.
        for row, next_row in zip(rows, [*rows[1:], None]):
            below = []
            left = None  # What the tile before found in the overlap.
            for place, (column, next_column) in enumerate(zip(columns, [*columns[1:], None])):
                tile = self._predict_tile(pixels[row.start : row.end, column.start : column.end])
                own = np.s_[row.own_start : row.own_end, column.own_start : column.own_end]
                found = segments.add(tile, own, (row.start, column.start))
                if above:
                    segments.join(above[place], found[: len(above[place])])
                if left is not None:
                    segments.join(left, found[:, : left.shape[1]])
                numbers[own] = found[_moved(own, (row.start, column.start))]
                below += [found[next_row.start - row.start :]] if next_row else []
                left = found[:, next_column.start - column.start :] if next_column else None
            above = below
        labels, listed = segments.finish()
        for row in rows:  # A part at a time saves memory.
            part = numbers[row.own_start : row.own_end]
            part[...] = labels[part]
        return Prediction(numbers, listed, pixels, self.dataset_info)


@dataclasses.dataclass
class _Part:
    """A segment of a tile, or the stuff of a class in all tiles.

    Attributes:
      class_id: Id of the class table.
      is_thing: Whether it is a thing.
      joined_with: Number of a part of the same thing; its own number if there is no lower one.
      is_alone: Whether it is joined with no other part.
      area: Number of its pixels in the tile.
      own_area: Number of those that the tile decides.
      score: Sum of its score over these.
      box: Box around these, (top, left, bottom, right) in pixels of the image; None if there are none.
    """

    class_id: int
    is_thing: bool
    joined_with: int
    is_alone: bool = True
    area: int = 0
    own_area: int = 0
    score: float = 0.0
    box: Box | None = None

    @property
    def is_dropped(self) -> bool:
        """Whether it is only the rest of an object that another tile sees better."""
        return self.is_thing and self.is_alone and 2 * self.own_area < self.area

    def take(self, own_area: int, score: float, box: Box | None) -> None:
        """Adds pixels that a tile decides; `score` is their sum."""
        self.own_area += own_area
        self.score += score
        boxes = [known for known in (self.box, box) if known]
        if boxes:
            top, left, bottom, right = zip(*boxes)
            self.box = min(top), min(left), max(bottom), max(right)


class _Segments:
    """The segments of all tiles. Parts are numbered from 1 as they come; stuff of a class is one part.

    Args:
      dataset_info: Class table of the whole image.
    """

    def __init__(self, dataset_info: DatasetInfo):
        self._info = dataset_info
        self._parts = [_Part(dataset_info.ignore_label, False, _VOID)]
        self._number_of_stuff: dict[int, int] = {}

    def add(self, tile: Prediction, own: tuple[slice, slice], origin: tuple[int, int]) -> np.ndarray:
        """Adds the segments of a tile.

        Args:
          tile: Prediction of the tile.
          own: The pixels of the image that the tile decides.
          origin: (row, column) of the tile's first pixel in the image.

        Returns:
          int32, the map of the tile with the numbers of the parts.
        """
        ids, index = compact_ids(tile.label_map.reshape(-1))
        index = index.reshape(tile.label_map.shape)
        own_index = index[_moved(own, origin)]
        areas, own_areas = (np.bincount(part.reshape(-1), minlength=len(ids)).tolist() for part in (index, own_index))
        slices = ndimage.find_objects(own_index + 1, max_label=len(ids))
        place_of_id = {segment_id: place for place, segment_id in enumerate(ids.tolist())}
        numbers = np.full(len(ids), _VOID, np.int32)
        for segment in tile.segments:
            place = place_of_id[segment.id]
            numbers[place] = self._number_of(segment)
            part = self._parts[numbers[place]]
            part.area += areas[place]
            part.take(own_areas[place], own_areas[place] * segment.score, _box(slices[place], own))
        return numbers[index]

    def _number_of(self, segment: Segment) -> int:
        number = len(self._parts)
        if not segment.is_thing:
            number = self._number_of_stuff.setdefault(segment.class_id, number)
        if number == len(self._parts):
            self._parts.append(_Part(segment.class_id, segment.is_thing, number))
        return number

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
            parts = [self._parts[number] for number in numbers]
            if parts[0].is_thing and parts[1].is_thing and parts[0].class_id == parts[1].class_id:
                low, high = sorted(map(self._first, numbers))
                self._parts[high].joined_with = low
                for part in parts:
                    part.is_alone = False

    def _first(self, number: int) -> int:
        """The lowest number of the parts that a part is joined with."""
        while self._parts[number].joined_with != number:
            number = self._parts[number].joined_with
        return number

    def finish(self) -> tuple[np.ndarray, list[Segment]]:
        """The label of each number, int32, and the segments of the image, ordered by id.

        Raises:
          UserError: There are more things of a class than label maps can number.
        """
        wholes: dict[int, _Part] = {}
        for number, part in enumerate(self._parts):
            if number != _VOID and not part.is_dropped and part.own_area:
                whole = wholes.setdefault(self._first(number), _Part(part.class_id, part.is_thing, number))
                whole.take(part.own_area, part.score, part.box)
        instances: collections.Counter[int] = collections.Counter()
        label_of = {}
        listed = []
        for first, whole in wholes.items():
            instances[whole.class_id] += whole.is_thing
            label_of[first] = self._label(whole.class_id, instances[whole.class_id])
            top, left, bottom, right = whole.box
            listed.append(
                Segment(
                    id=label_of[first],
                    class_id=whole.class_id,
                    is_thing=whole.is_thing,
                    score=whole.score / whole.own_area,
                    area=whole.own_area,
                    bbox=(left, top, right - left, bottom - top),
                )
            )
        labels = [
            self._info.void if part.is_dropped else label_of.get(self._first(number), self._info.void)
            for number, part in enumerate(self._parts)
        ]
        return np.array(labels, np.int32), sorted(listed, key=lambda segment: segment.id)

    def _label(self, class_id: int, instance: int) -> int:
        if instance >= self._info.label_divisor:
            raise UserError(
                f"the tiles have more than {instance - 1} things of class {self._info.by_id[class_id].name}, and label "
                f"maps of {self._info.name} cannot number more; predict parts of the image"
            )
        return encode_label(class_id, instance, self._info.label_divisor)


def _moved(region: tuple[slice, slice], origin: tuple[int, int]) -> tuple[slice, slice]:
    """A region of the image in the coordinates of a tile that begins at `origin`."""
    return tuple(slice(side.start - start, side.stop - start) for side, start in zip(region, origin))


def _box(found: tuple[slice, slice] | None, region: tuple[slice, slice]) -> Box | None:
    """The box of slices that were found in a region of the image."""
    if found is None:
        return None
    (top, bottom), (left, right) = ((f.start + r.start, f.stop + r.start) for f, r in zip(found, region))
    return top, left, bottom, right
