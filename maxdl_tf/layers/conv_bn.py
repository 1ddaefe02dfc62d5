"""Convolutions followed by batch normalization (architecture sections 1 and 2.5)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers import activations
from maxdl_tf.layers.atrous import AtrousConv2D
from maxdl_tf.layers.batch_norm import DEFAULT_NORM, Norm
from maxdl_tf.layers.configured import Layer
from maxdl_tf.layers.convolutions import DepthwiseConv2D, PointwiseConv1D, PointwiseConv2D


class Conv2DBatchNorm(Layer):
    """Convolution without bias, batch normalization and, optionally, an activation.

    [batch, height, width, in] -> [batch, ceil(height/strides), ceil(width/strides), filters].

    Args:
      filters: Number of output channels.
      kernel_size: Side of the kernel, odd.
      strides: Distance between sampled pixels.
      rate: Distance between the kernel's taps; above 1 only where `strides` is 1.
      padding: "symmetric": zeros are padded alike on all sides, so that strided outputs sample the pixels 0, 2, 4, ...
        and features of size 16k+1 stay aligned at their corners. "same": TensorFlow's, which differs on even sides.
      activation: Name of the activation at the end, such as "relu" or "gelu"; None for none.
      gamma_initializer: Initial scale of the batch norm; "zeros" at the end of residual branches.
      norm: Factory of the batch norm.

    Raises:
      ValueError: If both `strides` and `rate` are above 1.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 1,
        *,
        strides: int = 1,
        rate: int = 1,
        padding: str = "symmetric",
        activation: str | None = None,
        gamma_initializer: Any = "ones",
        norm: Norm = DEFAULT_NORM,
        **kwargs,
    ):
        super().__init__(**kwargs)
        # "same" pads odd kernels symmetrically only where the stride is 1.
        self.padding = (kernel_size - 1) // 2 if strides > 1 and padding == "symmetric" else 0
        self.activate = activations.get(activation)
        common = {"use_bias": False, "kernel_initializer": "he_normal", "name": "conv"}
        if rate > 1:
            if strides > 1:
                raise ValueError(f"rate {rate} and strides {strides}: only one can be above 1; set the other to 1")
            self.conv = AtrousConv2D(filters, kernel_size, rate=rate, **common)
        else:
            padding = "valid" if self.padding else "same"
            kind = PointwiseConv2D if kernel_size == 1 else keras.layers.Conv2D
            self.conv = kind(filters, kernel_size, strides=strides, padding=padding, **common)
        self.batch_norm = norm(gamma_initializer=gamma_initializer, name="batch_norm")

    def call(self, inputs, training=None):
        x = inputs
        if self.padding:
            margin = (self.padding, self.padding)
            x = tf.pad(x, ((0, 0), margin, margin, (0, 0)))
        return self.activate(self.batch_norm(self.conv(x), training=training))


class Conv1DBatchNorm(Layer):
    """Linear map of each position without bias, batch normalization and, optionally, an activation.

    [batch, length, in] -> [batch, length, filters].

    Args:
      filters: Number of output channels.
      activation: Name of the activation at the end, such as "relu" or "gelu"; None for none.
      gamma_initializer: Initial scale of the batch norm.
      kernel_initializer: Initial kernel.
      norm: Factory of the batch norm.
    """

    def __init__(
        self,
        filters: int,
        *,
        activation: str | None = None,
        gamma_initializer: Any = "ones",
        kernel_initializer: Any = "he_normal",
        norm: Norm = DEFAULT_NORM,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.activate = activations.get(activation)
        self.conv = PointwiseConv1D(filters, 1, use_bias=False, kernel_initializer=kernel_initializer, name="conv")
        self.batch_norm = norm(gamma_initializer=gamma_initializer, name="batch_norm")

    def call(self, inputs, training=None):
        return self.activate(self.batch_norm(self.conv(inputs), training=training))


class DepthwiseConvBatchNorm(Layer):
    """Depthwise convolution without bias, batch normalization and activation, padded as TensorFlow's SAME.

    [batch, height, width, channels] -> [batch, ceil(height/strides), ceil(width/strides), channels].
    """

    def __init__(
        self, kernel_size: int, *, strides: int = 1, activation: str = "relu", norm: Norm = DEFAULT_NORM, **kwargs
    ):
        super().__init__(**kwargs)
        self.activate = activations.get(activation)
        self.conv = DepthwiseConv2D(kernel_size, strides, name="conv")
        self.batch_norm = norm(name="batch_norm")

    def call(self, inputs, training=None):
        return self.activate(self.batch_norm(self.conv(inputs), training=training))


class SeparableConvBatchNorm(Layer):
    """Depthwise, then pointwise convolution, each with batch normalization and activation.

    [batch, height, width, in] -> activated [batch, height, width, filters].
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 5,
        *,
        activation: str = "relu",
        norm: Norm = DEFAULT_NORM,
        **kwargs,
    ):
        super().__init__(**kwargs)
        common = {"activation": activation, "norm": norm}
        self.depthwise = DepthwiseConvBatchNorm(kernel_size, **common, name="depthwise")
        self.pointwise = Conv2DBatchNorm(filters, **common, name="pointwise")

    def call(self, inputs, training=None):
        return self.pointwise(self.depthwise(inputs, training=training), training=training)
