"""Stochastic depth (architecture section 2.6)."""

from __future__ import annotations

import tensorflow as tf

from maxdl_tf.keras_api import keras


class DropPath(keras.layers.Layer):
    """In training, zeroes a residual branch for whole samples and scales up the others to keep the mean.

    Args:
      keep: Probability that a sample's branch is kept, in (0, 1].
    """

    def __init__(self, keep: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        if not 0.0 < keep <= 1.0:
            raise ValueError(f"drop path keep probability {keep}: must be above 0 and at most 1")
        self.keep = keep

    def call(self, inputs, training=None):
        if not training or self.keep == 1.0:
            return inputs
        shape = tf.concat([tf.shape(inputs)[:1], tf.ones([inputs.shape.rank - 1], tf.int32)], axis=0)
        kept = tf.floor(self.keep + tf.random.uniform(shape))
        return inputs * tf.cast(kept / self.keep, inputs.dtype)
