"""Convolutions followed by batch normalization (architecture sections 1 and 2.5)."""

from __future__ import annotations

from typing import Any, Callable

import tensorflow as tf

from maxdl_tf.keras_api import keras

# Makes a batch normalization: norm(axis=..., gamma_initializer=..., name=...). Layers are handed one, so that
# momentum and synchronization are decided in one place.
NormFactory = Callable[..., Any]


def batch_norm(
    axis: int | tuple[int, ...] = -1,
    *,
    gamma_initializer: Any = "ones",
    momentum: float = 0.99,
    synchronized: bool = False,
    name: str | None = None,
) -> keras.layers.BatchNormalization:
    """Batch normalization with the epsilon of all of MaX-DeepLab.

    Args:
      axis: Each index along these axes has its own statistics; they are taken over all other axes.
      gamma_initializer: Initial scale.
      momentum: Share of the old moving statistics that stays at each step.
      synchronized: Take the statistics over the replicas of a distribution strategy together.
      name: Name of the layer.
    """
    axes = [axis] if isinstance(axis, int) else list(axis)
    # The fused kernel is far quicker, but CPUs have it for the last axis only; Keras decides where it fits.
    fused = None if axes == [-1] and not synchronized else False
    return keras.layers.BatchNormalization(
        axis=axes,
        momentum=momentum,
        epsilon=1e-3,
        gamma_initializer=gamma_initializer,
        synchronized=synchronized,
        fused=fused,
        name=name,
    )


class Conv2DBatchNorm(keras.layers.Layer):
    """Convolution without bias, batch normalization and, if asked for, ReLU.

    Zeros are padded alike on all sides, so that strided outputs sample the pixels 0, 2, 4, ... and features of
    size 16k+1 stay aligned at their corners. [batch, height, width, in] -> [batch, ceil(height/strides),
    ceil(width/strides), filters].
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 1,
        *,
        strides: int = 1,
        rate: int = 1,
        relu: bool = False,
        gamma_initializer: Any = "ones",
        norm: NormFactory = batch_norm,
        **kwargs,
    ):
        super().__init__(**kwargs)
        # "same" pads odd kernels symmetrically only where the stride is 1.
        self.padding = rate * (kernel_size - 1) // 2 if strides > 1 else 0
        self.relu = relu
        self.conv = keras.layers.Conv2D(
            filters,
            kernel_size,
            strides=strides,
            padding="same" if strides == 1 else "valid",
            dilation_rate=rate,
            use_bias=False,
            kernel_initializer="he_normal",
            name="conv",
        )
        self.batch_norm = norm(gamma_initializer=gamma_initializer, name="batch_norm")

    def call(self, inputs, training=None):
        x = inputs
        if self.padding:
            margin = (self.padding, self.padding)
            x = tf.pad(x, ((0, 0), margin, margin, (0, 0)))
        x = self.batch_norm(self.conv(x), training=training)
        return tf.nn.relu(x) if self.relu else x


class Conv1DBatchNorm(keras.layers.Layer):
    """Linear map of each position without bias, batch normalization and, if asked for, ReLU.

    [batch, length, in] -> [batch, length, filters].
    """

    def __init__(
        self,
        filters: int,
        *,
        relu: bool = False,
        gamma_initializer: Any = "ones",
        kernel_initializer: Any = "he_normal",
        norm: NormFactory = batch_norm,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.relu = relu
        self.conv = keras.layers.Conv1D(filters, 1, use_bias=False, kernel_initializer=kernel_initializer, name="conv")
        self.batch_norm = norm(gamma_initializer=gamma_initializer, name="batch_norm")

    def call(self, inputs, training=None):
        x = self.batch_norm(self.conv(inputs), training=training)
        return tf.nn.relu(x) if self.relu else x


class DepthwiseConvBatchNorm(keras.layers.Layer):
    """Depthwise convolution of stride 1 without bias, batch normalization and ReLU."""

    def __init__(self, kernel_size: int, *, norm: NormFactory = batch_norm, **kwargs):
        super().__init__(**kwargs)
        self.conv = keras.layers.DepthwiseConv2D(kernel_size, padding="same", use_bias=False, name="conv")
        self.batch_norm = norm(name="batch_norm")

    def call(self, inputs, training=None):
        return tf.nn.relu(self.batch_norm(self.conv(inputs), training=training))


class SeparableConvBatchNorm(keras.layers.Layer):
    """Depthwise and then pointwise convolution, each with batch normalization and ReLU."""

    def __init__(self, filters: int, kernel_size: int = 5, *, norm: NormFactory = batch_norm, **kwargs):
        super().__init__(**kwargs)
        self.depthwise = DepthwiseConvBatchNorm(kernel_size, norm=norm, name="depthwise")
        self.pointwise = Conv2DBatchNorm(filters, relu=True, norm=norm, name="pointwise")

    def call(self, inputs, training=None):
        return self.pointwise(self.depthwise(inputs, training=training), training=training)
