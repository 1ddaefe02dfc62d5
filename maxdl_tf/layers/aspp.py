"""Atrous spatial pyramid pooling (architecture section 4)."""

from __future__ import annotations

import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.batch_norm import BatchNorm, NormFactory
from maxdl_tf.layers.conv_bn import Conv2DBatchNorm
from maxdl_tf.layers.recompute import recomputed
from maxdl_tf.layers.resize import resize_bilinear, spatial_size


class ASPP(keras.layers.Layer):
    """A 1x1 convolution, three atrous 3x3 ones and average pooling side by side, then a projection and dropout.

    [batch, height, width, in] -> activated [batch, height, width, channels].

    Args:
      channels: Channels of each branch and of the output.
      rates: Rates of the three atrous convolutions.
      pool_size: (height, width) of the pooling window. It is the feature size of the crops trained on, so that larger
        images pool over what the network has learned to pool over; smaller ones are pooled whole.
      dropout: Share of channels' values dropped in training.
      norm: Makes the batch norms.
      recompute: In training, keep the input and the projection only and compute the rest again for the gradient.
    """

    def __init__(
        self,
        channels: int,
        *,
        rates: tuple[int, int, int],
        pool_size: tuple[int, int],
        dropout: float,
        norm: NormFactory = BatchNorm,
        recompute: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.recompute = recompute
        self.pool_size = tuple(pool_size)
        branch = {"relu": True, "norm": norm}
        self.direct = Conv2DBatchNorm(channels, **branch, name="direct")
        self.atrous1, self.atrous2, self.atrous3 = (
            Conv2DBatchNorm(channels, 3, rate=rate, **branch, name=f"atrous{number}")
            for number, rate in enumerate(rates, start=1)
        )
        self.pool = Conv2DBatchNorm(channels, **branch, name="pool")
        self.project = Conv2DBatchNorm(channels, **branch, name="project")
        self.dropout = keras.layers.Dropout(dropout, name="dropout")

    def call(self, inputs, training=None):
        def run(inputs):
            convs = (self.direct, self.atrous1, self.atrous2, self.atrous3)
            branches = [conv(inputs, training=training) for conv in convs]
            pooled = self.pool(_average_pool(inputs, *self.pool_size), training=training)
            branches.append(resize_bilinear(pooled, spatial_size(inputs)))
            return self.project(tf.concat(branches, axis=-1), training=training)

        x = recomputed(run, when=self.recompute and bool(training))(inputs)
        return self.dropout(x, training=training)


def _average_pool(x, height: int, width: int):
    """Means over windows of height x width at stride 1 without padding; over the whole side where it is smaller."""
    dtype = x.dtype
    x = tf.cast(x, tf.float32)  # Sums of so many values.
    for axis, window in ((1, height), (2, width)):
        kernel = [1, 1, 1, 1]
        kernel[axis] = window
        side = x.shape[axis]

        def whole(x=x, axis=axis):
            return tf.reduce_mean(x, axis=axis, keepdims=True)

        def windows(x=x, kernel=kernel):
            return tf.nn.avg_pool2d(x, kernel, strides=1, padding="VALID")

        if side is None:
            x = tf.cond(tf.shape(x)[axis] <= window, whole, windows)
        else:
            x = whole() if side <= window else windows()
    return tf.cast(x, dtype)
