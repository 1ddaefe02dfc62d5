"""Convolutions whose training is faster than with TensorFlow's gradients (docs/performance.md).

In inference they are TensorFlow's operations, which exports fuse with those that follow.
"""

from __future__ import annotations

import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.resize import spatial_size
from maxdl_tf.layers.training_mode import is_training

_STRIDES = (1, 1, 1, 1)


def linear(inputs, kernel) -> tf.Tensor:
    """[batch, length, in] times [in, out]: [batch, length, out]. In training it is one matrix product."""
    return product(inputs, kernel) if is_training() else tf.einsum("nlc,cd->nld", inputs, kernel)


def product(inputs, kernel) -> tf.Tensor:
    """[..., in] times [..., in, out], where all other sides of the kernel are 1."""
    depth, channels = kernel.shape[-2:]
    products = tf.matmul(tf.reshape(inputs, [-1, depth]), tf.reshape(kernel, [depth, channels]))
    known = inputs.shape[:-1].is_fully_defined()
    shape = [*inputs.shape[:-1], channels] if known else tf.concat([tf.shape(inputs)[:-1], [channels]], axis=0)
    return tf.ensure_shape(tf.reshape(products, shape), [*inputs.shape[:-1], channels])


class PointwiseConv1D(keras.layers.Conv1D):
    """A convolution with a kernel of 1. In training it is a matrix product."""

    def convolution_op(self, inputs, kernel):
        return product(inputs, kernel) if is_training() else super().convolution_op(inputs, kernel)


class PointwiseConv2D(keras.layers.Conv2D):
    """A convolution with a kernel of 1. In training it is a matrix product of the pixels that it samples.

    With a stride this is only so on CPUs: XLA's compiler for GPUs can fail on the product of sampled pixels.
    """

    def convolution_op(self, inputs, kernel):
        rows, columns = self.strides
        is_strided = rows > 1 or columns > 1
        if not is_training() or (is_strided and not _on_cpu()):
            return super().convolution_op(inputs, kernel)
        return product(inputs[:, ::rows, ::columns] if is_strided else inputs, kernel)


class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """A depthwise convolution without bias, padded as TensorFlow's SAME."""

    def __init__(self, kernel_size: int, strides: int = 1, **kwargs):
        super().__init__(kernel_size, strides, padding="same", use_bias=False, **kwargs)

    def call(self, inputs):
        return depthwise_conv2d(inputs, self.depthwise_kernel, self.strides[0])


def depthwise_conv2d(inputs, kernel, stride: int = 1) -> tf.Tensor:
    """A depthwise convolution, padded as TensorFlow's SAME.

    On CPUs TensorFlow's gradient of the kernel takes one core for each image. With stride 1 and an odd kernel, this one
    takes a fifth of that time.

    Args:
      inputs: [batch, height, width, channels].
      kernel: [side, side, channels, 1].
      stride: Distance between sampled pixels.
    """
    if is_training() and stride == 1 and kernel.shape[0] % 2 and _on_cpu():
        return _with_fast_kernel_gradient(inputs, tf.convert_to_tensor(kernel))
    return tf.nn.depthwise_conv2d(inputs, kernel, (1, stride, stride, 1), "SAME")


def _on_cpu() -> bool:
    on_tpu = isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy)
    return not (on_tpu or tf.config.list_logical_devices("GPU"))


@tf.custom_gradient
def _with_fast_kernel_gradient(inputs, kernel):
    side, _, channels, _ = kernel.shape

    def gradient(upstream):
        of_inputs = tf.nn.depthwise_conv2d_backprop_input(tf.shape(inputs), kernel, upstream, _STRIDES, "SAME")
        # For each tap and channel: the sum over all pixels of the input that the tap sees, times the upstream gradient.
        # This is a depthwise convolution of the padded inputs whose kernel is the upstream gradient.
        margin = [side // 2, side // 2]
        padded = _images_as_channels(tf.pad(inputs, [[0, 0], margin, margin, [0, 0]]))
        sums = tf.nn.depthwise_conv2d(
            padded[tf.newaxis], _images_as_channels(upstream)[..., tf.newaxis], _STRIDES, "VALID"
        )
        of_kernel = tf.reduce_sum(tf.reshape(sums, [side, side, -1, channels]), axis=2)
        return of_inputs, of_kernel[..., tf.newaxis]

    return tf.nn.depthwise_conv2d(inputs, kernel, _STRIDES, "SAME"), gradient


def _images_as_channels(images) -> tf.Tensor:
    """[batch, height, width, channels] to [height, width, batch * channels]."""
    height, width = spatial_size(images)
    return tf.reshape(tf.transpose(images, [1, 2, 0, 3]), [height, width, -1])
