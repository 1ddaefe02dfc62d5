"""What crosses a border between parts of the package has a name, and it is here."""

from __future__ import annotations

from typing import Any, NamedTuple

Tensor = Any  # A tf.Tensor; TensorFlow is not imported here so that data_gen's workers stay light.
OUTPUT_STRIDE = 4  # Pixels of the input for each position of mask logits and pixel features, in both directions.


class PanopticTargets(NamedTuple):
    """Ground truth of a batch at the size of the crop (architecture section 5).

    Attributes:
      semantic: int32 [batch, height, width], class ids; ignore_label where void. Crowd pixels keep
        their class.
      semantic_weight: float32 [batch, height, width], weight of each pixel in the semantic loss.
      thing_id_mask: int32 [batch, height, width], 0.. for the things of an image in raster order of
        their first pixel, -1 on stuff, crowd and void.
      thing_id_class: int32 [batch, max_things], class id of each of them, -1 where there is none.
    """

    semantic: Tensor
    semantic_weight: Tensor
    thing_id_mask: Tensor
    thing_id_class: Tensor


class PanopticOutputs(NamedTuple):
    """What the model says of a batch (paper section 3.2, figure 3).

    Attributes:
      pixel_feature: float [batch, height/4, width/4, channels], L2-normalised.
      mask_logits: float [batch, height/4, width/4, slots]; a softmax over slots gives the masks.
      class_logits: float [batch, slots, classes + 1], in `DatasetInfo.class_order`, void last.
      semantic_logits: float [batch, height/4, width/4, semantic channels] of the auxiliary branch;
        None where the model was built without it.
      mask_embedding: float [batch, slots, channels]; pixel features times these, scaled and shifted, are the mask
        logits. For pictures; None where nobody looks.
    """

    pixel_feature: Tensor
    mask_logits: Tensor
    class_logits: Tensor
    semantic_logits: Tensor | None
    mask_embedding: Tensor | None = None


class Figure(NamedTuple):
    """A curve of training beside the losses: a field of the tuple that a loss gives.

    Attributes:
      name: The field, [batch].
      group: Under what TensorBoard shows it.
      weight: The field with which images weigh in its mean; None: all weigh the same.
    """

    name: str
    group: str
    weight: str | None = None


class PanopticPrediction(NamedTuple):
    """Post-processed maps of a batch, at the size of the network's input (architecture section 9).

    Attributes:
      panoptic: int32 [batch, height, width], class id * label_divisor + instance; instance is the
        slot's number from 1 for things, 0 for stuff.
      instance_score: float32 [batch, height, width], the pixel's confidence in its slot; meaningless where void.
      semantic_score: float32 [batch, height, width], the slot's confidence in its class; meaningless where void.
    """

    panoptic: Tensor
    instance_score: Tensor
    semantic_score: Tensor
