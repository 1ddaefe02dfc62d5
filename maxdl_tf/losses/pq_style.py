"""The PQ-style loss: a Dice term for masks, a class term for slots."""

from __future__ import annotations

import tensorflow as tf

from maxdl_tf.losses.matching import Matching
from maxdl_tf.losses.reduction import mean_over_nonzeros
from maxdl_tf.losses.target_masks import TargetMasks

# A pair that is still far from right keeps this much weight, or nothing would ever pull at it.
_LEAST_WEIGHT = 1e-5


def dice_term(
    masks: TargetMasks, matching: Matching, overlap: tf.Tensor, slot_probability: tf.Tensor, weighted: bool = True
) -> tf.Tensor:
    """Sum over matched pairs of (class probability, held fixed) x (1 - Dice), divided by the slots.

    The quotient puts it on the scale of the class term, which is a mean over slots. Rows without a
    slot add nothing.

    Args:
      masks: The ground truth.
      matching: Of `masks` with the slots.
      overlap: float32 [batch, rows, slots], sum of the slot's mask over the row's pixels.
      slot_probability: float32 [batch, pixels, slots], softmax of the mask logits over slots.
      weighted: By the class probability; if not, all pairs count alike.

    Returns:
      float32 [batch], times no loss weight.
    """
    slot_area = tf.einsum("bpn,bp->bn", slot_probability, masks.in_row)
    overlap = tf.reduce_sum(matching.matched * overlap, axis=2)
    # Smoothed by one pixel, so that tiny masks have no wild gradients.
    dice = (2.0 * overlap + 1.0) / (matching.slots_to_rows(slot_area) + masks.area + 1.0)
    weight = matching.has_slot
    if weighted:
        weight *= tf.maximum(matching.class_probability, _LEAST_WEIGHT)
    num_slots = slot_probability.shape[-1]
    return tf.reduce_sum(weight * (1.0 - dice), axis=1) / num_slots


def class_term(
    masks: TargetMasks,
    matching: Matching,
    slot_probability: tf.Tensor,
    class_logits: tf.Tensor,
    positive_weight: float,
    weighted: bool = True,
    negatives: bool = True,
) -> tf.Tensor:
    """Mean over slots of the weighted cross entropy of their classes.

    The target of a matched slot is the class of its row, with weight `positive_weight` x Dice; that
    of another slot is void, with weight (1 - `positive_weight`) x the share of the slot's mask that
    lies on void pixels. Dice and share are held fixed.

    Args:
      masks: The ground truth.
      matching: Of `masks` with the slots.
      slot_probability: float32 [batch, pixels, slots], softmax of the mask logits over slots.
      class_logits: float32 [batch, slots, classes + 1], void last.
      positive_weight: The paper's alpha, 0.75.
      weighted: Matched slots by their Dice; if not, all of them count alike.
      negatives: Whether slots without a row are taught void; if not, they count as slots without loss.

    Returns:
      float32 [batch], times no loss weight.
    """
    matched = matching.is_matched > 0
    quality = tf.maximum(matching.rows_to_slots(matching.dice), _LEAST_WEIGHT) if weighted else matching.is_matched
    void_share = _void_share(masks, tf.stop_gradient(slot_probability)) if negatives else tf.zeros_like(quality)
    weight = tf.where(matched, positive_weight * quality, (1.0 - positive_weight) * void_share)
    void_index = class_logits.shape[-1] - 1
    row_class = matching.rows_to_slots(tf.cast(masks.class_index, tf.float32))
    target = tf.where(matched, tf.cast(tf.round(row_class), tf.int32), void_index)
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=target, logits=class_logits)
    if not negatives:
        return tf.reduce_mean(weight * cross_entropy, axis=1)
    return mean_over_nonzeros(weight * cross_entropy)


def _void_share(masks: TargetMasks, slot_probability: tf.Tensor) -> tf.Tensor:
    """float32 [batch, slots], the share of each slot's mask that lies on void pixels, as far as it counts."""
    void_mass = tf.einsum("bpn,bp->bn", slot_probability, 1.0 - masks.non_void)
    return tf.maximum(void_mass / (tf.reduce_sum(slot_probability, axis=1) + 1e-5), _LEAST_WEIGHT)
