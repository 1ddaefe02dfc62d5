"""Mask-id cross entropy: each pixel names the slot of its mask."""

from __future__ import annotations

import tensorflow as tf

from maxdl_tf.losses.matching import Matching
from maxdl_tf.losses.reduction import mean_over_nonzeros, weighted_mean
from maxdl_tf.losses.target_masks import TargetMasks


def mask_id_loss(masks: TargetMasks, matching: Matching, mask_logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Cross entropy over slots at the pixels of masks that have a slot.

    Pixels of a mask that got none (more masks than slots) have no right answer and are left out of
    the loss; in the accuracy they count as wrong.

    Args:
      masks: The ground truth.
      matching: Of `masks` with the slots.
      mask_logits: float32 [batch, pixels, slots].

    Returns:
      (loss, accuracy), float32 [batch] each, not weighted. The accuracy is the share of the pixels of
      masks whose best slot is the matched one; 0 where the image has no mask.
    """
    row = tf.maximum(masks.row_of_pixel, 0)
    slot = tf.where(masks.row_of_pixel >= 0, tf.gather(matching.slot_of_row, row, batch_dims=1), -1)
    has_slot = tf.cast(slot >= 0, tf.float32)
    slot = tf.maximum(slot, 0)
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=slot, logits=mask_logits)

    target_logit = tf.gather(mask_logits, slot, batch_dims=2)
    correct = tf.cast(target_logit >= tf.reduce_max(mask_logits, axis=-1), tf.float32) * has_slot
    return mean_over_nonzeros(has_slot * cross_entropy), weighted_mean(tf.stop_gradient(correct), masks.in_row)
