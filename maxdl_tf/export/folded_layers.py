"""Convolutions and linear maps with a folded batch norm: a kernel and a bias, ready for fused operations.

A batch norm of fixed statistics is `scale * x + offset` for each channel. The convolution before it can multiply its
kernel by the scale and add the offset as a bias. These layers take the same arguments as those that they replace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from maxdl_tf.layers.batch_norm import BatchNorm
from maxdl_tf.layers.conv_bn import Conv1DBatchNorm, Conv2DBatchNorm, DepthwiseConvBatchNorm


class Affine(NamedTuple):
    """A batch norm in inference, `scale * x + offset`; both are float32 with the shape of its statistics."""

    scale: np.ndarray
    offset: np.ndarray


def affine(norm: BatchNorm) -> Affine:
    """The scale and the offset of a batch norm."""
    gamma, beta, mean, variance = (
        variable.numpy().astype(np.float64)
        for variable in (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
    )
    scale = gamma / np.sqrt(variance + norm.epsilon)
    return Affine(scale.astype(np.float32), (beta - mean * scale).astype(np.float32))


class Weight(tf.Module):
    """A constant of the network, stored as `storage` and used as `compute`.

    Args:
      value: Value, rounded to `storage`.
      storage: float32, float16 or bfloat16.
      compute: float32 or bfloat16.
    """

    def __init__(self, value, storage: tf.DType = tf.float32, compute: tf.DType = tf.float32):
        super().__init__()
        self.stored = tf.Variable(tf.cast(value, storage), trainable=False, name="weight")
        self.shape, self.compute = self.stored.shape, compute

    def __call__(self) -> tf.Tensor:
        return tf.cast(self.stored, self.compute)


class Types(NamedTuple):
    """Types of a folded network.

    Attributes:
      storage: Type of stored kernels: float32, float16 or bfloat16.
      compute: Type of convolutions, matrix products and attention, and of features: float32, or bfloat16 if `storage`
        is bfloat16, too.
    """

    storage: tf.DType = tf.float32
    compute: tf.DType = tf.float32

    def kernel(self, value) -> Weight:
        """A kernel or another large constant."""
        return Weight(value, self.storage, self.compute)

    def small(self, value) -> Weight:
        """A bias or another constant of few values, which is stored as it is used."""
        return Weight(value, self.compute, self.compute)


class FoldedConv2D(tf.Module):
    """A `Conv2DBatchNorm` as one convolution."""

    def __init__(self, layer: Conv2DBatchNorm, types: Types):
        super().__init__()
        scale, offset = affine(layer.batch_norm)
        self.kernel = types.kernel(layer.conv.kernel * scale)
        self.bias = types.small(offset)
        self._convolve = layer.conv.convolution_op
        self._padding, self._activate = layer.padding, layer.activate

    def __call__(self, inputs, training=False):
        if self._padding:
            margin = (self._padding, self._padding)
            inputs = tf.pad(inputs, ((0, 0), margin, margin, (0, 0)))
        # TensorFlow fuses the three into one operation.
        x = tf.nn.bias_add(self._convolve(inputs, self.kernel()), self.bias())
        return self._activate(x)


class FoldedDepthwiseConv2D(tf.Module):
    """A `DepthwiseConvBatchNorm` as one depthwise convolution and activation."""

    def __init__(self, layer: DepthwiseConvBatchNorm, types: Types):
        super().__init__()
        scale, offset = affine(layer.batch_norm)
        self.kernel = types.kernel(layer.conv.depthwise_kernel * scale[:, np.newaxis])
        self.bias = types.small(offset)
        self._strides, self._activate = (1, *layer.conv.strides, 1), layer.activate

    def __call__(self, inputs, training=False):
        x = tf.nn.depthwise_conv2d(inputs, self.kernel(), self._strides, "SAME")
        return self._activate(tf.nn.bias_add(x, self.bias()))


class FoldedLinear(tf.Module):
    """A linear map of the last axis with an optional activation. [batch, length, in] -> [batch, length, out].

    Args:
      kernel: float32 [in, out].
      bias: float32 [out].
      activate: Function that follows; None for none.
      types: Types of kernel and result. Inputs of other types are converted.
    """

    def __init__(self, kernel, bias, *, activate: Callable[[tf.Tensor], tf.Tensor] | None = None, types: Types):
        super().__init__()
        self.kernel = types.kernel(kernel)
        self.bias = types.small(bias)
        self._activate = activate

    @classmethod
    def of(cls, layer: Conv1DBatchNorm, types: Types, gain=1.0) -> FoldedLinear:
        """A `Conv1DBatchNorm` whose result is multiplied by `gain`, a number or an array [channels]."""
        scale, offset = affine(layer.batch_norm)
        return cls(layer.conv.kernel[0] * (scale * gain), offset * gain, activate=layer.activate, types=types)

    def __call__(self, inputs, training=False):
        length = tf.shape(inputs)[1] if inputs.shape[1] is None else inputs.shape[1]
        depth, channels = self.kernel.shape
        x = tf.matmul(tf.cast(tf.reshape(inputs, [-1, depth]), self.kernel.compute), self.kernel())
        x = tf.nn.bias_add(x, self.bias())
        x = self._activate(x) if self._activate else x
        return tf.reshape(x, [-1, length, channels])
