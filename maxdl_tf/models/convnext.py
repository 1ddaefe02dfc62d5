"""ConvNeXt as an encoder (Liu et al., "A ConvNet for the 2020s", arXiv 2201.03545)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers import activations
from maxdl_tf.layers.configured import Layer
from maxdl_tf.layers.convolutions import depthwise_conv2d
from maxdl_tf.layers.dropout import DropPath
from maxdl_tf.models.encoder import Encoder, Stage


def convnext_encoder(
    depths: Sequence[int],
    widths: Sequence[int],
    *,
    drop_path_keep: float = 1.0,
    recompute: tuple[type, ...] = (),
    name: str | None = None,
) -> Encoder:
    """An encoder with features `stage1`, of the stem, and `stage2` at stride 4, and `stage3` to `stage5` at 8 to 32.

    Args:
      depths: Number of blocks of each stage, `stage2` first.
      widths: Number of channels of each stage.
      drop_path_keep: Probability that the last block keeps its residual branch. It falls linearly from 1 in the first.
      recompute: Classes of layers that are recomputed in training.
      name: Name of the layer.
    """
    keeps = iter(np.linspace(1.0, drop_path_keep, sum(depths), dtype=np.float32))
    stages = {}
    for number, (depth, width) in enumerate(zip(depths, widths), start=2):
        blocks: dict[str, Layer] = {} if number == 2 else {"downsample": Downsample(width, name="downsample")}
        for block in (f"block{block}" for block in range(1, depth + 1)):
            blocks[block] = ConvNeXtBlock(width, drop_path_keep=float(next(keeps)), name=block)
        stages[f"stage{number}"] = Stage(blocks, {}, recompute=recompute, name=f"stage{number}")
    return Encoder(
        PatchStem(widths[0], name="stem"),
        stages,
        memory_shape=None,
        activation="gelu",
        recompute=recompute,
        name=name,
    )


class PatchStem(Layer):
    """A linear map of patches of 4 x 4 pixels, and layer normalization.

    Image [batch, height, width, 3] -> [batch, ceil(height/4), ceil(width/4), channels].

    Args:
      channels: Number of output channels.
    """

    def __init__(self, channels: int, **kwargs):
        super().__init__(**kwargs)
        self.patch_conv = keras.layers.Conv2D(
            channels, 4, strides=4, kernel_initializer=_small_kernel(), name="patch_conv"
        )
        self.norm = _layer_norm()

    def call(self, inputs, training=None):
        return self.norm(self.patch_conv(tf.pad(inputs, ((0, 0), (1, 2), (1, 2), (0, 0)))))


class Downsample(Layer):
    """Layer normalization and a 2x2 convolution of stride 2.

    [batch, height, width, in] -> [batch, ceil(height/2), ceil(width/2), channels].

    Args:
      channels: Number of output channels.
    """

    def __init__(self, channels: int, **kwargs):
        super().__init__(**kwargs)
        self.norm = _layer_norm()
        self.conv = keras.layers.Conv2D(channels, 2, strides=2, kernel_initializer=_small_kernel(), name="conv")

    def call(self, inputs, training=None):
        # The normalization follows the padding: it turns the zeros into its offset.
        return self.conv(self.norm(tf.pad(inputs, ((0, 0), (0, 1), (0, 1), (0, 0)))))


class ConvNeXtBlock(Layer):
    """A 7x7 depthwise convolution and a two-layer perceptron of each pixel, with a scaled skip connection.

    Keeps the shape [batch, height, width, channels].

    Args:
      channels: Number of channels.
      drop_path_keep: Probability that a sample keeps the residual branch.
    """

    def __init__(self, channels: int, *, drop_path_keep: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.drop_path = DropPath(drop_path_keep)
        self.depthwise_conv = DepthwiseConv2D(7, kernel_initializer=_small_kernel(), name="depthwise_conv")
        self.norm = _layer_norm()
        self.pointwise_conv1 = keras.layers.Dense(
            4 * channels, activation=activations.gelu, kernel_initializer=_small_kernel(), name="pointwise_conv1"
        )
        self.pointwise_conv2 = keras.layers.Dense(channels, kernel_initializer=_small_kernel(), name="pointwise_conv2")

    def build(self, input_shape):
        self.layer_scale = self.add_weight(
            "layer_scale",
            (1, 1, 1, self.channels),
            initializer=keras.initializers.Constant(1e-6),
            experimental_autocast=False,  # float16 has few digits for 1e-6.
        )
        super().build(input_shape)

    def call(self, inputs, training=None):
        x = self.norm(self.depthwise_conv(inputs))
        x = self.pointwise_conv2(self.pointwise_conv1(x))
        x = tf.cast(tf.cast(x, tf.float32) * self.layer_scale, x.dtype)
        return inputs + self.drop_path(x, training)


class DepthwiseConv2D(Layer):
    """Convolution of each channel by itself, with a bias; keeps the shape [batch, height, width, channels].

    Its kernel [side, side, 1, channels] is that of a convolution with as many groups as channels, as in the published
    checkpoints. It is not computed as one: on CPUs grouped convolutions have a gradient only with oneDNN.

    Args:
      kernel_size: Side of the kernel, odd.
      kernel_initializer: Initial kernel.
    """

    def __init__(self, kernel_size: int, *, kernel_initializer: Any = "glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        self.kernel_size = kernel_size
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        channels = input_shape[-1]
        shape = (self.kernel_size, self.kernel_size, 1, channels)
        self.kernel = self.add_weight("kernel", shape, initializer=self.kernel_initializer)
        self.bias = self.add_weight("bias", (channels,), initializer="zeros")
        super().build(input_shape)

    def call(self, inputs, training=None):
        kernel = tf.transpose(self.kernel, (0, 1, 3, 2))
        return tf.nn.bias_add(depthwise_conv2d(inputs, kernel), self.bias)


def _layer_norm() -> keras.layers.Layer:
    return keras.layers.LayerNormalization(epsilon=1e-6, name="norm")


def _small_kernel() -> keras.initializers.Initializer:
    return keras.initializers.TruncatedNormal(stddev=0.02)
