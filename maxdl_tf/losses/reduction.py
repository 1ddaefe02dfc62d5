"""How the loss terms average over pixels or slots."""

from __future__ import annotations

import tensorflow as tf


def mean_over_nonzeros(values: tf.Tensor) -> tf.Tensor:
    """The mean of each image's entries that are not exactly 0; 0 where there are none.

    Entries with weight 0 leave the denominator, so that an image that is mostly void counts as much
    as one that is not.

    Args:
      values: float32 [batch, entries], weighted losses.

    Returns:
      float32 [batch].
    """
    count = tf.math.count_nonzero(values, axis=1, dtype=tf.float32)
    return tf.reduce_sum(values, axis=1) / tf.maximum(count, 1.0)


def weighted_mean(values: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Each image's mean of `values` with `weights`, both float32 [batch, entries]; 0 where all weights are 0."""
    return tf.math.divide_no_nan(tf.reduce_sum(values * weights, axis=1), tf.reduce_sum(weights, axis=1))
