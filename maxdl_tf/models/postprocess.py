"""From the model's outputs to a panoptic map (architecture section 9, paper: inference)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from maxdl_tf import panoptic_ids
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.layers.resize import resize_bilinear, spatial_size
from maxdl_tf.models.mask_competition import STRIDE, MaskCompetition
from maxdl_tf.structs import PanopticOutputs, PanopticPrediction

_DROPPED_LOGIT = -99999.0
# Rows of the result that are worked on at a time: all slots' logits of a 1025 x 1025 image would be half a gigabyte.
_BAND_ROWS = 16


class _Slots(NamedTuple):
    """What the class logits say of each slot; all [batch, slots]."""

    class_index: tf.Tensor  # int32, in DatasetInfo.class_order
    confidence: tf.Tensor  # float32
    kept: tf.Tensor  # bool


class _Pixels(NamedTuple):
    """What the mask logits say of each pixel; all [batch, height, width]."""

    best_slot: tf.Tensor  # int32, of all slots
    slot: tf.Tensor  # int32, of the kept slots
    confidence: tf.Tensor  # float32, in `slot`
    accepted: tf.Tensor  # bool


class SlotMap(NamedTuple):
    """One image, without padding, by the slots that its pixels belong to.

    Attributes:
      slot: int32 [h, w]; -1 where void.
      confidence: float32 [h, w], the pixel's confidence in its mask; of no meaning where void.
      label: int32 [slots], of each slot's pixels: class id * label_divisor + instance.
      class_id: int32 [slots].
      class_confidence: float32 [slots], the mask's confidence in its class.
    """

    slot: tf.Tensor
    confidence: tf.Tensor
    label: tf.Tensor
    class_id: tf.Tensor
    class_confidence: tf.Tensor


class Postprocessor:
    """Merges the masks of confident slots into one map, and drops small segments.

    Works eagerly and in graphs, for any batch and size; where sizes are static it compiles with XLA.

    Args:
      dataset_info: The class table.
      class_threshold: Slots whose best class is less probable than this are dropped.
      pixel_threshold: Pixels whose best slot is at most this probable are void.
      thing_area_limit: Things with fewer pixels than this, at the size of the result, become void.
      stuff_area_limit: Stuff classes with fewer pixels than this, at the size of the result, become void.

    Attributes:
      dataset_info: The class table.
      thresholds: The other arguments, by name.
      void: The value of void pixels in panoptic maps.

    Raises:
      ValueError: For a threshold outside of 0..1 or a negative limit.
    """

    def __init__(
        self,
        dataset_info: DatasetInfo,
        *,
        class_threshold: float = 0.7,
        pixel_threshold: float = 0.4,
        thing_area_limit: int,
        stuff_area_limit: int,
    ):
        for name, threshold in (("class_threshold", class_threshold), ("pixel_threshold", pixel_threshold)):
            if not 0 <= threshold <= 1:
                raise ValueError(f"{name} {threshold} must be a probability, 0..1")
        for name, limit in (("thing_area_limit", thing_area_limit), ("stuff_area_limit", stuff_area_limit)):
            if not limit >= 0:
                raise ValueError(f"{name} {limit} must be a number of pixels, at least 0")
        self.dataset_info = dataset_info
        self.thresholds = {
            "class_threshold": class_threshold,
            "pixel_threshold": pixel_threshold,
            "thing_area_limit": thing_area_limit,
            "stuff_area_limit": stuff_area_limit,
        }
        self._class_threshold = class_threshold
        self._pixel_threshold = pixel_threshold
        self._thing_area_limit = thing_area_limit
        self._stuff_area_limit = stuff_area_limit
        self._class_ids = np.array(dataset_info.class_order, np.int32)
        self._num_things = len(dataset_info.thing_ids)
        self._label_divisor = dataset_info.label_divisor
        self.void = dataset_info.void

    def __call__(self, outputs: PanopticOutputs, size: tuple[int, int]) -> PanopticPrediction:
        """The maps of a batch.

        Args:
          outputs: Of the model.
          size: (height, width) of the model's input, to which the maps are resized.

        Raises:
          ValueError: If the outputs do not fit the class table.
        """
        self._check(outputs)
        slots = self._judge_slots(tf.cast(outputs.class_logits, tf.float32))
        pixels = self._judge_pixels(tf.cast(outputs.mask_logits, tf.float32), slots.kept, size)
        label_of_slot = self._label_slots(slots, pixels)

        panoptic = tf.where(pixels.accepted, tf.gather(label_of_slot, pixels.slot, batch_dims=1), self.void)
        class_of_slot = tf.gather(self._class_ids, slots.class_index)
        any_kept = tf.cast(tf.reduce_any(slots.kept, axis=1), tf.float32)[:, tf.newaxis, tf.newaxis]
        return PanopticPrediction(
            panoptic=panoptic,
            semantic=tf.gather(class_of_slot, pixels.best_slot, batch_dims=1),
            instance=pixels.slot + 1,
            instance_score=pixels.confidence * any_kept,
            semantic_score=tf.gather(slots.confidence, pixels.slot, batch_dims=1) * any_kept,
        )

    def read_image(self, outputs: PanopticOutputs, size: tuple[int, int], visible: tuple) -> SlotMap:
        """The visible part of one image's maps, for less work: those that `__call__` gives, as far as they lie in it.

        Args:
          outputs: Of the model, batch 1, with known sizes.
          size: (height, width) of the model's input, each 4 (k - 1) + 1 where the mask logits have k.
          visible: (height, width), numbers or scalar tensors; what lies below and to the right is padding.

        Raises:
          ValueError: If the outputs do not fit the class table or the size.
        """
        self._check(outputs)
        strided = tuple(STRIDE * (side - 1) + 1 for side in outputs.mask_logits.shape[1:3])
        if strided != tuple(size):
            raise ValueError(f"mask logits for an input of {strided}, but size is {tuple(size)}; give the model's own")
        slots = self._judge_slots(tf.cast(outputs.class_logits, tf.float32))
        competition = MaskCompetition(tf.cast(outputs.mask_logits, tf.float32)[0], slots.kept[0])

        def slots_in(height, width, top=0, left=0):
            winners = competition.winners(height, width, top, left)
            accepted = winners.won & (winners.confidence > self._pixel_threshold)
            return tf.where(accepted, winners.slot, -1), winners.confidence

        def count(slot):
            return _count(slot[tf.newaxis], slots.kept.shape[1])

        def area_with_padding():
            below, _ = slots_in(size[0] - height, size[1], top=height)
            right, _ = slots_in(height, size[1] - width, left=width)
            return area + count(below) + count(right)

        height, width = visible
        slot, confidence = slots_in(height, width)
        # Segments count with their pixels in the padding. That matters if those in the image are too few.
        area = count(slot)
        undecided = tf.reduce_any((area > 0) & ~self._is_large(slots, area))
        area = tf.cond(undecided, area_with_padding, lambda: area)
        large = self._is_large(slots, area)[0]
        return SlotMap(
            slot=tf.where(tf.gather(large, tf.maximum(slot, 0)), slot, -1),
            confidence=confidence,
            label=self._labels(slots)[0],
            class_id=tf.gather(self._class_ids, slots.class_index[0]),
            class_confidence=slots.confidence[0],
        )

    def _check(self, outputs: PanopticOutputs) -> None:
        channels, slots = outputs.class_logits.shape[-1], outputs.mask_logits.shape[-1]
        if channels != len(self._class_ids) + 1:
            raise ValueError(
                f"class_logits have {channels} channels; {len(self._class_ids)} classes and void want "
                f"{len(self._class_ids) + 1}; is this model of another data set?"
            )
        if slots >= self._label_divisor:
            raise ValueError(
                f"{slots} slots do not fit below label_divisor {self._label_divisor}, with which their numbers are "
                "coded; set a greater label_divisor in the data set or build the model with fewer slots"
            )

    def _judge_slots(self, class_logits: tf.Tensor) -> _Slots:
        probability = tf.nn.softmax(class_logits)[..., :-1]  # Void is no answer, but it takes its share.
        confidence = tf.reduce_max(probability, axis=-1)
        return _Slots(
            class_index=tf.argmax(probability, axis=-1, output_type=tf.int32),
            confidence=confidence,
            kept=confidence >= self._class_threshold,
        )

    def _judge_pixels(self, mask_logits: tf.Tensor, kept: tf.Tensor, size: tuple[int, int]) -> _Pixels:
        """Resizes the logits (before the softmax) and competes in bands of rows."""
        height, width = size
        low_height, _ = spatial_size(mask_logits)
        wide = resize_bilinear(mask_logits, (low_height, width))
        above, below, share = _interpolation(low_height, height)
        kept = kept[:, tf.newaxis, tf.newaxis, :]

        def judge_band(first_row):
            rows = tf.minimum(first_row + tf.range(_BAND_ROWS), height - 1)
            top = tf.gather(wide, tf.gather(above, rows), axis=1)
            bottom = tf.gather(wide, tf.gather(below, rows), axis=1)
            logits = top + (bottom - top) * tf.gather(share, rows)[:, tf.newaxis, tf.newaxis]
            kept_logits = tf.where(kept, logits, _DROPPED_LOGIT)
            best_kept = tf.reduce_max(kept_logits, axis=-1)
            confidence = 1.0 / tf.reduce_sum(tf.exp(kept_logits - best_kept[..., tf.newaxis]), axis=-1)
            return _Pixels(
                best_slot=tf.argmax(logits, axis=-1, output_type=tf.int32),
                slot=tf.argmax(kept_logits, axis=-1, output_type=tf.int32),
                confidence=confidence,
                # Pixels that a dropped slot has won are void, not the runner-up's.
                accepted=(confidence > self._pixel_threshold) & (best_kept >= tf.reduce_max(logits, axis=-1)),
            )

        signature = _Pixels(*(tf.TensorSpec([None, None, None], t) for t in (tf.int32, tf.int32, tf.float32, tf.bool)))
        bands = tf.map_fn(judge_band, tf.range(0, height, _BAND_ROWS), fn_output_signature=signature)
        return _Pixels(*(_join_bands(field, height, width) for field in bands))

    def _label_slots(self, slots: _Slots, pixels: _Pixels) -> tf.Tensor:
        """int32 [batch, slots], the label of each slot's pixels; void for segments that are too small."""
        area = _count(tf.where(pixels.accepted, pixels.slot, -1), slots.kept.shape[1])
        return tf.where(self._is_large(slots, area), self._labels(slots), self.void)

    def _is_large(self, slots: _Slots, area: tf.Tensor) -> tf.Tensor:
        """bool [batch, slots], whether the segment of each slot, which has int32 [batch, slots] pixels, is kept."""
        same_class = slots.class_index[:, :, tf.newaxis] == slots.class_index[:, tf.newaxis, :]
        class_area = tf.reduce_sum(tf.where(same_class, area[:, tf.newaxis, :], 0), axis=-1)
        is_thing = self._is_thing(slots)
        return tf.where(is_thing, area >= self._thing_area_limit, class_area >= self._stuff_area_limit)

    def _labels(self, slots: _Slots) -> tf.Tensor:
        instance = tf.where(self._is_thing(slots), tf.range(1, slots.kept.shape[1] + 1), 0)
        return panoptic_ids.encode_label(tf.gather(self._class_ids, slots.class_index), instance, self._label_divisor)

    def _is_thing(self, slots: _Slots) -> tf.Tensor:
        return slots.class_index < self._num_things


