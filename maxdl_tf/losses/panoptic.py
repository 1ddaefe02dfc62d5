"""The training loss: the PQ-style loss and those beside it, of the model's final and auxiliary outputs (section 3)."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.losses.output_terms import FlatOutput, OutputTerms, Uniform, check_weight
from maxdl_tf.losses.target_masks import TargetMaskBuilder, flatten_pixels
from maxdl_tf.losses.terms import semantic_loss, weighted_mean
from maxdl_tf.structs import OUTPUT_STRIDE, Metric, PanopticOutputs, PanopticTargets

_METRICS = (
    Metric("matched_class_probability", "matching", weight="has_masks"),
    Metric("matched_dice", "matching", weight="has_masks"),
    Metric("mask_id_accuracy", "matching", weight="has_masks"),
    Metric("instance_discrimination_accuracy", "matching", weight="has_things"),
)


class PanopticLosses(NamedTuple):
    """Losses of each image and the metrics that the paper plots over training; all float32 [batch].

    A term whose weight is 0 is not computed: it and its metrics are 0. The metrics of matched masks need the PQ-style
    loss or the mask-id loss, and describe the final output.

    Attributes:
      total: Sum of all terms below.
      pq_style_dice: Dice term of the PQ-style loss, times its weight.
      pq_style_class: Class term of the PQ-style loss, times its weight.
      mask_id: Mask-id cross entropy, times its weight.
      instance_discrimination: Instance discrimination loss, times its weight.
      pixel_contrastive: Pixel-contrastive loss, times its weight.
      semantic: Cross entropy of the auxiliary semantic branch, times its weight.
      auxiliary_pq_style_dice: Sum of this term over the auxiliary outputs, 0 without any; the next four alike.
      auxiliary_pq_style_class: See above.
      auxiliary_mask_id: See above.
      auxiliary_instance_discrimination: See above.
      auxiliary_pixel_contrastive: See above.
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
    pixel_contrastive: tf.Tensor
    semantic: tf.Tensor
    auxiliary_pq_style_dice: tf.Tensor
    auxiliary_pq_style_class: tf.Tensor
    auxiliary_mask_id: tf.Tensor
    auxiliary_instance_discrimination: tf.Tensor
    auxiliary_pixel_contrastive: tf.Tensor
    matched_class_probability: tf.Tensor
    matched_dice: tf.Tensor
    mask_id_accuracy: tf.Tensor
    instance_discrimination_accuracy: tf.Tensor
    has_masks: tf.Tensor
    has_things: tf.Tensor


