"""Atrous spatial pyramid pooling (architecture section 4)."""

from __future__ import annotations

import sys

import tensorflow as tf

from maxdl_tf.layers.batch_norm import DEFAULT_NORM, Norm
from maxdl_tf.layers.configured import Layer
from maxdl_tf.layers.conv_bn import Conv2DBatchNorm
from maxdl_tf.layers.dropout import Dropout
from maxdl_tf.layers.resize import resize_bilinear, spatial_size


class ASPP(Layer):
    """A 1x1 convolution, three atrous 3x3 ones and average pooling in parallel, then a projection and dropout.

    [batch, height, width, in] -> activated [batch, height, width, channels].

    Args:
      channels: Number of channels of each branch and of the output.
      rates: Rates of the three atrous convolutions.
      pool_size: (height, width) of the pooling window: the size of this feature for training crops. Larger images pool
        over the windows that the network was trained on; smaller ones are pooled whole. None: all are pooled whole.
      dropout: Share of the values that are dropped in training.
      activation: Name of the activation.
      norm: Factory of the batch norms.
    """

    def __init__(
        self,
        channels: int,
        *,
        rates: tuple[int, int, int],
        pool_size: tuple[int, int] | None,
        dropout: float,
        activation: str = "relu",
        norm: Norm = DEFAULT_NORM,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.pool_size = tuple(pool_size or (sys.maxsize, sys.maxsize))
        branch = {"activation": activation, "norm": norm}
        self.direct = Conv2DBatchNorm(channels, **branch, name="direct")
        self.atrous1, self.atrous2, self.atrous3 = (
            Conv2DBatchNorm(channels, 3, rate=rate, **branch, name=f"atrous{number}")
            for number, rate in enumerate(rates, start=1)
        )
        self.pool = Conv2DBatchNorm(channels, **branch, name="pool")
        self.project = Conv2DBatchNorm(channels, **branch, name="project")
        self.dropout = Dropout(dropout, name="dropout")

    def call(self, inputs, training=None):
        convs = (self.direct, self.atrous1, self.atrous2, self.atrous3)
        branches = [conv(inputs, training=training) for conv in convs]
        pooled = self.pool(_average_pool(inputs, *self.pool_size), training=training)
        branches.append(resize_bilinear(pooled, spatial_size(inputs)))
        x = self.project(tf.concat(branches, axis=-1), training=training)
        return self.dropout(x, training=training)


def _average_pool(x, height: int, width: int):
    """Means over windows of height x width at stride 1 without padding; over the whole side where it is smaller."""
    dtype = x.dtype
    x = tf.cast(x, tf.float32)  # Half precision cannot hold the sum of a window.
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
