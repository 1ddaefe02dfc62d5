"""The terms of the panoptic loss (paper sections 3.2 and 3.4, architecture section 6).

In comments, rows are ground-truth masks (`TargetMasks`), slots are the model's masks, and pixels are at the output
stride of the model. Every term is float32 [batch] and not multiplied by its loss weight.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from maxdl_tf.losses.matching import Matching
from maxdl_tf.losses.target_masks import TargetMasks, at_stride, sum_over_rows
from maxdl_tf.structs import PanopticTargets

# Least weight of a slot or pair, without which those that are far off would never improve.
_LEAST_WEIGHT = 1e-5
_INVALID_LOGIT = -99999.0


def dice_loss(
    masks: TargetMasks, matching: Matching, overlap: tf.Tensor, slot_probability: tf.Tensor, weighted: bool = True
) -> tf.Tensor:
    """Sum over matched pairs of (class probability, held fixed) x (1 - Dice), divided by the number of slots.

    The division gives it the scale of the class loss, which is a mean over slots. Rows without a slot add nothing.

    Args:
      masks: Ground truth.
      matching: Matching of `masks` with the slots.
      overlap: float32 [batch, rows, slots], sum of the slot's mask over the row's pixels.
      slot_probability: float32 [batch, pixels, slots], softmax of the mask logits over slots.
      weighted: Whether pairs weigh by their class probability; if not, all weigh 1.
    """
    slot_area = tf.einsum("bpn,bp->bn", slot_probability, masks.in_row)  # [batch, slots]
    overlap = tf.reduce_sum(matching.matched * overlap, axis=2)  # [batch, rows]
    # Smoothed by one pixel, so that tiny masks have no extreme gradients.
    dice = (2.0 * overlap + 1.0) / (matching.slots_to_rows(slot_area) + masks.area + 1.0)  # [batch, rows]
    weight = matching.has_slot
    if weighted:
        weight *= tf.maximum(matching.class_probability, _LEAST_WEIGHT)
    num_slots = slot_probability.shape[-1]
    return tf.reduce_sum(weight * (1.0 - dice), axis=1) / num_slots


def class_loss(
    masks: TargetMasks,
    matching: Matching,
    class_logits: tf.Tensor,
    positive_weight: float,
    weighted: bool = True,
    negatives: bool = True,
    zeros_count: bool = True,
) -> tf.Tensor:
    """Mean over slots of the weighted cross entropy of their classes.

    The target of a matched slot is the class of its row, with weight `positive_weight` x Dice. The target of any other
    slot is void, with weight (1 - `positive_weight`) x the share of the slot's mask on void pixels. Dice and share are
    held fixed.

    Args:
      masks: Ground truth.
      matching: Matching of `masks` with the slots.
      class_logits: float32 [batch, slots, classes + 1], void last.
      positive_weight: The paper's alpha, 0.75.
      weighted: Whether matched slots weigh by their Dice; if not, all weigh 1.
      negatives: Whether slots without a row are taught void; if not, their loss is 0.
      zeros_count: See `mean_of_counted`.
    """
    matched = matching.is_matched > 0  # [batch, slots]
    quality = tf.maximum(matching.rows_to_slots(matching.dice), _LEAST_WEIGHT) if weighted else matching.is_matched
    void_share = tf.maximum(matching.void_share, _LEAST_WEIGHT) if negatives else tf.zeros_like(quality)
    weight = tf.where(matched, positive_weight * quality, (1.0 - positive_weight) * void_share)
    void_index = class_logits.shape[-1] - 1
    row_class = matching.rows_to_slots(tf.cast(masks.class_index, tf.float32))
    target = tf.where(matched, tf.cast(tf.round(row_class), tf.int32), void_index)  # [batch, slots]
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=target, logits=class_logits)
    if not negatives:
        return tf.reduce_mean(weight * cross_entropy, axis=1)
    return mean_of_counted(cross_entropy, weight, zeros_count)


def mask_id_loss(
    masks: TargetMasks, matching: Matching, mask_logits: tf.Tensor, zeros_count: bool = True
) -> tuple[tf.Tensor, tf.Tensor]:
    """Cross entropy over slots at the pixels of matched masks: each pixel should select its mask's slot.

    Pixels of a mask without a slot (more masks than slots) have no right answer. The loss leaves them out; the accuracy
    counts them as wrong.

    Args:
      masks: Ground truth.
      matching: Matching of `masks` with the slots.
      mask_logits: float32 [batch, pixels, slots].
      zeros_count: See `mean_of_counted`.

    Returns:
      (loss, accuracy). The accuracy is the share of the pixels of masks whose best slot is the matched one; 0 where the
      image has no mask.
    """
    row = tf.maximum(masks.row_of_pixel, 0)
    slot = tf.where(masks.row_of_pixel >= 0, tf.gather(matching.slot_of_row, row, batch_dims=1), -1)  # [batch, pixels]
    has_slot = tf.cast(slot >= 0, tf.float32)
    slot = tf.maximum(slot, 0)
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=slot, logits=mask_logits)

    target_logit = tf.gather(mask_logits, slot, batch_dims=2)
    correct = tf.cast(target_logit >= tf.reduce_max(mask_logits, axis=-1), tf.float32) * has_slot
    loss = mean_of_counted(cross_entropy, has_slot, zeros_count)
    return loss, weighted_mean(tf.stop_gradient(correct), masks.in_row)


def instance_discrimination_loss(
    masks: TargetMasks, pixel_feature: tf.Tensor, temperature: float, zeros_count: bool = True
) -> tuple[tf.Tensor, tf.Tensor]:
    """Cross entropy of thing pixels over the mean features of all masks of the image.

    The gradient flows through the means as well.

    Args:
      masks: Ground truth.
      pixel_feature: float32 [batch, pixels, channels], L2-normalized.
      temperature: Divisor of the cosine similarities, 0.3 in the paper.
      zeros_count: See `mean_of_counted`.

    Returns:
      (loss, accuracy). The accuracy is the share of thing pixels that are most similar to their own mask; 0 where the
      image has no thing.
    """
    num_rows = masks.area.shape[1]
    total = sum_over_rows(pixel_feature, masks.row_of_pixel, num_rows)
    mask_feature = tf.math.l2_normalize(total / tf.maximum(masks.area, 1.0)[..., tf.newaxis], axis=-1)
    logits = tf.matmul(pixel_feature, mask_feature / temperature, transpose_b=True)  # [batch, pixels, rows]
    logits += tf.where(masks.valid, 0.0, _INVALID_LOGIT)[:, tf.newaxis, :]

    row = tf.maximum(masks.row_of_pixel, 0)
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=row, logits=logits)
    own_logit = tf.gather(logits, row, batch_dims=2)  # [batch, pixels]
    correct = tf.cast(own_logit >= tf.reduce_max(logits, axis=-1), tf.float32)
    loss = mean_of_counted(cross_entropy, masks.is_thing, zeros_count)
    return loss, weighted_mean(tf.stop_gradient(correct), masks.is_thing)


def semantic_loss(
    targets: PanopticTargets,
    semantic_logits: tf.Tensor,
    ignore_label: int,
    stride: int,
    top_share: float = 1.0,
    zeros_count: bool = True,
) -> tf.Tensor:
    """Mean over labeled pixels of the weighted cross entropy of the auxiliary semantic branch.

    Args:
      targets: Ground truth.
      semantic_logits: float32 [batch, pixels, semantic channels]; a class's id is its channel.
      ignore_label: Id of pixels without loss.
      stride: Pixels of the labels per position of the logits, along height and width.
      top_share: Share of the pixels of each image, those with the largest losses, that the mean is over.
      zeros_count: See `mean_of_counted`.
    """
    label = at_stride(targets.semantic, stride)  # [batch, pixels]
    weight = at_stride(targets.semantic_weight, stride) * tf.cast(label != ignore_label, tf.float32)
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=label, logits=semantic_logits)
    if top_share < 1:
        pixels = tf.cast(tf.shape(label)[1], tf.float32)
        count = tf.maximum(tf.cast(tf.round(top_share * pixels), tf.int32), 1)
        # Labeled pixels of loss 0 come before unlabeled ones; a NaN comes first and so is not lost.
        order = tf.where(weight > 0, weight * cross_entropy, -1.0)
        order = tf.where(tf.math.is_nan(order), np.float32(np.inf), order)
        hardest = tf.math.top_k(order, count).indices
        cross_entropy, weight = (tf.gather(values, hardest, batch_dims=1) for values in (cross_entropy, weight))
    return mean_of_counted(cross_entropy, weight, zeros_count)


def mean_of_counted(losses: tf.Tensor, weights: tf.Tensor, zeros_count: bool = True) -> tf.Tensor:
    """The sum of each image's weighted losses, divided by the number of entries with a weight; 0 if there are none.

    Entries of weight 0 leave the denominator, so that an image that is mostly void counts as much as any other.

    Args:
      losses: float32 [batch, entries].
      weights: float32 [batch, entries].
      zeros_count: Whether the denominator counts entries whose loss is exactly 0. The reference does not count them.
        Rounding decides which small losses are 0, so its mean and gradient jump on nearly perfect predictions.

    Returns:
      float32 [batch].
    """
    values = weights * losses
    count = tf.math.count_nonzero(weights if zeros_count else values, axis=1, dtype=tf.float32)
    return tf.reduce_sum(values, axis=1) / tf.maximum(count, 1.0)


def weighted_mean(values: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Each image's mean of `values` with `weights`, both float32 [batch, entries]; 0 where all weights are 0."""
    return tf.math.divide_no_nan(tf.reduce_sum(values * weights, axis=1), tf.reduce_sum(weights, axis=1))