class PanopticLoss:
    """Compares `PanopticOutputs` with `PanopticTargets` (architecture section 6).

    The final output decides the matching of masks with slots. Auxiliary outputs have the same terms at the same
    weights under this matching, except for the semantic term.

    Everything is computed in float32, whatever the type of the outputs. A NaN in the outputs gives a NaN.

    Args:
      dataset_info: Class table.
      semantic_weight: Weight of the semantic cross entropy; 0 for models without the branch.
      semantic_top_share: Share of the pixels of each image, those with the largest losses, in the semantic loss.
      output_stride: Pixels of the labels per position of the mask logits, along height and width.
      semantic_stride: The same of the semantic logits.
      auxiliary_outputs: Whether the model has auxiliary outputs in training.
      zeros_count: Whether means over pixels and slots count those whose loss is exactly 0; False follows DeepLab2. See
        `terms.mean_of_counted`.
      uniform: Source of the random numbers of calls without a seed; called for the final output first, then for each
        auxiliary one.
      **output_terms: Arguments of `OutputTerms`.

    Attributes:
      terms: Fields of `PanopticLosses` that are losses whose weight is not 0, the total first.
      metrics: Fields that get a training curve.
      needs_seed: Whether it draws random numbers.
      target_masks: Builder of the `TargetMasks` of targets.
      output_terms: Function of an output to its terms.

    Raises:
      ValueError: If a weight is negative, all weights are 0, or a number is out of its range.
    """

    def __init__(
        self,
        dataset_info: DatasetInfo,
        *,
        semantic_weight: float = 1.0,
        semantic_top_share: float = 1.0,
        output_stride: int = OUTPUT_STRIDE,
        semantic_stride: int = OUTPUT_STRIDE,
        auxiliary_outputs: bool = False,
        zeros_count: bool = True,
        uniform: Uniform = tf.random.uniform,
        **output_terms: Any,
    ):
        check_weight("semantic_weight", semantic_weight)
        if not 0 < semantic_top_share <= 1:
            raise ValueError(
                f"semantic_top_share {semantic_top_share} must be above 0 and at most 1, which is all pixels"
            )
        self.output_terms = OutputTerms(zeros_count=zeros_count, **output_terms)
        if not self.output_terms.names and not semantic_weight:
            raise ValueError("the weights of all terms are 0; set at least one, or there is nothing to learn")
        self._semantic_weight = semantic_weight
        self._semantic_top_share = semantic_top_share
        self._output_stride = output_stride
        self._semantic_stride = semantic_stride
        self._auxiliary_outputs = auxiliary_outputs
        self._zeros_count = zeros_count
        self._uniform = uniform
        self._ignore_label = dataset_info.ignore_label
        self._num_classes = len(dataset_info.class_order)
        self._num_semantic_channels = dataset_info.num_semantic_channels
        self.target_masks = TargetMaskBuilder(dataset_info, output_stride)
        self.needs_seed = self.output_terms.samples > 0
        auxiliary = [f"auxiliary_{name}" for name in self.output_terms.names if auxiliary_outputs]
        self.metrics = tuple(
            metric
            for metric in _METRICS
            if metric.weight == "has_masks" or "instance_discrimination" in self.output_terms.names
        )
        self.terms = ("total", *self.output_terms.names, *(["semantic"] if semantic_weight else []), *auxiliary)

    def __call__(
        self, outputs: PanopticOutputs, targets: PanopticTargets, seed: tf.Tensor | None = None
    ) -> PanopticLosses:
        """The losses of a batch.

        Args:
          outputs: Outputs of the model.
          targets: Ground truth.
          seed: int32 [2], seed of the random numbers. None: they come from `uniform`.

        Raises:
          ValueError: If the shapes of outputs, targets and class table do not fit each other, there are unexpected
            auxiliary outputs, or `semantic_weight` is not 0 and there are no semantic logits.
        """
        self._check(outputs, targets)
        masks = self.target_masks(targets)
        every_output = [FlatOutput.of(output, masks) for output in (outputs, *outputs.auxiliary)]
        matching = self.output_terms.match(every_output[0], masks)
        of_outputs: list[dict[str, tf.Tensor]] = []
        for number, output in enumerate(every_output):
            # One after the other, because each takes much memory for its pairs of pixels.
            before = [of_outputs[-1]["pixel_contrastive"]] if of_outputs and self.needs_seed else []
            with tf.control_dependencies(before):
                of_outputs.append(self.output_terms(output, masks, matching, self._uniform_of(number, seed)))
        final, *auxiliary = of_outputs

        terms = {**dict.fromkeys(PanopticLosses._fields, tf.zeros_like(masks.area[:, 0])), **final}
        if matching:
            terms["matched_class_probability"] = weighted_mean(matching.class_probability, matching.has_slot)
            terms["matched_dice"] = weighted_mean(matching.dice, matching.has_slot)
        if self._semantic_weight:
            loss = semantic_loss(
                targets,
                flatten_pixels(tf.cast(outputs.semantic_logits, tf.float32)),
                self._ignore_label,
                self._semantic_stride,
                self._semantic_top_share,
                self._zeros_count,
            )
            terms["semantic"] = self._semantic_weight * loss
        if auxiliary:
            for name in self.output_terms.names:
                terms[f"auxiliary_{name}"] = tf.add_n([output[name] for output in auxiliary])
        terms["has_masks"] = tf.reduce_max(masks.in_row, axis=1)
        terms["has_things"] = tf.reduce_max(masks.is_thing, axis=1)
        terms["total"] = tf.add_n([terms[name] for name in self.terms if name != "total"])
        return PanopticLosses(**terms)

    def _uniform_of(self, number: int, seed: tf.Tensor | None) -> Uniform:
        """The source of the random numbers of an output, which has a draw of its own."""
        if seed is None:
            return self._uniform
        own_seed = tf.stack([seed[0], seed[1] + number])
        return lambda shape: tf.random.stateless_uniform(shape, own_seed)

    def _check(self, outputs: PanopticOutputs, targets: PanopticTargets) -> None:
        if outputs.auxiliary and not self._auxiliary_outputs:
            raise ValueError(
                f"there are {len(outputs.auxiliary)} auxiliary outputs; build the loss with auxiliary_outputs=True"
            )
        channels = outputs.class_logits.shape[-1]
        if channels != self._num_classes + 1:
            raise ValueError(
                f"class_logits have {channels} channels; the {self._num_classes} classes of the data set and void need "
                f"{self._num_classes + 1}; build the model with num_classes={self._num_classes}"
            )
        for output in (outputs, *outputs.auxiliary):
            _check_size("mask_logits", output.mask_logits, targets.semantic, self._output_stride)
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
        _check_size("semantic_logits", outputs.semantic_logits, targets.semantic, self._semantic_stride)


def _check_size(name: str, logits: tf.Tensor, labels: tf.Tensor, stride: int) -> None:
    for got, want in zip(logits.shape[1:3], labels.shape[1:3]):
        if got is not None and want is not None and got != (want - 1) // stride + 1:
            raise ValueError(
                f"{name} {logits.shape} are not the size of labels {labels.shape} at stride {stride}; give the model "
                "images of the labels' size, and the loss the model's strides"
            )