def _interpolation(size: int, new_size: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """For each new row: the row above, the row below, and the share of the row below, with aligned corners."""
    steps = tf.cast(tf.maximum(new_size - 1, 1), tf.float32)
    position = tf.cast(tf.range(new_size), tf.float32) * (tf.cast(size - 1, tf.float32) / steps)
    above = tf.minimum(tf.cast(tf.floor(position), tf.int32), size - 1)
    return above, tf.minimum(above + 1, size - 1), position - tf.cast(above, tf.float32)


def _join_bands(bands: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """[bands, batch, rows, width] to [batch, height, width]."""
    batch = tf.shape(bands)[1]
    joined = tf.reshape(tf.transpose(bands, [1, 0, 2, 3]), [batch, -1, width])
    return joined[:, :height]


def _count(slot: tf.Tensor, num_slots: int) -> tf.Tensor:
    """int32 [batch, slots], how many pixels of int32 [batch, height, width] name each slot; -1 names none."""
    batch = tf.shape(slot)[0]
    offset = tf.range(batch)[:, tf.newaxis, tf.newaxis] * num_slots
    segment = tf.reshape(tf.where(slot >= 0, slot + offset, -1), [-1])
    return tf.reshape(
        tf.math.unsorted_segment_sum(tf.ones_like(segment), segment, batch * num_slots), [batch, num_slots]
    )
