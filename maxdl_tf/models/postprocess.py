"""From the model's outputs to a panoptic map (architecture section 9, paper: inference).

`Postprocessor.slot_map` decides for each pixel of one image which slot wins it and, if the pixel becomes void, which
rule made it void. Label maps, segments and the counts of --diagnose are all read from this slot map.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from maxdl_tf import panoptic_ids
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.layers.resize import input_size
from maxdl_tf.models.mask_competition import MaskCompetition, Winners
from maxdl_tf.structs import VOID_REASONS, PanopticOutputs, PanopticPrediction

_NO_OBJECT, _CLASS, _PIXEL, _THING_AREA, _STUFF_AREA = range(1, 1 + len(VOID_REASONS))


class SlotMap(NamedTuple):
    """One image, without padding, by the slots that win its pixels.

    Attributes:
      slot: int32 [h, w], the slot with the greatest mask logit.
      void_reason: int32 [h, w], 0 where the pixel belongs to its slot. Otherwise the pixel is void, and this is the
        place of the reason in `VOID_REASONS`, from 1.
      confidence: float32 [h, w], the pixel's confidence in its mask; meaningless where void.
      label: int32 [slots], label of each slot's pixels: class id * label_divisor + instance.
      class_id: int32 [slots].
      class_confidence: float32 [slots], the mask's confidence in its class.
    """

    slot: tf.Tensor
    void_reason: tf.Tensor
    confidence: tf.Tensor
    label: tf.Tensor
    class_id: tf.Tensor
    class_confidence: tf.Tensor


class Postprocessor:
    """Merges the masks of confident slots into one map, and drops small segments.

    Works eagerly and in graphs, but not with XLA.

    Args:
      dataset_info: Class table.
      class_threshold: Least probability of a slot's best class; slots below it are dropped.
      pixel_threshold: Pixels whose slot is at most this probable become void.
      thing_area_limit: Least number of pixels of a thing, at the size of the network's input; smaller ones become void.
      stuff_area_limit: The same for a stuff class in an image.

    Attributes:
      dataset_info: Class table.
      thresholds: The other arguments, by name.
      void: Value of void pixels in panoptic maps.

    Raises:
      ValueError: A threshold is outside 0..1, or a limit is negative.
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
        self.void = dataset_info.void

    def __call__(self, outputs: PanopticOutputs) -> PanopticPrediction:
        """The maps of a batch at the size of the network's input, computed one image at a time.

        Raises:
          ValueError: The outputs do not fit the class table.
        """

        def read(logits):
            mask_logits, class_logits = logits
            slot_map = self.slot_map(
                PanopticOutputs(None, mask_logits[tf.newaxis], class_logits[tf.newaxis], semantic_logits=None)
            )
            return PanopticPrediction(
                panoptic=self.label_map(slot_map),
                instance_score=slot_map.confidence,
                semantic_score=tf.gather(slot_map.class_confidence, slot_map.slot),
                slot=slot_map.slot,
                void_reason=slot_map.void_reason,
            )

        size = input_size(outputs.mask_logits)
        return tf.map_fn(
            read,
            (outputs.mask_logits, outputs.class_logits),
            fn_output_signature=PanopticPrediction(
                *(tf.TensorSpec(size, t) for t in (tf.int32, tf.float32, tf.float32, tf.int32, tf.int32))
            ),
            parallel_iterations=1,  # Each operation uses all cores.
        )

    def slot_map(self, outputs: PanopticOutputs, visible: tuple | None = None) -> SlotMap:
        """The slots of one image.

        Args:
          outputs: Outputs of the model, batch 1; `mask_logits` have a known shape.
          visible: (height, width) of the image in the network's input, numbers or scalar tensors; the rest, below and
            to the right, is padding. Default: there is no padding.

        Raises:
          ValueError: The outputs do not fit the class table.
        """
        self._check(outputs)
        class_probability = tf.nn.softmax(tf.cast(outputs.class_logits, tf.float32)[0])
        probability = class_probability[:, :-1]  # Void is no answer, but takes its share.
        class_index = tf.argmax(probability, axis=-1, output_type=tf.int32)
        class_confidence = tf.reduce_max(probability, axis=-1)
        kept = class_confidence >= self._class_threshold
        dropped = tf.where(class_probability[:, -1] > class_confidence, _NO_OBJECT, _CLASS)
        slot_reason = tf.where(kept, 0, dropped)
        num_slots = kept.shape[0]
        competition = MaskCompetition(tf.cast(outputs.mask_logits, tf.float32)[0], kept)

        def reasons_of(winners: Winners):
            reason = tf.gather(slot_reason, winners.slot)
            return tf.where((reason == 0) & ~(winners.confidence > self._pixel_threshold), _PIXEL, reason)

        def area_in(height, width, top, left):
            winners = competition.winners(height, width, top, left)
            return _count(winners.slot, reasons_of(winners) == 0, num_slots)

        def area_with_padding():
            full_height, full_width = input_size(outputs.mask_logits)
            return (
                area
                + area_in(full_height - height, full_width, height, 0)
                + area_in(height, full_width - width, 0, width)
            )

        height, width = visible or input_size(outputs.mask_logits)
        winners = competition.winners(height, width)
        reason = reasons_of(winners)
        is_thing = class_index < len(self.dataset_info.thing_ids)
        area = _count(winners.slot, reason == 0, num_slots)
        if visible:
            # Pixels in the padding count too. They matter only for segments that are too small without them.
            undecided = tf.reduce_any((area > 0) & ~self._is_large(class_index, is_thing, area))
            area = tf.cond(undecided, area_with_padding, lambda: area)
        too_small = tf.where(is_thing, _THING_AREA, _STUFF_AREA)
        area_reason = tf.where(self._is_large(class_index, is_thing, area), 0, too_small)
        class_id = tf.gather(self._class_ids, class_index)
        instance = tf.where(is_thing, tf.range(1, num_slots + 1), 0)
        return SlotMap(
            slot=winners.slot,
            void_reason=tf.where(reason == 0, tf.gather(area_reason, winners.slot), reason),
            confidence=winners.confidence,
            label=panoptic_ids.encode_label(class_id, instance, self.dataset_info.label_divisor),
            class_id=class_id,
            class_confidence=class_confidence,
        )

    def label_map(self, slot_map: SlotMap) -> tf.Tensor:
        """int32 [h, w], class id * label_divisor + instance."""
        return tf.where(slot_map.void_reason == 0, tf.gather(slot_map.label, slot_map.slot), self.void)

    def _check(self, outputs: PanopticOutputs) -> None:
        channels, slots = outputs.class_logits.shape[-1], outputs.mask_logits.shape[-1]
        if channels != len(self._class_ids) + 1:
            raise ValueError(
                f"class_logits have {channels} channels; {len(self._class_ids)} classes and void need "
                f"{len(self._class_ids) + 1}; is this the model of another data set?"
            )
        if slots >= self.dataset_info.label_divisor:
            raise ValueError(
                f"{slots} slots do not fit below label_divisor {self.dataset_info.label_divisor}, which encodes their "
                "numbers; set a greater label_divisor in the data set or build the model with fewer slots"
            )

    def _is_large(self, class_index: tf.Tensor, is_thing: tf.Tensor, area: tf.Tensor) -> tf.Tensor:
        """bool [slots], whether the segments of slots with these areas, int32 [slots], reach their limit."""
        same_class = class_index[:, tf.newaxis] == class_index
        class_area = tf.reduce_sum(tf.where(same_class, area, 0), axis=-1)
        return tf.where(is_thing, area >= self._thing_area_limit, class_area >= self._stuff_area_limit)


def _count(slot: tf.Tensor, counted: tf.Tensor, num_slots: int) -> tf.Tensor:
    """int32 [slots], number of pixels of each slot in int32 [h, w] where bool [h, w] is set."""
    slot = tf.reshape(tf.where(counted, slot, -1), [-1])
    return tf.math.unsorted_segment_sum(tf.ones_like(slot), slot, num_slots)
