"""Drop path (stochastic depth, architecture section 2.6) and dropout. Both drop the same when they are recomputed."""

from __future__ import annotations

import tensorflow as tf

from maxdl_tf.layers.configured import Layer
from maxdl_tf.layers.recompute import drawn_once


class DropPath:
    """In training, zeroes a residual branch for whole samples and scales up the others to keep the mean.

    Args:
      keep: Probability that a sample keeps its branch, in (0, 1].

    Raises:
      ValueError: If `keep` is out of its range.
    """

    def __init__(self, keep: float = 1.0):
        if not 0.0 < keep <= 1.0:
            raise ValueError(f"drop path keep probability {keep}: must be above 0 and at most 1; 1 drops nothing")
        self.keep = keep

    def __call__(self, branch, training=None):
        if not training or self.keep == 1.0:
            return branch
        uniform = drawn_once(lambda: tf.random.uniform(tf.shape(branch)[:1]))
        scale = tf.floor(self.keep + uniform) / self.keep  # [batch], 0 or 1 / keep
        return branch * tf.cast(tf.reshape(scale, [-1] + [1] * (branch.shape.rank - 1)), branch.dtype)


class Dropout(Layer):
    """In training, zeroes single values and scales up the others to keep the mean.

    Args:
      rate: Share of the values that are zeroed, in [0, 1).
    """

    def __init__(self, rate: float, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate

    def call(self, inputs, training=None):
        if not training or not self.rate:
            return inputs
        # A seed instead of a mask: two numbers wait for the second pass, not one for each value.
        seed = drawn_once(lambda: tf.random.uniform([2], maxval=tf.int32.max, dtype=tf.int32))
        return tf.nn.experimental.stateless_dropout(inputs, self.rate, seed)
