"""The terms of one output of the model, the final or an auxiliary one, under a matching."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from maxdl_tf.losses import assignment
from maxdl_tf.losses.assignment import Assign
from maxdl_tf.losses.contrastive import pixel_contrastive_loss, sample_pixels
from maxdl_tf.losses.matching import Matching, match
from maxdl_tf.losses.target_masks import TargetMasks, flatten_pixels, sum_over_rows
from maxdl_tf.losses.terms import class_loss, dice_loss, instance_discrimination_loss, mask_id_loss
from maxdl_tf.structs import AuxiliaryOutputs, PanopticOutputs

# Shape, int32 [2] -> float32 numbers in [0, 1) of this shape.
Uniform = Callable[[tf.Tensor], tf.Tensor]

_SIMILARITY = {"product": tf.multiply, "sum": tf.add}


class FlatOutput(NamedTuple):
    """An output of the model in the form in which the terms read it; all float32.

    Attributes:
      pixel_feature: [batch, pixels, channels].
      mask_logits: [batch, pixels, slots].
      class_logits: [batch, slots, classes + 1].
      slot_probability: [batch, pixels, slots], softmax of the mask logits over slots.
      overlap: [batch, rows, slots], sum of the slot's mask over the row's pixels.
    """

    pixel_feature: tf.Tensor
    mask_logits: tf.Tensor
    class_logits: tf.Tensor
    slot_probability: tf.Tensor
    overlap: tf.Tensor

    @classmethod
    def of(cls, output: PanopticOutputs | AuxiliaryOutputs, masks: TargetMasks) -> FlatOutput:
        mask_logits = flatten_pixels(tf.cast(output.mask_logits, tf.float32))
        slot_probability = tf.nn.softmax(mask_logits)
        return cls(
            pixel_feature=flatten_pixels(tf.cast(output.pixel_feature, tf.float32)),
            mask_logits=mask_logits,
            class_logits=tf.cast(output.class_logits, tf.float32),
            slot_probability=slot_probability,
            overlap=sum_over_rows(slot_probability, masks.row_of_pixel, masks.area.shape[1]),
        )


class OutputTerms:
    """The losses of masks, classes and pixel features of an output. A term of weight 0 is not computed.

    Args:
      pq_style_weight: Weight of both terms of the PQ-style loss.
      mask_id_weight: Weight of the mask-id cross entropy.
      instance_discrimination_weight: Weight of the instance discrimination loss.
      pixel_contrastive_weight: Weight of the pixel-contrastive loss, which kMaX-DeepLab has in place of instance
        discrimination.
      pixel_contrastive_samples: Number of pixels that the pixel-contrastive loss draws from an image. A
        smaller image gives all.
      pixel_contrastive_area_temperature: Exponent of the preference for small masks; see `sample_pixels`.
      temperature: Temperature of the instance discrimination and the pixel-contrastive loss.
      positive_weight: Share of matched slots in the PQ-style loss, the paper's alpha, 0..1.
      pq_style: "product" matches by class probability x Dice and weights each of the two by the other in the loss
        (paper section 3.2). "sum" matches by their sum and weights neither, as in the first row of the paper's loss
        ablation.
      negatives: Whether slots without a mask are taught to be void.
      zeros_count: Whether means over pixels and slots count those whose loss is exactly 0; False follows DeepLab2. See
        `terms.mean_of_counted`.
      assign: Solver of the assignment of masks to slots; see `assignment.Assign`.

    Attributes:
      names: Names of the terms whose weight is not 0.
      samples: Number of pixels to draw; 0 if the pixel-contrastive loss is off.

    Raises:
      ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        *,
        pq_style_weight: float = 3.0,
        mask_id_weight: float = 0.3,
        instance_discrimination_weight: float = 1.0,
        pixel_contrastive_weight: float = 0.0,
        pixel_contrastive_samples: int = 4096,
        pixel_contrastive_area_temperature: float = 1.5,
        temperature: float = 0.3,
        positive_weight: float = 0.75,
        pq_style: str = "product",
        negatives: bool = True,
        zeros_count: bool = True,
        assign: Assign = assignment.assign,
    ):
        weights = {
            "pq_style": pq_style_weight,
            "mask_id": mask_id_weight,
            "instance_discrimination": instance_discrimination_weight,
            "pixel_contrastive": pixel_contrastive_weight,
        }
        for name, weight in weights.items():
            check_weight(f"{name}_weight", weight)
        if not 0 <= positive_weight <= 1:
            raise ValueError(f"positive_weight {positive_weight} must be in 0..1; the paper has 0.75")
        if not temperature > 0:
            raise ValueError(f"temperature {temperature} must be greater than 0; the paper has 0.3")
        if not pixel_contrastive_area_temperature >= 0:
            raise ValueError(
                f"pixel_contrastive_area_temperature {pixel_contrastive_area_temperature} must be at least 0; "
                "kMaX-DeepLab has 1.5 on COCO"
            )
        if pixel_contrastive_samples < 1:
            raise ValueError(f"pixel_contrastive_samples {pixel_contrastive_samples} must be at least 1")
        if pq_style not in _SIMILARITY:
            raise ValueError(f"pq_style {pq_style!r} must be one of {', '.join(_SIMILARITY)}")
        self._pq_style_weight = pq_style_weight
        self._mask_id_weight = mask_id_weight
        self._instance_discrimination_weight = instance_discrimination_weight
        self._pixel_contrastive_weight = pixel_contrastive_weight
        self._area_temperature = pixel_contrastive_area_temperature
        self._temperature = temperature
        self._positive_weight = positive_weight
        self._pq_style = pq_style
        self._negatives = negatives
        self._zeros_count = zeros_count
        self._assign = assign
        self.samples = pixel_contrastive_samples if pixel_contrastive_weight else 0
        terms = {"pq_style": ("pq_style_dice", "pq_style_class")}
        self.names = tuple(term for name, weight in weights.items() if weight for term in terms.get(name, (name,)))

    def match(self, output: FlatOutput, masks: TargetMasks) -> Matching | None:
        """The matching by an output; None if no term needs it."""
        if not self._pq_style_weight and not self._mask_id_weight:
            return None
        similarity = _SIMILARITY[self._pq_style]
        return match(masks, output.overlap, output.slot_probability, output.class_logits, self._assign, similarity)

    def __call__(
        self, output: FlatOutput, masks: TargetMasks, matching: Matching | None, uniform: Uniform = tf.random.uniform
    ) -> dict[str, tf.Tensor]:
        """The terms under a matching, whose weights of masks and slots are used as they are.

        Args:
          output: The output.
          masks: Ground truth.
          matching: From `match` of the final output.
          uniform: Source of random numbers.

        Returns:
          The terms in `names`, times their weights, and metrics, by the fields of `PanopticLosses`; float32 [batch].
        """
        terms = {}
        if self._pq_style_weight:
            weighted = self._pq_style == "product"
            dice = dice_loss(masks, matching, output.overlap, output.slot_probability, weighted)
            terms["pq_style_dice"] = self._pq_style_weight * self._positive_weight * dice
            terms["pq_style_class"] = self._pq_style_weight * class_loss(
                masks,
                matching,
                output.class_logits,
                self._positive_weight,
                weighted,
                self._negatives,
                self._zeros_count,
            )
        if self._mask_id_weight:
            loss, terms["mask_id_accuracy"] = mask_id_loss(masks, matching, output.mask_logits, self._zeros_count)
            terms["mask_id"] = self._mask_id_weight * loss
        if self._instance_discrimination_weight:
            loss, terms["instance_discrimination_accuracy"] = instance_discrimination_loss(
                masks, output.pixel_feature, self._temperature, self._zeros_count
            )
            terms["instance_discrimination"] = self._instance_discrimination_weight * loss
        if self._pixel_contrastive_weight:
            numbers = uniform(tf.shape(masks.row_of_pixel))
            sample = sample_pixels(masks, numbers, self.samples, self._area_temperature)
            loss = pixel_contrastive_loss(masks, output.pixel_feature, sample, self._temperature, self._zeros_count)
            terms["pixel_contrastive"] = self._pixel_contrastive_weight * loss
        return terms


def check_weight(name: str, weight: float) -> None:
    """Raises ValueError if a weight is negative or NaN."""
    if not weight >= 0:
        raise ValueError(f"{name} {weight} must be at least 0; 0 switches the term off")
