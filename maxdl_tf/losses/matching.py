"""One-to-one matching of ground-truth masks with the model's slots (the paper's PQ-style similarity)."""

from __future__ import annotations

from typing import Callable, NamedTuple

import tensorflow as tf

from maxdl_tf.losses import assignment
from maxdl_tf.losses.assignment import Assign
from maxdl_tf.losses.target_masks import TargetMasks


class Matching(NamedTuple):
    """Which slot answers for which mask. No gradient flows through any of it.

    Attributes:
      slot_of_row: int32 [batch, rows], -1 for rows without a slot.
      matched: float32 [batch, rows, slots], 1 for the matched pairs.
      has_slot: float32 [batch, rows], 1 for the rows with a slot.
      is_matched: float32 [batch, slots], 1 for the slots with a row.
      class_probability: float32 [batch, rows], of the row's class in its slot; 0 without a slot.
      dice: float32 [batch, rows], of the row with its slot; 0 without a slot.
      similarity: float32 [batch, rows, slots], what the assignment maximizes; 0 for rows that are not valid.
    """

    slot_of_row: tf.Tensor
    matched: tf.Tensor
    has_slot: tf.Tensor
    is_matched: tf.Tensor
    class_probability: tf.Tensor
    dice: tf.Tensor
    similarity: tf.Tensor

    def rows_to_slots(self, row_values: tf.Tensor) -> tf.Tensor:
        """Hands float32 [batch, rows] on to the matched slots: float32 [batch, slots], 0 for the others."""
        return tf.einsum("bgn,bg->bn", self.matched, row_values)

    def slots_to_rows(self, slot_values: tf.Tensor) -> tf.Tensor:
        """Hands float32 [batch, slots] on to the matched rows: float32 [batch, rows], 0 for the others."""
        return tf.einsum("bgn,bn->bg", self.matched, slot_values)


def match(
    masks: TargetMasks,
    overlap: tf.Tensor,
    slot_probability: tf.Tensor,
    class_logits: tf.Tensor,
    assign: Assign = assignment.assign,
    join: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = tf.multiply,
) -> Matching:
    """Matches by similarity, which is class probability x Dice (paper section 3.1) if nothing else is said.

    Args:
      masks: The ground truth.
      overlap: float32 [batch, rows, slots], sum of the slot's mask over the row's pixels.
      slot_probability: float32 [batch, pixels, slots], softmax of the mask logits over slots.
      class_logits: float32 [batch, slots, classes + 1].
      assign: Solves the assignment problem.
      join: Makes the similarity of class probability and Dice, [batch, rows, slots] each, 0 in rows that are not valid.

    Returns:
      The matching; stop_gradient is applied to all of it.
    """
    overlap, slot_probability, class_logits = map(tf.stop_gradient, (overlap, slot_probability, class_logits))
    slot_area = tf.einsum("bpn,bp->bn", slot_probability, masks.non_void)
    dice = overlap / ((masks.area[:, :, tf.newaxis] + slot_area[:, tf.newaxis, :]) / 2.0 + 1e-5)

    by_class = tf.linalg.matrix_transpose(tf.nn.softmax(class_logits))  # [batch, classes + 1, slots]
    valid = tf.cast(masks.valid, tf.float32)
    class_probability = tf.gather(by_class, masks.class_index, batch_dims=1) * valid[:, :, tf.newaxis]

    similarity = join(class_probability, dice)
    slot_of_row = tf.stop_gradient(assign(similarity, masks.valid))
    # one_hot of -1 is a row of zeros.
    matched = tf.one_hot(slot_of_row, class_logits.shape[1])
    return Matching(
        slot_of_row=slot_of_row,
        matched=matched,
        has_slot=tf.cast(slot_of_row >= 0, tf.float32),
        is_matched=tf.reduce_sum(matched, axis=1),
        class_probability=tf.reduce_sum(matched * class_probability, axis=2),
        dice=tf.reduce_sum(matched * dice, axis=2),
        similarity=similarity,
    )
