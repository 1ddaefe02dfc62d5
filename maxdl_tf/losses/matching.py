"""One-to-one matching of ground-truth masks with the model's slots (paper section 3.2, PQ-style similarity)."""

from __future__ import annotations

from typing import Callable, NamedTuple

import tensorflow as tf

from maxdl_tf.losses import assignment
from maxdl_tf.losses.assignment import Assign
from maxdl_tf.losses.target_masks import TargetMasks


class Matching(NamedTuple):
    """The slot of each ground-truth mask. No gradient flows through any of it.

    Attributes:
      slot_of_row: int32 [batch, rows], -1 for rows without a slot.
      matched: float32 [batch, rows, slots], 1 for matched pairs.
      has_slot: float32 [batch, rows], 1 for rows with a slot.
      is_matched: float32 [batch, slots], 1 for slots with a row.
      class_probability: float32 [batch, rows], probability of the row's class in its slot; 0 without a slot.
      dice: float32 [batch, rows], Dice of the row with its slot; 0 without a slot.
      void_share: float32 [batch, slots], share of the slot's mask that lies on void pixels.
    """

    slot_of_row: tf.Tensor
    matched: tf.Tensor
    has_slot: tf.Tensor
    is_matched: tf.Tensor
    class_probability: tf.Tensor
    dice: tf.Tensor
    void_share: tf.Tensor

    def rows_to_slots(self, row_values: tf.Tensor) -> tf.Tensor:
        """Moves float32 [batch, rows] to the matched slots: float32 [batch, slots], 0 for the others."""
        return tf.einsum("bgn,bg->bn", self.matched, row_values)

    def slots_to_rows(self, slot_values: tf.Tensor) -> tf.Tensor:
        """Moves float32 [batch, slots] to the matched rows: float32 [batch, rows], 0 for the others."""
        return tf.einsum("bgn,bn->bg", self.matched, slot_values)


def match(
    masks: TargetMasks,
    overlap: tf.Tensor,
    slot_probability: tf.Tensor,
    class_logits: tf.Tensor,
    assign: Assign = assignment.assign,
    join: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = tf.multiply,
) -> Matching:
    """Matches so that the total similarity is greatest; by default it is class probability x Dice.

    Args:
      masks: Ground truth.
      overlap: float32 [batch, rows, slots], sum of the slot's mask over the row's pixels.
      slot_probability: float32 [batch, pixels, slots], softmax of the mask logits over slots.
      class_logits: float32 [batch, slots, classes + 1].
      assign: Solver of the assignment problem.
      join: Function of class probability and Dice to the similarity, [batch, rows, slots] each.

    Returns:
      The matching; stop_gradient is applied to all of it.
    """
    overlap, slot_probability, class_logits = map(tf.stop_gradient, (overlap, slot_probability, class_logits))
    class_probability, dice = class_probability_and_dice(masks, overlap, slot_probability, class_logits)
    slot_of_row = tf.stop_gradient(assign(join(class_probability, dice), masks.valid))
    # one_hot of -1 is a row of zeros.
    matched = tf.one_hot(slot_of_row, class_logits.shape[1])  # [batch, rows, slots]
    return Matching(
        slot_of_row=slot_of_row,
        matched=matched,
        has_slot=tf.cast(slot_of_row >= 0, tf.float32),
        is_matched=tf.reduce_sum(matched, axis=1),
        class_probability=tf.reduce_sum(matched * class_probability, axis=2),
        dice=tf.reduce_sum(matched * dice, axis=2),
        void_share=_void_share(masks, slot_probability),
    )


def class_probability_and_dice(
    masks: TargetMasks, overlap: tf.Tensor, slot_probability: tf.Tensor, class_logits: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Class probability and Dice of every pair of a mask and a slot; arguments as `match`.

    Returns:
      float32 [batch, rows, slots] each, 0 in rows that are not valid.
    """
    slot_area = tf.einsum("bpn,bp->bn", slot_probability, masks.non_void)  # [batch, slots]
    dice = overlap / ((masks.area[:, :, tf.newaxis] + slot_area[:, tf.newaxis, :]) / 2.0 + 1e-5)
    by_class = tf.linalg.matrix_transpose(tf.nn.softmax(class_logits))  # [batch, classes + 1, slots]
    valid = tf.cast(masks.valid, tf.float32)
    class_probability = tf.gather(by_class, masks.class_index, batch_dims=1) * valid[:, :, tf.newaxis]
    return class_probability, dice


def _void_share(masks: TargetMasks, slot_probability: tf.Tensor) -> tf.Tensor:
    void_mass = tf.einsum("bpn,bp->bn", slot_probability, 1.0 - masks.non_void)
    return void_mass / (tf.reduce_sum(slot_probability, axis=1) + 1e-5)
