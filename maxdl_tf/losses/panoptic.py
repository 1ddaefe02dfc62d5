"""The training loss of MaX-DeepLab: the PQ-style loss and three auxiliary losses (paper section 3)."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.losses import assignment
from maxdl_tf.losses.assignment import Assign
from maxdl_tf.losses.matching import match
from maxdl_tf.losses.target_masks import TargetMaskBuilder, TargetMasks, flatten_pixels, sum_over_rows
from maxdl_tf.losses.terms import (
    class_loss,
    dice_loss,
    instance_discrimination_loss,
    mask_id_loss,
    semantic_loss,
    weighted_mean,
)
from maxdl_tf.structs import OUTPUT_STRIDE, Metric, PanopticOutputs, PanopticTargets

_SIMILARITY = {"product": tf.multiply, "sum": tf.add}


class PanopticLosses(NamedTuple):
    """Losses of each image and the metrics that the paper plots over training; all float32 [batch].

    A term whose weight is 0 is not computed: it and its metrics are 0. The metrics of matched masks need the PQ-style
    loss or the mask-id loss.

    Attributes:
      total: Sum of the five terms below.
      pq_style_dice: Dice term of the PQ-style loss, times its weight.
      pq_style_class: Class term of the PQ-style loss, times its weight.
      mask_id: Mask-id cross entropy, times its weight.
      instance_discrimination: Instance discrimination loss, times its weight.
      semantic: Cross entropy of the auxiliary semantic branch, times its weight.
      matched_class_probability: Mean over matched masks of the probability of their class.
      matched_dice: Mean over matched masks of their Dice with their slot.
      mask_id_accuracy: Share of the pixels of masks whose best slot is the matched one.
      instance_discrimination_accuracy: Share of thing pixels that are most similar to their own mask.
      has_masks: 1 where the image has a mask, else 0: the weight of the image in means of the three metrics of masks,
        which are 0 where it is 0.
      has_things: The same for `instance_discrimination_accuracy`.
    """

    total: tf.Tensor
    pq_style_dice: tf.Tensor
    pq_style_class: tf.Tensor
    mask_id: tf.Tensor
    instance_discrimination: tf.Tensor
    semantic: tf.Tensor
    matched_class_probability: tf.Tensor
    matched_dice: tf.Tensor
    mask_id_accuracy: tf.Tensor
    instance_discrimination_accuracy: tf.Tensor
    has_masks: tf.Tensor
    has_things: tf.Tensor


class PanopticLoss:
    """Compares `PanopticOutputs` with `PanopticTargets` (architecture section 6).

    Everything is computed in float32, whatever the type of the outputs. A NaN in the outputs gives a NaN.

    Args:
      dataset_info: Class table.
      pq_style_weight: Weight of both terms of the PQ-style loss.
      instance_discrimination_weight: Weight of the instance discrimination loss.
      mask_id_weight: Weight of the mask-id cross entropy.
      semantic_weight: Weight of the semantic cross entropy; 0 for models without the branch.
      positive_weight: Share of matched slots in the PQ-style loss, the paper's alpha, 0..1.
      temperature: Temperature of the instance discrimination loss.
      pq_style: "product" matches by class probability x Dice and weights each of the two by the other in the loss
        (paper section 3.2). "sum" matches by their sum and weights neither, as in the first row of the paper's loss
        ablation.
      negatives: Whether slots without a mask are taught to be void.
      zeros_count: Whether means over pixels and slots count those whose loss is exactly 0; False follows DeepLab2. See
        `terms.mean_of_counted`.
      assign: Solver of the assignment of masks to slots; see `assignment.Assign`.

    Attributes:
      terms: Fields of `PanopticLosses` that are losses, the total first.
      metrics: Fields that get a training curve.
      target_masks: Builder of the `TargetMasks` of targets.

    Raises:
      ValueError: If a weight is negative, all weights are 0, or a number is out of its range.
    """

    terms = ("total", "pq_style_dice", "pq_style_class", "mask_id", "instance_discrimination", "semantic")
    metrics = (
        Metric("matched_class_probability", "matching", weight="has_masks"),
        Metric("matched_dice", "matching", weight="has_masks"),
        Metric("mask_id_accuracy", "matching", weight="has_masks"),
        Metric("instance_discrimination_accuracy", "matching", weight="has_things"),
    )

    def __init__(
        self,
        dataset_info: DatasetInfo,
        *,
        pq_style_weight: float = 3.0,
        instance_discrimination_weight: float = 1.0,
        mask_id_weight: float = 0.3,
        semantic_weight: float = 1.0,
        positive_weight: float = 0.75,
        temperature: float = 0.3,
        pq_style: str = "product",
        negatives: bool = True,
        zeros_count: bool = True,
        assign: Assign = assignment.assign,
    ):
        weights = {
            "pq_style_weight": pq_style_weight,
            "instance_discrimination_weight": instance_discrimination_weight,
            "mask_id_weight": mask_id_weight,
            "semantic_weight": semantic_weight,
        }
        for name, weight in weights.items():
            if not weight >= 0:
                raise ValueError(f"{name} {weight} must be at least 0; 0 switches the term off")
        if not any(weights.values()):
            raise ValueError(
                f"the weights {', '.join(weights)} are all 0; set at least one, or there is nothing to learn"
            )
        if not 0 <= positive_weight <= 1:
            raise ValueError(f"positive_weight {positive_weight} must be in 0..1; the paper has 0.75")
        if not temperature > 0:
            raise ValueError(f"temperature {temperature} must be greater than 0; the paper has 0.3")
        if pq_style not in _SIMILARITY:
            raise ValueError(f"pq_style {pq_style!r} must be one of {', '.join(_SIMILARITY)}")
        self._pq_style_weight = pq_style_weight
        self._instance_discrimination_weight = instance_discrimination_weight
        self._mask_id_weight = mask_id_weight
        self._semantic_weight = semantic_weight
        self._positive_weight = positive_weight
        self._temperature = temperature
        self._pq_style = pq_style
        self._negatives = negatives
        self._zeros_count = zeros_count
        self._assign = assign
        self._ignore_label = dataset_info.ignore_label
        self._num_classes = len(dataset_info.class_order)
        self._num_semantic_channels = dataset_info.num_semantic_channels
        self.target_masks = TargetMaskBuilder(dataset_info)

    def __call__(self, outputs: PanopticOutputs, targets: PanopticTargets) -> PanopticLosses:
        """The losses of a batch.

        Raises:
          ValueError: If the shapes of outputs, targets and class table do not fit each other, or `semantic_weight` is
            not 0 and there are no semantic logits.
        """
        self._check(outputs, targets)
        masks = self.target_masks(targets)
        off = tf.zeros_like(masks.area[:, 0])
        terms = dict.fromkeys(PanopticLosses._fields, off)

        if self._pq_style_weight or self._mask_id_weight:
            terms.update(self._matched_terms(outputs, masks))
        if self._instance_discrimination_weight:
            loss, accuracy = instance_discrimination_loss(
                masks, _flat(outputs.pixel_feature), self._temperature, self._zeros_count
            )
            terms["instance_discrimination"] = self._instance_discrimination_weight * loss
            terms["instance_discrimination_accuracy"] = accuracy
        if self._semantic_weight:
            loss = semantic_loss(targets, _flat(outputs.semantic_logits), self._ignore_label, self._zeros_count)
            terms["semantic"] = self._semantic_weight * loss

        terms["has_masks"] = tf.reduce_max(masks.in_row, axis=1)
        terms["has_things"] = tf.reduce_max(masks.is_thing, axis=1)
        terms["total"] = tf.add_n([terms[name] for name in self.terms if name != "total"])
        return PanopticLosses(**terms)

    def _matched_terms(self, outputs: PanopticOutputs, masks: TargetMasks) -> dict[str, tf.Tensor]:
        mask_logits = _flat(outputs.mask_logits)
        class_logits = tf.cast(outputs.class_logits, tf.float32)
        slot_probability = tf.nn.softmax(mask_logits)
        overlap = sum_over_rows(slot_probability, masks.row_of_pixel, masks.area.shape[1])
        similarity = _SIMILARITY[self._pq_style]
        matching = match(masks, overlap, slot_probability, class_logits, self._assign, similarity)
        terms = {
            "matched_class_probability": weighted_mean(matching.class_probability, matching.has_slot),
            "matched_dice": weighted_mean(matching.dice, matching.has_slot),
        }
        if self._pq_style_weight:
            weighted = self._pq_style == "product"
            dice = dice_loss(masks, matching, overlap, slot_probability, weighted)
            terms["pq_style_dice"] = self._pq_style_weight * self._positive_weight * dice
            terms["pq_style_class"] = self._pq_style_weight * class_loss(
                masks,
                matching,
                slot_probability,
                class_logits,
                self._positive_weight,
                weighted,
                self._negatives,
                self._zeros_count,
            )
        if self._mask_id_weight:
            loss, terms["mask_id_accuracy"] = mask_id_loss(masks, matching, mask_logits, self._zeros_count)
            terms["mask_id"] = self._mask_id_weight * loss
        return terms

    def _check(self, outputs: PanopticOutputs, targets: PanopticTargets) -> None:
        channels = outputs.class_logits.shape[-1]
        if channels != self._num_classes + 1:
            raise ValueError(
                f"class_logits have {channels} channels; the {self._num_classes} classes of the data set and void need "
                f"{self._num_classes + 1}; build the model with num_classes={self._num_classes}"
            )
        for got, want in zip(outputs.mask_logits.shape[1:3], targets.semantic.shape[1:3]):
            if got is not None and want is not None and got != (want - 1) // OUTPUT_STRIDE + 1:
                raise ValueError(
                    f"mask_logits {outputs.mask_logits.shape} are not a quarter of the labels' size "
                    f"{targets.semantic.shape}; give the model images of the labels' size, each side 16k+1"
                )
        if not self._semantic_weight:
            return
        if outputs.semantic_logits is None:
            raise ValueError(
                f"semantic_weight is {self._semantic_weight}, but the model has no semantic branch; set it to 0, or "
                "build the model with the branch"
            )
        channels = outputs.semantic_logits.shape[-1]
        if channels != self._num_semantic_channels:
            raise ValueError(
                f"semantic_logits have {channels} channels; the data set needs {self._num_semantic_channels}; build "
                f"the model with num_semantic_channels={self._num_semantic_channels}"
            )


def _flat(feature: tf.Tensor) -> tf.Tensor:
    return flatten_pixels(tf.cast(feature, tf.float32))
