"""Differences of the reference's losses (docs/differences.md), so that tests can compare everything else."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from maxdl_tf.losses.target_masks import TargetMasks, flatten_pixels

_PADDING = 999.0


def reference_assign(similarity: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """An `Assign` with the reference's rounding and its choice among equals (architecture section 6).

    Costs are padded to a square with +-999 in float32, which rounds similarities to 6e-5 and makes ties of most that
    an untrained model has.
    """
    similarity, valid = similarity.numpy(), valid.numpy()
    rows, slots = similarity.shape[1:]
    cost = np.full([len(similarity), max(rows, slots), max(rows, slots)], -_PADDING, np.float32)
    invalid_cost = _PADDING if slots < rows else -_PADDING
    cost[:, :rows, :slots] = np.where(valid[..., np.newaxis], -similarity, invalid_cost)
    slot = np.stack([square_assignment(image_cost)[:rows] for image_cost in cost])
    return tf.constant(np.where(valid & (slot < slots), slot, -1), tf.int32)


def square_assignment(cost: np.ndarray) -> np.ndarray:
    """The column of each row in the reference's solution of a square assignment problem, with its choice among ties.

    Row minima and then column minima are taken off. Each row in turn takes the lowest free column of cost 0. Then, as
    long as a row has none, all paths that alternate between zeros and pairs are followed from all such rows at once,
    and the one to the lowest free column is swapped; where none is free, the smallest cost between what is reached
    and what is not is shifted over.
    """
    cost = np.array(cost, np.float32)
    cost -= cost.min(axis=1, keepdims=True)
    cost -= cost.min(axis=0, keepdims=True)
    column_of = np.full(len(cost), -1)
    for row, zeros in enumerate(cost == 0):
        zeros[column_of[column_of >= 0]] = False
        if zeros.any():
            column_of[row] = zeros.argmax()
    while (column_of < 0).any():
        row_of = _inverse(column_of)
        reached_row, reached_column, row_before = _paths(cost == 0, column_of, row_of)
        ends = np.flatnonzero(reached_column & (row_of < 0))
        if len(ends):
            column = ends[0]
            while column >= 0:
                row = row_before[column]
                column_of[row], column = column, column_of[row]
        else:
            step = cost[reached_row][:, ~reached_column].min()
            cost[np.ix_(reached_row, ~reached_column)] -= step
            cost[np.ix_(~reached_row, reached_column)] += step
    return column_of


def _paths(is_zero: np.ndarray, column_of: np.ndarray, row_of: np.ndarray):
    """(reached rows, reached columns, row before each reached column), from all rows without a column."""
    size = len(is_zero)
    # A row or column is known by the highest start, counted from 1, from which it is reached first; 0: not reached.
    start_of_row = np.where(column_of < 0, np.arange(1, size + 1), 0)
    start_of_column, row_before = np.zeros(size, int), np.zeros(size, int)
    front = start_of_row
    while front.any():
        reach = front[:, np.newaxis] * is_zero
        new = np.where(start_of_column > 0, 0, reach.max(axis=0))
        row_before = np.where(new > 0, reach.argmax(axis=0), row_before)
        start_of_column = start_of_column + new
        front = np.zeros(size, int)
        paired = (new > 0) & (row_of >= 0)
        front[row_of[paired]] = new[paired]
        front[start_of_row > 0] = 0
        start_of_row = start_of_row + front
    return start_of_row > 0, start_of_column > 0, row_before


def _inverse(column_of: np.ndarray) -> np.ndarray:
    row_of = np.full(len(column_of), -1)
    paired = np.flatnonzero(column_of >= 0)
    row_of[column_of[paired]] = paired
    return row_of


def crowd_gradient(masks: TargetMasks, mask_logits: tf.Tensor) -> tf.Tensor:
    """The gradient on mask logits that the reference has at crowd pixels, where the mask-id loss is 0.

    They have the all-zero target, for which softmax - target is not the derivative of the cross entropy.

    Args:
      masks: The ground truth.
      mask_logits: [batch, height, width, slots].

    Returns:
      Gradient of the batch mean of the loss, shaped like `mask_logits`.
    """
    crowd = masks.non_void - masks.in_row
    weight = tf.math.divide_no_nan(crowd, tf.reduce_sum(masks.in_row, axis=1, keepdims=True)) / crowd.shape[0]
    return 0.3 * tf.nn.softmax(mask_logits) * tf.reshape(weight, [*mask_logits.shape[:3], 1])


def contrastive_gradient_without_target(
    masks: TargetMasks, feature: tf.Tensor, sample: tf.Tensor, temperature: float = 0.3
) -> tf.Tensor:
    """The gradient on pixel features that the reference's contrastive loss has at sampled crowd and void pixels.

    As in `crowd_gradient`, their loss is 0, but TensorFlow's gradient for their all-zero target is a softmax.

    Args:
      masks: The ground truth.
      feature: Pixel features, [batch, height, width, channels].
      sample: Sampled pixels, int32 [batch, samples].

    Returns:
      Gradient of the batch mean of the loss, shaped like `feature`.
    """
    row = tf.gather(masks.row_of_pixel, sample, batch_dims=1)
    in_row = tf.cast(row >= 0, tf.float32)
    weight = tf.math.divide_no_nan(1.0 - in_row, tf.reduce_sum(in_row, axis=1, keepdims=True)) / sample.shape[0]
    with tf.GradientTape() as tape:
        tape.watch(feature)
        sampled = tf.gather(flatten_pixels(feature), sample, batch_dims=1)
        logits = tf.matmul(sampled, sampled, transpose_b=True) / temperature
        value = tf.reduce_sum(weight[..., tf.newaxis] * tf.stop_gradient(tf.nn.softmax(logits)) * logits)
    return tape.gradient(value, feature)
