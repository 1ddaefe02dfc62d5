"""Stochastic depth (architecture section 2.6)."""

from __future__ import annotations

import tensorflow as tf


class DropPath:
    """In training, zeroes a residual branch for whole samples and scales up the others to keep the mean.

    Drawing and applying are two steps, because a branch that is computed again for the gradient must be the same one.

    Args:
      keep: Probability that a sample's branch is kept, in (0, 1].
    """

    def __init__(self, keep: float = 1.0):
        if not 0.0 < keep <= 1.0:
            raise ValueError(f"drop path keep probability {keep}: must be above 0 and at most 1")
        self.keep = keep

    def draw(self, inputs, training=None):
        """What each sample of a batch is multiplied by: float32 [batch], 0 or 1 / keep; None if all are kept."""
        if not training or self.keep == 1.0:
            return None
        return tf.floor(self.keep + tf.random.uniform(tf.shape(inputs)[:1])) / self.keep

    @staticmethod
    def apply(branch, drawn):
        """A residual branch [batch, ...] times what was drawn."""
        if drawn is None:
            return branch
        return branch * tf.cast(tf.reshape(drawn, [-1] + [1] * (branch.shape.rank - 1)), branch.dtype)
