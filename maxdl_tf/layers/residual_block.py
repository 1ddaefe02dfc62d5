"""Residual blocks of convolutions or attention (architecture section 2.1).

Features between blocks are un-activated: each block applies ReLU to what it reads, its skip connection included.
All blocks map [batch, height, width, in] to [batch, height/strides, width/strides, channels].
"""

from __future__ import annotations

import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.batch_norm import BatchNorm, NormFactory
from maxdl_tf.layers.conv_bn import Conv2DBatchNorm
from maxdl_tf.layers.drop_path import DropPath
from maxdl_tf.layers.recompute import recomputed


class ResidualBlock(keras.layers.Layer):
    """What all blocks share: ReLU, a skip connection (projected where channels change) and drop path.

    With `recompute`, training keeps a block's input only, and computes the rest again for the gradient.
    """

    def __init__(
        self,
        channels: int,
        *,
        strides: int,
        drop_path_keep: float,
        norm: NormFactory,
        recompute: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.channels, self.strides, self.norm, self.recompute = channels, strides, norm, recompute
        self.drop_path = DropPath(drop_path_keep)
        self.shortcut = None

    def build(self, input_shape):
        if input_shape[-1] != self.channels:
            self.shortcut = Conv2DBatchNorm(self.channels, strides=self.strides, norm=self.norm, name="shortcut")
        super().build(input_shape)

    def branch(self, x, training):
        """The residual branch, on activated input."""
        raise NotImplementedError

    def call(self, inputs, training=None):
        drawn = self.drop_path.draw(inputs, training)

        def run(inputs):
            x = tf.nn.relu(inputs)
            branch = DropPath.apply(self.branch(x, training), drawn)
            if self.shortcut is not None:
                x = self.shortcut(x, training=training)
            elif self.strides > 1:
                x = x[:, :: self.strides, :: self.strides]
            return branch + x

        return recomputed(run, when=self.recompute and bool(training))(inputs)


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions."""

    def __init__(
        self,
        channels: int,
        *,
        strides: int = 1,
        rate: int = 1,
        drop_path_keep: float = 1.0,
        norm: NormFactory = BatchNorm,
        **kwargs,
    ):
        super().__init__(channels, strides=strides, drop_path_keep=drop_path_keep, norm=norm, **kwargs)
        self.first = Conv2DBatchNorm(channels, 3, strides=strides, rate=rate, relu=True, norm=norm, name="first")
        self.second = Conv2DBatchNorm(channels, 3, rate=rate, gamma_initializer="zeros", norm=norm, name="second")

    def branch(self, x, training):
        return self.second(self.first(x, training=training), training=training)


class BottleneckBlock(ResidualBlock):
    """A 3x3 convolution between 1x1 convolutions that narrow to `width` and widen to `channels`."""

    def __init__(
        self,
        width: int,
        channels: int,
        *,
        strides: int = 1,
        rate: int = 1,
        drop_path_keep: float = 1.0,
        norm: NormFactory = BatchNorm,
        **kwargs,
    ):
        super().__init__(channels, strides=strides, drop_path_keep=drop_path_keep, norm=norm, **kwargs)
        self.reduce = Conv2DBatchNorm(width, relu=True, norm=norm, name="reduce")
        self.spatial = Conv2DBatchNorm(width, 3, strides=strides, rate=rate, relu=True, norm=norm, name="spatial")
        self.expand = Conv2DBatchNorm(channels, gamma_initializer="zeros", norm=norm, name="expand")

    def branch(self, x, training):
        x = self.reduce(x, training=training)
        x = self.spatial(x, training=training)
        return self.expand(x, training=training)


class AttentionBlock(ResidualBlock):
    """The bottleneck block with attention in place of its 3x3 convolution.

    Args:
      width: Channels that enter the attention.
      channels: Channels of the block's output.
      attention: An `AxialAttention2D` or `GlobalAttention2D`.
      drop_path_keep: Probability that a sample keeps the residual branch.
      norm: Makes the batch norms.
    """

    def __init__(
        self,
        width: int,
        channels: int,
        attention: keras.layers.Layer,
        *,
        drop_path_keep: float = 1.0,
        norm: NormFactory = BatchNorm,
        **kwargs,
    ):
        super().__init__(channels, strides=attention.strides, drop_path_keep=drop_path_keep, norm=norm, **kwargs)
        self.reduce = Conv2DBatchNorm(width, relu=True, norm=norm, name="reduce")
        self.attention = attention
        self.expand = Conv2DBatchNorm(channels, gamma_initializer="zeros", norm=norm, name="expand")

    def branch(self, x, training):
        x = self.reduce(x, training=training)
        x = tf.nn.relu(self.attention(x, training=training))
        return self.expand(x, training=training)
