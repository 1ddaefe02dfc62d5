"""Residual blocks of convolutions or attention (architecture section 2.1).

Blocks read and return un-activated features: each activates its input, its skip connection included. All map
[batch, height, width, in] to [batch, height/strides, width/strides, channels].
"""

from __future__ import annotations

from maxdl_tf.layers import activations
from maxdl_tf.layers.axial_attention import AxialAttention2D
from maxdl_tf.layers.batch_norm import DEFAULT_NORM, Norm
from maxdl_tf.layers.configured import Layer
from maxdl_tf.layers.conv_bn import Conv2DBatchNorm
from maxdl_tf.layers.dropout import DropPath


class ResidualBlock(Layer):
    """The common part of all blocks: activation, drop path and a skip connection, projected where channels change."""

    def __init__(self, channels: int, *, strides: int, drop_path_keep: float, activation: str, norm: Norm, **kwargs):
        super().__init__(**kwargs)
        self.activate = activations.get(activation)
        self.channels, self.strides, self.norm = channels, strides, norm
        self.drop_path = DropPath(drop_path_keep)
        self.shortcut = None

    def build(self, input_shape):
        if input_shape[-1] != self.channels:
            with self.own_precision():
                self.shortcut = Conv2DBatchNorm(self.channels, strides=self.strides, norm=self.norm, name="shortcut")
        super().build(input_shape)

    def branch(self, x, training):
        """The residual branch, on activated input."""
        raise NotImplementedError

    def call(self, inputs, training=None):
        x = self.activate(inputs)
        branch = self.drop_path(self.branch(x, training), training)
        if self.shortcut is not None:
            x = self.shortcut(x, training=training)
        elif self.strides > 1:
            x = x[:, :: self.strides, :: self.strides]
        return branch + x


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions.

    Args:
      channels: Number of output channels.
      strides: Stride of the first convolution.
      rate: Rate of both convolutions, 1 where `strides` is above 1.
      drop_path_keep: Probability that a sample keeps the residual branch.
      activation: Name of the activation.
      norm: Factory of the batch norms.
    """

    def __init__(
        self,
        channels: int,
        *,
        strides: int = 1,
        rate: int = 1,
        drop_path_keep: float = 1.0,
        activation: str = "relu",
        norm: Norm = DEFAULT_NORM,
        **kwargs,
    ):
        common = {"activation": activation, "norm": norm}
        super().__init__(channels, strides=strides, drop_path_keep=drop_path_keep, **common, **kwargs)
        self.first = Conv2DBatchNorm(channels, 3, strides=strides, rate=rate, **common, name="first")
        self.second = Conv2DBatchNorm(channels, 3, rate=rate, gamma_initializer="zeros", norm=norm, name="second")

    def branch(self, x, training):
        return self.second(self.first(x, training=training), training=training)


class BottleneckBlock(ResidualBlock):
    """A 3x3 convolution between 1x1 convolutions that narrow to `width` and widen to `channels`.

    The arguments are those of `BasicBlock`, with `width`: number of channels of the 3x3 convolution.
    """

    def __init__(
        self,
        width: int,
        channels: int,
        *,
        strides: int = 1,
        rate: int = 1,
        drop_path_keep: float = 1.0,
        activation: str = "relu",
        norm: Norm = DEFAULT_NORM,
        **kwargs,
    ):
        common = {"activation": activation, "norm": norm}
        super().__init__(channels, strides=strides, drop_path_keep=drop_path_keep, **common, **kwargs)
        self.reduce = Conv2DBatchNorm(width, **common, name="reduce")
        self.spatial = Conv2DBatchNorm(width, 3, strides=strides, rate=rate, **common, name="spatial")
        self.expand = Conv2DBatchNorm(channels, gamma_initializer="zeros", norm=norm, name="expand")

    def branch(self, x, training):
        x = self.reduce(x, training=training)
        x = self.spatial(x, training=training)
        return self.expand(x, training=training)


class AxialBlock(ResidualBlock):
    """The bottleneck block with axial attention in place of its 3x3 convolution.

    Args:
      key_depth: Number of channels of the attention's queries and keys. Its values and input have twice as many.
      channels: Number of output channels.
      strides: Stride of the attention.
      num_heads: Number of heads of the attention.
      drop_path_keep: Probability that a sample keeps the residual branch.
      activation: Name of the activation.
      norm: Factory of the batch norms.
    """

    def __init__(
        self,
        key_depth: int,
        channels: int,
        *,
        strides: int = 1,
        num_heads: int = 8,
        drop_path_keep: float = 1.0,
        activation: str = "relu",
        norm: Norm = DEFAULT_NORM,
        **kwargs,
    ):
        common = {"activation": activation, "norm": norm}
        super().__init__(channels, strides=strides, drop_path_keep=drop_path_keep, **common, **kwargs)
        self.reduce = Conv2DBatchNorm(2 * key_depth, **common, name="reduce")
        self.attention = AxialAttention2D(
            key_depth, 2 * key_depth, strides=strides, num_heads=num_heads, norm=norm, name="attention"
        )
        self.expand = Conv2DBatchNorm(channels, gamma_initializer="zeros", norm=norm, name="expand")

    def branch(self, x, training):
        x = self.reduce(x, training=training)
        x = self.activate(self.attention(x, training=training))
        return self.expand(x, training=training)
