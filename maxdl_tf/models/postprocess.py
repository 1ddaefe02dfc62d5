"""From the model's outputs to a panoptic map (architecture section 9, paper: inference).

`Postprocessor.slot_map` decides for each pixel of one image which slot owns it and, if the pixel becomes void, which
rule made it void. Label maps, segments and the counts of --diagnose are all read from this slot map.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from maxdl_tf import panoptic_ids
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.models.mask_competition import MaskCompetition, Winners
from maxdl_tf.models.mask_pasting import paste_masks
from maxdl_tf.models.thing_parts import split_things
from maxdl_tf.structs import OUTPUT_STRIDE, VOID_REASONS, PanopticOutputs, PanopticPrediction

_NO_OBJECT, _CLASS, _PIXEL, _OVERLAP, _THING_AREA, _STUFF_AREA, _PART_AREA = range(1, 1 + len(VOID_REASONS))

_MOST_SEGMENTS = 4096  # Of an image whose things are split; tables of segments have as many rows.

_MASK_WISE = ("pixel_threshold", "overlap_threshold", "class_exponent", "mask_exponent")


class SlotMap(NamedTuple):
    """One image, without padding, by the slots that own its pixels.

    There is a segment for each slot. If things are split, further segments follow.

    Attributes:
      slot: int32 [h, w], the slot that owns the pixel; where the pixel is void, the slot with the greatest mask logit.
      void_reason: int32 [h, w], 0 where the pixel belongs to its slot. Otherwise the pixel is void, and this is the
        place of the reason in `VOID_REASONS`, from 1.
      confidence: float32 [h, w], the greatest probability of a mask; meaningless where void.
      segment: int32 [h, w], the segment of the pixel; its slot, unless things are split.
      label: int32 [segments], label of each segment's pixels: class id * label_divisor + instance.
      class_id: int32 [segments].
      class_confidence: float32 [slots], the mask's confidence in its class.
    """

    slot: tf.Tensor
    void_reason: tf.Tensor
    confidence: tf.Tensor
    segment: tf.Tensor
    label: tf.Tensor
    class_id: tf.Tensor
    class_confidence: tf.Tensor


class _Slots(NamedTuple):
    """The slots of an image by their classes.

    Attributes:
      class_index: int32 [slots], place of the most probable class in `DatasetInfo.class_order`.
      is_thing: bool [slots], whether that is a thing.
      confidence: float32 [slots], its probability.
      void_reason: int32 [slots], why the slot may not own pixels, as in `SlotMap`; 0 where it may.
    """

    class_index: tf.Tensor
    is_thing: tf.Tensor
    confidence: tf.Tensor
    void_reason: tf.Tensor


class _Owners(NamedTuple):
    """The slots that own the pixels of an image before small segments are dropped.

    Attributes:
      slot, void_reason, confidence: [h, w], as in `SlotMap`.
      area: int32 [slots], number of pixels that each slot owns; those in the padding are included if they matter.
      instance: int32 [slots], number of each slot in labels, from 1.
    """

    slot: tf.Tensor
    void_reason: tf.Tensor
    confidence: tf.Tensor
    area: tf.Tensor
    instance: tf.Tensor


class Postprocessor:
    """Merges the masks of confident slots into one map, drops small segments, and splits things on request.

    There are two rules for the owner of a pixel. Pixel-wise (MaX-DeepLab), it is the slot with the greatest mask logit.
    Mask-wise (kMaX-DeepLab), masks are ranked by their probabilities. In this order, each gets the pixels where it is
    probable and no mask before it is. It is dropped if these are too few of its pixels.

    Works eagerly and in graphs, but not with XLA.

    Args:
      dataset_info: Class table.
      class_threshold: Least probability of a slot's best class; slots below it are dropped.
      pixel_threshold: Pixels whose slot is at most this probable become void. Mask-wise, it must be at least 1/3.
      thing_area_limit: Least number of pixels of a thing, at the size of the network's input; smaller ones become void.
      stuff_area_limit: The same for a stuff class in an image.
      stuff_class_threshold: `class_threshold` of slots whose best class is stuff. None: the same.
      overlap_threshold: A mask is dropped if masks before it leave at most this share of its pixels. None: pixel-wise.
      class_exponent: Power of the class probability in the score that ranks masks.
      mask_exponent: Power of the mask's mean probability in this score.
      split_min_area: Splits things into connected parts; parts of fewer pixels become void. None: no splitting.
      split_connectivity: 1: pixels of a part connect along edges. 2: also at corners.
      output_stride: Input pixels per position of the mask logits.
      enlarge: Whether images smaller than the network's input are enlarged to fit it, and not only padded.

    Attributes:
      dataset_info: Class table.
      thresholds: The other numbers that have an effect, by name.
      is_mask_wise: Whether it is mask-wise.
      may_renumber: Whether rounding may exchange the numbers of instances: those of ranks, or of parts by their areas.
      output_stride, enlarge: As given.
      void: Value of void pixels in panoptic maps.

    Raises:
      ValueError: A threshold is outside 0..1, an exponent or limit is negative, `pixel_threshold` is too low, or
        `split_connectivity` is neither 1 nor 2.
    """

    def __init__(
        self,
        dataset_info: DatasetInfo,
        *,
        class_threshold: float = 0.7,
        pixel_threshold: float = 0.4,
        thing_area_limit: int,
        stuff_area_limit: int,
        stuff_class_threshold: float | None = None,
        overlap_threshold: float | None = None,
        class_exponent: float = 1.0,
        mask_exponent: float = 1.0,
        split_min_area: int | None = None,
        split_connectivity: int = 2,
        output_stride: int = OUTPUT_STRIDE,
        enlarge: bool = True,
    ):
        self.is_mask_wise = overlap_threshold is not None
        thresholds = {
            "class_threshold": class_threshold,
            "stuff_class_threshold": stuff_class_threshold,
            "pixel_threshold": pixel_threshold,
            "overlap_threshold": overlap_threshold,
            "class_exponent": class_exponent if self.is_mask_wise else None,
            "mask_exponent": mask_exponent if self.is_mask_wise else None,
            "thing_area_limit": thing_area_limit,
            "stuff_area_limit": stuff_area_limit,
            "split_min_area": split_min_area,
            "split_connectivity": None if split_min_area is None else split_connectivity,
        }
        self.thresholds = {name: value for name, value in thresholds.items() if value is not None}
        for name, value in self.thresholds.items():
            if not 0 <= value <= (1 if name.endswith("_threshold") else math.inf):
                raise ValueError(f"{name} {value} must be at least 0" + ", at most 1" * name.endswith("_threshold"))
        if self.is_mask_wise and pixel_threshold < 1 / 3:
            raise ValueError(f"pixel_threshold {pixel_threshold} must be at least 1/3 in mask-wise post-processing")
        if split_connectivity not in (1, 2):
            raise ValueError(f"split_connectivity {split_connectivity} must be 1 or 2")
        self.may_renumber = self.is_mask_wise or split_min_area is not None
        self.dataset_info = dataset_info
        self.output_stride = output_stride
        self.enlarge = enlarge
        self.void = dataset_info.void
        self._class_ids = np.array(dataset_info.class_order, np.int32)

    @property
    def arguments(self) -> dict[str, float]:
        """The arguments beside the class table, by name, but for defaults that earlier versions did not have."""
        stride = {} if self.output_stride == OUTPUT_STRIDE else {"output_stride": self.output_stride}
        return {**self.thresholds, **stride, **({} if self.enlarge else {"enlarge": False})}

    def __call__(self, outputs: PanopticOutputs, visible: tf.Tensor | None = None) -> PanopticPrediction:
        """The maps of a batch at the size of the network's input, computed one image at a time.

        Args:
          outputs: Outputs of the model; `mask_logits` have a known shape.
          visible: int32 [batch, 2], (height, width) of each image in the network's input. The rest is padding, whose
            pixels are zero in all maps. None: there is no padding.

        Raises:
          ValueError: The outputs do not fit the class table.
        """

        def read(image):
            mask_logits, class_logits, image_size = image
            outputs = PanopticOutputs(None, mask_logits[tf.newaxis], class_logits[tf.newaxis], semantic_logits=None)
            slot_map = self.slot_map(outputs, None if visible is None else tf.unstack(image_size))
            found = PanopticPrediction(
                panoptic=self.label_map(slot_map),
                instance_score=slot_map.confidence,
                semantic_score=tf.gather(slot_map.class_confidence, slot_map.slot),
                slot=slot_map.slot,
                void_reason=slot_map.void_reason,
            )
            margins = [[0, side - shown] for side, shown in zip(size, tf.unstack(image_size))]
            return tf.nest.map_structure(lambda field: tf.ensure_shape(tf.pad(field, margins), size), found)

        size = self.input_size(outputs.mask_logits)
        sizes = tf.tile([size], [tf.shape(outputs.mask_logits)[0], 1]) if visible is None else visible
        return tf.map_fn(
            read,
            (outputs.mask_logits, outputs.class_logits, sizes),
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
        is_thing = class_index < len(self.dataset_info.thing_ids)
        confidence = tf.reduce_max(probability, axis=-1)
        threshold = self.thresholds["class_threshold"]
        kept = confidence >= tf.where(is_thing, threshold, self.thresholds.get("stuff_class_threshold", threshold))
        dropped = tf.where(class_probability[:, -1] > confidence, _NO_OBJECT, _CLASS)
        slots = _Slots(class_index, is_thing, confidence, void_reason=tf.where(kept, 0, dropped))
        own = self._mask_wise if self.is_mask_wise else self._pixel_wise
        owners = own(tf.cast(outputs.mask_logits, tf.float32)[0], slots, visible)
        area_reason = tf.where(self._is_large(slots, owners.area), 0, tf.where(is_thing, _THING_AREA, _STUFF_AREA))
        class_id = tf.gather(self._class_ids, class_index)
        instance = tf.where(is_thing, owners.instance, 0)
        area_reason = tf.gather(area_reason, owners.slot)
        reason = tf.where(owners.void_reason == 0, area_reason, owners.void_reason)
        segment = owners.slot
        if "split_min_area" in self.thresholds:
            num_slots, most = instance.shape[0], self._most_segments(instance.shape[0])
            parts = split_things(
                owners.slot,
                (reason == 0) & tf.gather(is_thing, owners.slot),
                num_slots=num_slots,
                min_area=self.thresholds["split_min_area"],
                connectivity=self.thresholds["split_connectivity"],
                max_segments=most,
            )
            segment, reason = parts.segment, tf.where(parts.dropped, _PART_AREA, reason)
            class_id = tf.gather(class_id, parts.slot)
            instance = tf.concat([instance, tf.range(num_slots + 1, most + 1)], axis=0)
        return SlotMap(
            slot=owners.slot,
            void_reason=reason,
            confidence=owners.confidence,
            segment=segment,
            label=panoptic_ids.encode_label(class_id, instance, self.dataset_info.label_divisor),
            class_id=class_id,
            class_confidence=confidence,
        )

    def _pixel_wise(self, mask_logits: tf.Tensor, slots: _Slots, visible: tuple | None) -> _Owners:
        competition = MaskCompetition(mask_logits, slots.void_reason == 0, self.output_stride)
        full_height, full_width = self.input_size(mask_logits)
        num_slots = mask_logits.shape[-1]

        def reasons_of(winners: Winners):
            reason = tf.gather(slots.void_reason, winners.slot)
            return tf.where((reason == 0) & ~(winners.confidence > self.thresholds["pixel_threshold"]), _PIXEL, reason)

        def area_in(height, width, top, left):
            winners = competition.winners(height, width, top, left)
            return _count(winners.slot, reasons_of(winners) == 0, num_slots)

        def area_with_padding():
            return (
                area
                + area_in(full_height - height, full_width, height, 0)
                + area_in(height, full_width - width, 0, width)
            )

        height, width = visible or (full_height, full_width)
        winners = competition.winners(height, width)
        reason = reasons_of(winners)
        area = _count(winners.slot, reason == 0, num_slots)
        if visible:
            # Pixels in the padding count too. They matter only for segments that are too small without them.
            undecided = tf.reduce_any((area > 0) & ~self._is_large(slots, area))
            area = tf.cond(undecided, area_with_padding, lambda: area)
        return _Owners(winners.slot, reason, winners.confidence, area, instance=tf.range(1, num_slots + 1))

    def _mask_wise(self, mask_logits: tf.Tensor, slots: _Slots, visible: tuple | None) -> _Owners:
        pasted = paste_masks(
            mask_logits,
            slots.confidence,
            slots.void_reason == 0,
            stride=self.output_stride,
            **{name: self.thresholds[name] for name in _MASK_WISE},
        )
        height, width = visible or self.input_size(mask_logits)
        slot, confidence = pasted.slot[:height, :width], pasted.confidence[:height, :width]
        overlapped = (slots.void_reason == 0) & (pasted.area == 0)
        reason = tf.gather(tf.where(overlapped, _OVERLAP, slots.void_reason), slot)
        unsure = ((reason == 0) | (reason == _OVERLAP)) & ~(confidence > self.thresholds["pixel_threshold"])
        return _Owners(slot, tf.where(unsure, _PIXEL, reason), confidence, pasted.area, instance=pasted.rank + 1)

    def label_map(self, slot_map: SlotMap) -> tf.Tensor:
        """int32 [h, w], class id * label_divisor + instance."""
        return tf.where(slot_map.void_reason == 0, tf.gather(slot_map.label, slot_map.segment), self.void)

    def input_size(self, mask_logits: tf.Tensor) -> tuple[int, int]:
        """(height, width) of the network's input for [..., height / stride, width / stride, slots] of known size."""
        return tuple(self.output_stride * (side - 1) + 1 for side in mask_logits.shape[-3:-1])

    def _most_segments(self, num_slots: int) -> int:
        """Number of segments of an image whose things are split, as far as labels can number them."""
        return max(num_slots, min(self.dataset_info.label_divisor - 1, _MOST_SEGMENTS))

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

    def _is_large(self, slots: _Slots, area: tf.Tensor) -> tf.Tensor:
        """bool [slots], whether the segments of slots with these areas, int32 [slots], reach their limit."""
        same_class = slots.class_index[:, tf.newaxis] == slots.class_index
        class_area = tf.reduce_sum(tf.where(same_class, area, 0), axis=-1)
        limit = self.thresholds
        return tf.where(slots.is_thing, area >= limit["thing_area_limit"], class_area >= limit["stuff_area_limit"])


def _count(slot: tf.Tensor, counted: tf.Tensor, num_slots: int) -> tf.Tensor:
    """int32 [slots], number of pixels of each slot in int32 [h, w] where bool [h, w] is set."""
    slot = tf.reshape(tf.where(counted, slot, -1), [-1])
    return tf.math.unsorted_segment_sum(tf.ones_like(slot), slot, num_slots)
