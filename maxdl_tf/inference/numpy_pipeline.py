"""The steps around an exported network, without TensorFlow: from image to input, and from outputs to label map.

Does what `evaluation_transform`, `Postprocessor` and `ImageSegmenter` do, by the plain rules (architecture sections 8
and 9). Needs only NumPy and SciPy. The file also works alone, outside this package: each export that is not a
SavedModel contains a copy.

Example:
  pipeline = Pipeline.of_folder("exports/shapes_onnx")
  network_input = pipeline.network_input(image)  # uint8 [480, 640, 3]
  ...  # Run the network of the folder.
  label_map, segments = pipeline.postprocess(mask_logits[0], class_logits[0], image_size=(480, 640))
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from maxdl_tf.class_table import DatasetInfo

PADDING = 127.5  # Becomes 0 when the network normalizes its input.
_READ = ("thing_ids", "class_order", "label_divisor", "void")  # What post-processing reads of a class table.
_BAND_ROWS = 16  # Rows of pixels whose logits are in memory at a time; a multiple of any stride.
_THREADS = min(4, os.cpu_count() or 1)  # Each has some such rows in memory.
_MOST_SEGMENTS = 4096  # Of an image whose things are split.
_NOBODY = -1  # Slot or segment of void pixels: the entry behind the last one in a table that has one for void.


class Segments(NamedTuple):
    """The segments of an image without void, ordered by id.

    Attributes:
      count: Number of segments.
      ids: int32 [count], values in the label map.
      class_ids: int32 [count], ids of the class table.
      scores: float32 [count], mean confidence of the pixels in their masks times mean confidence of the masks in their
        class.
      areas: int32 [count], in pixels of the image.
      boxes: int32 [count, 4], (left, top, width, height) in pixels of the image.
    """

    count: int
    ids: np.ndarray
    class_ids: np.ndarray
    scores: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray


class _Slots(NamedTuple):
    """The slots of an image by their classes.

    Attributes:
      class_index: int [slots], place of the most probable class in `class_order`.
      is_thing: bool [slots], whether that is a thing.
      confidence: float32 [slots], its probability.
      kept: bool [slots], whether the slot may own pixels.
    """

    class_index: np.ndarray
    is_thing: np.ndarray
    confidence: np.ndarray
    kept: np.ndarray


class _Owners(NamedTuple):
    """The slots that own the pixels of the network's input, padding included.

    Attributes:
      slot: int [h, w], slot of each pixel; `_NOBODY` where void.
      confidence: float32 [h, w], the greatest probability of a mask.
      instance: int [slots], number of each slot in labels, from 1.
    """

    slot: np.ndarray
    confidence: np.ndarray
    instance: np.ndarray


class Pipeline(NamedTuple):
    """The steps before and after a network with one input size.

    Attributes:
      crop_size: (height, width) of the network's input.
      postprocess: Makes the label map and the segments from the outputs.
      info: Content of `export_info.json`.
    """

    crop_size: tuple[int, int]
    postprocess: NumpyPostprocessor
    info: dict

    @classmethod
    def of_folder(cls, folder: str) -> Pipeline:
        """The steps of an export, from its `export_info.json` and `dataset_info.json`."""
        info = _read_json(os.path.join(folder, "export_info.json"))
        table = _read_json(os.path.join(folder, "dataset_info.json"))
        dataset_info = SimpleNamespace(**{name: table[name] for name in _READ})
        postprocess = NumpyPostprocessor(dataset_info, **info["postprocess"])
        return cls(tuple(info["crop_size"]), postprocess, info)

    def network_input(self, image: np.ndarray) -> np.ndarray:
        """The image, uint8 [h, w, 3] in RGB, as the network's input: float32 [1, height, width, 3], 0..255.

        It is resized to fit into the crop and padded on the right and at the bottom. The values equal those of
        `evaluation_transform` bit for bit.
        """
        resized = _resized_image(image, resized_size(image.shape[:2], self.crop_size, self.postprocess.enlarge))
        padded = np.full((1, *self.crop_size, 3), PADDING, np.float32)
        padded[0, : resized.shape[0], : resized.shape[1]] = resized
        return padded


@dataclass(frozen=True)
class NumpyPostprocessor:
    """Makes the label map and the segments of one image from its logits.

    Label maps equal those of `Postprocessor`, unless a probability is within rounding of a threshold: NumPy and
    TensorFlow round `exp` differently, as TensorFlow does on different processors.

    Args:
      dataset_info: Class table. Only `thing_ids`, `class_order`, `label_divisor` and `void` are read.
      thing_area_limit, ...: The arguments of `Postprocessor`, which an export has in `export_info.json`.
    """

    dataset_info: DatasetInfo
    thing_area_limit: int
    stuff_area_limit: int
    class_threshold: float = 0.7
    pixel_threshold: float = 0.4
    stuff_class_threshold: float | None = None
    overlap_threshold: float | None = None
    class_exponent: float = 1.0
    mask_exponent: float = 1.0
    split_min_area: int | None = None
    split_connectivity: int = 2
    output_stride: int = 4
    enlarge: bool = True

    def __call__(
        self, mask_logits: np.ndarray, class_logits: np.ndarray, image_size: tuple[int, int]
    ) -> tuple[np.ndarray, Segments]:
        """The label map and the segments of one image.

        Args:
          mask_logits: float [height / stride, width / stride, slots].
          class_logits: float [slots, classes + 1], in the order of `class_order`, void last.
          image_size: (height, width) of the image before it was resized and padded.

        Returns:
          int32 [h, w] of the image's size, class id * label_divisor + instance; and its segments.

        Raises:
          ValueError: The logits do not fit each other or the class table.
        """
        mask_logits, class_logits = (np.asarray(logits, np.float32) for logits in (mask_logits, class_logits))
        self._check(mask_logits, class_logits)
        slots = self._slots(class_logits)
        owners = (self._pixel_wise if self.overlap_threshold is None else self._mask_wise)(mask_logits, slots)
        owner = np.where(np.append(self._is_large(owners.slot, slots), False)[owners.slot], owners.slot, _NOBODY)

        height, width = resized_size(image_size, owner.shape, self.enlarge)  # The rest is padding.
        segment, slot_of_segment = owner[:height, :width], np.arange(len(slots.kept))
        instance = owners.instance
        if self.split_min_area is not None:
            segment, slot_of_segment = self._split(segment, slots.is_thing)
            instance = np.append(instance, np.arange(len(instance), len(slot_of_segment)) + 1)
        class_id = np.array(self.dataset_info.class_order)[slots.class_index[slot_of_segment]]
        instance = np.where(slots.is_thing[slot_of_segment], instance, 0)
        label = class_id * self.dataset_info.label_divisor + instance

        rows, columns = (_nearest(old, new) for old, new in zip((height, width), image_size))
        segment = segment[rows][:, columns]
        label_map = np.append(label, self.dataset_info.void).astype(np.int32)[segment]
        confidence = owners.confidence[rows][:, columns]
        return label_map, self._segments(segment, label, confidence, slots.confidence[slot_of_segment])

    def _check(self, mask_logits: np.ndarray, class_logits: np.ndarray) -> None:
        num_slots, channels = mask_logits.shape[-1], len(self.dataset_info.class_order) + 1
        if mask_logits.ndim != 3 or class_logits.shape != (num_slots, channels):
            raise ValueError(
                f"mask_logits {mask_logits.shape} and class_logits {class_logits.shape} must be "
                f"[height, width, slots] and [slots, {channels}] of one image; is this the model of another data set?"
            )

    def _slots(self, class_logits: np.ndarray) -> _Slots:
        probability = _softmax(class_logits)[:, :-1]  # Void is no answer, but takes its share.
        class_index, confidence = probability.argmax(axis=-1), probability.max(axis=-1)
        is_thing = class_index < len(self.dataset_info.thing_ids)
        of_stuff = self.class_threshold if self.stuff_class_threshold is None else self.stuff_class_threshold
        threshold = np.where(is_thing, self.class_threshold, of_stuff).astype(np.float32)
        return _Slots(class_index, is_thing, confidence, kept=confidence >= threshold)

    def _pixel_wise(self, mask_logits: np.ndarray, slots: _Slots) -> _Owners:
        """MaX-DeepLab: the slot with the greatest logit owns a pixel if it is kept and probable among the kept ones.

        Among equal logits, a kept slot wins, then the first.
        """
        order, count = np.argsort(~slots.kept, kind="stable"), slots.kept.sum()  # Kept slots come first.

        def read_off(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            if not count:
                return np.full(logits.shape[:2], _NOBODY), np.zeros(logits.shape[:2], np.float32)
            kept, others = logits[..., :count], logits[..., count:]
            place = kept.argmax(axis=-1)
            best = np.take_along_axis(kept, place[..., np.newaxis], axis=-1)
            odds = kept - best
            confidence = 1 / np.exp(odds, out=odds).sum(axis=-1)
            is_owned = best[..., 0] >= others.max(axis=-1, initial=-np.inf)
            is_owned &= confidence > np.float32(self.pixel_threshold)
            return np.where(is_owned, order[place], _NOBODY), confidence

        slot, confidence = _by_bands(read_off, mask_logits[..., order], self.output_stride)
        return _Owners(slot, confidence, instance=np.arange(len(slots.kept)) + 1)

    def _mask_wise(self, mask_logits: np.ndarray, slots: _Slots) -> _Owners:
        """kMaX-DeepLab: the best mask first, each gets the pixels where it is probable and no mask before it is.

        A mask is dropped if it gets too small a share of the pixels where it is probable.
        """
        threshold = np.float32(self.pixel_threshold)
        low = _softmax(mask_logits)
        above = low > threshold
        total = np.where(above, low, 0).sum(axis=(0, 1), dtype=np.float64)
        mean = (total / np.maximum(above.sum(axis=(0, 1)), 1)).astype(np.float32)
        score = slots.confidence ** np.float32(self.class_exponent) * mean ** np.float32(self.mask_exponent)
        ranked = np.argsort(-score, kind="stable")

        def read_off(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            probability = _softmax(logits)
            return probability > threshold, probability.max(axis=-1)

        claims, confidence = _by_bands(read_off, mask_logits, self.output_stride)
        owner = np.full(confidence.shape, _NOBODY)
        for slot in ranked[slots.kept[ranked]]:
            claimed = claims[..., slot]
            free = claimed & (owner == _NOBODY)
            if np.float32(free.sum()) > np.float32(self.overlap_threshold) * np.float32(claimed.sum()):
                owner[free] = slot
        return _Owners(owner, confidence, instance=np.argsort(ranked) + 1)

    def _is_large(self, owner: np.ndarray, slots: _Slots) -> np.ndarray:
        """bool [slots], whether a thing, or all slots of a stuff class together, reach the limit of their area."""
        area = np.bincount(owner[owner != _NOBODY], minlength=len(slots.kept))
        class_area = np.bincount(slots.class_index, weights=area)[slots.class_index]
        return np.where(slots.is_thing, area >= self.thing_area_limit, class_area >= self.stuff_area_limit)

    def _split(self, owner: np.ndarray, is_thing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Splits the pixels of each thing into connected parts and drops small ones.

        The largest part of a slot keeps the slot's number; of equal parts, the first in raster order. Further parts
        follow behind the slots, by descending area, then in raster order, as far as labels can number them.

        Args:
          owner: int [h, w], slot of each pixel.
          is_thing: bool [slots].

        Returns:
          int [h, w], segment of each pixel; and int [segments], slot of each segment.
        """
        structure = ndimage.generate_binary_structure(2, self.split_connectivity)
        part, slot_of_part = np.zeros(owner.shape, int), [_NOBODY]  # Parts count from 1.
        present = np.unique(owner[owner != _NOBODY])
        for slot in present[is_thing[present]]:
            number, count = ndimage.label(owner == slot, structure)
            part = np.where(number > 0, number + len(slot_of_part) - 1, part)
            slot_of_part += [slot] * count
        parts, first_pixel, area = np.unique(part[part > 0], return_index=True, return_counts=True)

        num_slots = len(is_thing)
        most = max(num_slots, min(self.dataset_info.label_divisor - 1, _MOST_SEGMENTS))
        slot_of_segment = list(range(num_slots))
        segment_of_part, has_part = np.full(len(slot_of_part), _NOBODY), np.zeros(num_slots, bool)
        for place in np.lexsort((first_pixel, -area)):
            slot = slot_of_part[parts[place]]
            if area[place] < self.split_min_area:
                break
            if not has_part[slot]:
                has_part[slot], segment_of_part[parts[place]] = True, slot
            elif len(slot_of_segment) < most:
                segment_of_part[parts[place]] = len(slot_of_segment)
                slot_of_segment.append(slot)
        return np.where(part > 0, segment_of_part[part], owner), np.array(slot_of_segment)

    def _segments(
        self, segment: np.ndarray, label: np.ndarray, confidence: np.ndarray, class_confidence: np.ndarray
    ) -> Segments:
        """The table of segments.

        Args:
          segment: int [h, w] of the image's size.
          label: int [segments]. All slots of a stuff class have one label.
          confidence: float32 [h, w], confidence of the pixels in their masks.
          class_confidence: float32 [segments], confidence of the masks in their class.
        """
        used = np.bincount(segment.ravel() + 1, minlength=len(label) + 1)[1:] > 0
        ids = np.unique(label[used])
        row = np.append(np.where(used, np.searchsorted(ids, label) + 1, 0), 0)[segment]  # Row 0 is void.

        def total(weights: np.ndarray | None = None) -> np.ndarray:
            weights = None if weights is None else weights.ravel()
            return np.bincount(row.ravel(), weights, minlength=len(ids) + 1)[1:]

        areas = total()
        scores = total(confidence) / areas * (total(np.append(class_confidence, 0)[segment]) / areas)
        places = ndimage.find_objects(row, max_label=len(ids))
        boxes = [(x.start, y.start, x.stop - x.start, y.stop - y.start) for y, x in places]
        return Segments(
            count=len(ids),
            ids=ids.astype(np.int32),
            class_ids=(ids // self.dataset_info.label_divisor).astype(np.int32),
            scores=scores.astype(np.float32),
            areas=areas.astype(np.int32),
            boxes=np.array(boxes, np.int32).reshape(-1, 4),
        )


def resized_size(image_size: tuple[int, int], crop_size: tuple[int, int], enlarge: bool = True) -> tuple[int, int]:
    """(height, width) of an image in the network's input: the largest that fits, with the same aspect ratio.

    Args:
      image_size: (height, width) of the image.
      crop_size: (height, width) of the network's input.
      enlarge: Whether an image that is smaller than the crop is enlarged. Otherwise it keeps its size.
    """
    size, crop = (np.array(sides, np.float32) for sides in (image_size, crop_size))
    if enlarge:
        size = np.floor(size * (crop / size).max())
    size = np.floor(size * np.minimum((crop / size).min(), np.float32(1)))
    height, width = np.maximum(size, 1).astype(int).tolist()
    return height, width


def _nearest(old: int, new: int) -> np.ndarray:
    """int [new], row of a map for each row of the resized map: nearest neighbor, with aligned corners."""
    place = np.arange(new, dtype=np.float32) * _scale(old, new)
    return np.minimum(np.floor(place.astype(np.float64) + 0.5), old - 1).astype(int)  # Halves are rounded up.


def _by_bands(
    read_off: Callable[[np.ndarray], tuple[np.ndarray, ...]], logits: np.ndarray, stride: int
) -> tuple[np.ndarray, ...]:
    """Applies a function to logits at the size of the network's input, some rows at a time, and joins its results.

    The logits, float32 [rows, width, slots], are resized bilinearly, with aligned corners. The order of the operations
    is TensorFlow's, so that the bits are the same.
    """
    height, width = (stride * (side - 1) + 1 for side in logits.shape[:2])

    def of_band(top: int) -> tuple[np.ndarray, ...]:
        rows = min(_BAND_ROWS, height - top)
        low = logits[top // stride : (top + rows - 1) // stride + 2]
        return read_off(_upsampled(_upsampled(low, stride, 1)[:, :width], stride, 0)[:rows])

    with ThreadPoolExecutor(_THREADS) as pool:
        return tuple(np.concatenate(parts) for parts in zip(*pool.map(of_band, range(0, height, _BAND_ROWS))))


def _upsampled(values: np.ndarray, stride: int, axis: int) -> np.ndarray:
    """Interpolates along an axis: `stride` values for each one, float32. Those behind the last one are undefined."""
    shape = list(values.shape)
    shape[axis] *= stride
    before, length, behind = math.prod(values.shape[:axis]), values.shape[axis], math.prod(values.shape[axis + 1 :])
    values = values.reshape(before, length, 1, behind)
    upsampled = np.empty([before, length, stride, behind], np.float32)
    upsampled[:, -1, 0] = values[:, -1, 0]
    between, share = upsampled[:, :-1], np.arange(stride, dtype=np.float32) / np.float32(stride)
    np.multiply(values[:, 1:] - values[:, :-1], share[:, np.newaxis], out=between)
    between += values[:, :-1]
    return upsampled.reshape(shape)


def _resized_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes uint8 [h, w, 3] to float32 [*size, 3]: bilinear, with aligned corners and TensorFlow's bits."""
    rows, columns = (np.arange(new, dtype=np.float32) * _scale(old, new) for old, new in zip(image.shape, size))
    above, below = (_interpolated(image[line].astype(np.float32), columns) for line in _neighbors(rows, len(image)))
    return above + (below - above) * (rows - np.floor(rows))[:, np.newaxis, np.newaxis]


def _scale(old: int, new: int) -> np.float32:
    """Distance of two rows of a resized map in rows of the map, with aligned corners."""
    return np.float32(old - 1) / np.float32(new - 1) if new > 1 else np.float32(0)


def _neighbors(places: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """int, the indices before and after each place, float32, on an axis."""
    before = np.floor(places).astype(int)
    return before, np.minimum(before + 1, length - 1)


def _interpolated(values: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Values of float32 [h, w, channels] at columns, float32: linear between neighbors."""
    left, right = (np.take(values, column, axis=1) for column in _neighbors(columns, values.shape[1]))
    return left + (right - left) * (columns - np.floor(columns))[:, np.newaxis]


def _softmax(logits: np.ndarray) -> np.ndarray:
    odds = logits - logits.max(axis=-1, keepdims=True)
    np.exp(odds, out=odds)
    odds /= odds.sum(axis=-1, keepdims=True)
    return odds


def _read_json(path: str) -> dict:
    with open(path, encoding="utf-8") as file:
        return json.load(file)
