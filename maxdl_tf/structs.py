"""Named tuples that pass between the parts of the package."""

from __future__ import annotations

from typing import Any, NamedTuple

Tensor = Any  # A tf.Tensor; importing TensorFlow here would slow down the processes of the converters.
OUTPUT_STRIDE = 4  # Input pixels per position of the mask logits and pixel features along a side, by default.

# The rules of the post-processing that make a pixel void, in the order in which they apply.
# `overlap_threshold` is mask-wise post-processing's alone, and `split_min_area` that of things that are split.
VOID_REASONS = (
    "no_object",
    "class_threshold",
    "pixel_threshold",
    "overlap_threshold",
    "thing_area_limit",
    "stuff_area_limit",
    "split_min_area",
)


class PanopticTargets(NamedTuple):
    """Ground truth of a batch at the size of the crop (architecture section 5).

    Attributes:
      semantic: int32 [batch, height, width], class ids; ignore_label in void pixels. Crowd pixels keep their class.
      semantic_weight: float32 [batch, height, width], weight of each pixel in the semantic loss.
      thing_id_mask: int32 [batch, height, width], number of the thing, from 0, in raster order of the first pixel; -1
        in stuff, crowd and void pixels.
      thing_id_class: int32 [batch, max_things], class id of each thing; -1 behind the last thing.
    """

    semantic: Tensor
    semantic_weight: Tensor
    thing_id_mask: Tensor
    thing_id_class: Tensor


class AuxiliaryOutputs(NamedTuple):
    """Outputs of a layer inside the network, for losses of their own (kMaX-DeepLab, deep supervision).

    Attributes:
      pixel_feature: float [batch, height, width, channels]; in training resized to the size of the model's mask logits,
        after the normalization.
      mask_logits: float [batch, height, width, slots], resized alike.
      class_logits: float [batch, slots, classes + 1].
    """

    pixel_feature: Tensor
    mask_logits: Tensor
    class_logits: Tensor


class PanopticOutputs(NamedTuple):
    """Output of the model for a batch (paper section 3.3, figure 3).

    Attributes:
      pixel_feature: float [batch, height/stride, width/stride, channels], L2-normalized. The stride is 4, or 2
        (`PanopticNetwork.output_stride`).
      mask_logits: float [batch, height/stride, width/stride, slots]; the softmax over slots gives the masks.
      class_logits: float [batch, slots, classes + 1], in the order of `DatasetInfo.class_order`, void last.
      semantic_logits: float [batch, height/4, width/4, semantic channels], output of the auxiliary branch; None if the
        model has no such branch.
      mask_embedding: float [batch, slots, channels]; the mask logits are the product of pixel features and these,
        scaled and shifted. For pictures; None in other uses.
      auxiliary: Outputs of inner layers, in training only; empty if the model has none.
    """

    pixel_feature: Tensor
    mask_logits: Tensor
    class_logits: Tensor
    semantic_logits: Tensor | None
    mask_embedding: Tensor | None = None
    auxiliary: tuple[AuxiliaryOutputs, ...] = ()


class Metric(NamedTuple):
    """A training curve besides the losses: a field of the tuple that a loss returns.

    Attributes:
      name: Name of the field, [batch].
      group: Group of the curve in TensorBoard.
      weight: Name of the field with the weight of each image in the mean; None for equal weights.
    """

    name: str
    group: str
    weight: str | None = None


class PanopticPrediction(NamedTuple):
    """Post-processed maps of a batch at the size of the network's input (architecture section 9).

    Attributes:
      panoptic: int32 [batch, height, width], class id * label_divisor + instance; the instance of a thing is the
        number of its slot (mask-wise: its rank), from 1, or a further number for a part; that of stuff is 0.
      instance_score: float32 [batch, height, width], confidence of the pixel in its slot; undefined in void pixels.
      semantic_score: float32 [batch, height, width], confidence of the slot in its class; undefined in void pixels.
      slot: int32 [batch, height, width], number of the slot that owns the pixel, from 0. None if it is not computed.
      void_reason: int32 [batch, height, width], place in `VOID_REASONS`, from 1, of the rule that made the pixel void;
        0 in other pixels. None if it is not computed.
    """

    panoptic: Tensor
    instance_score: Tensor
    semantic_score: Tensor
    slot: Tensor | None = None
    void_reason: Tensor | None = None
