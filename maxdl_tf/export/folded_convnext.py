"""ConvNeXt in inference: kernels are stored in few bits and take in scales and offsets of layer norms before them."""

from __future__ import annotations

import tensorflow as tf

from maxdl_tf.export.folded_layers import FoldedLinear, Types
from maxdl_tf.keras_api import keras
from maxdl_tf.layers.resize import spatial_size
from maxdl_tf.models.convnext import ConvNeXtBlock


class FoldedConvNeXtBlock(tf.Module):
    """A `ConvNeXtBlock`. The layer scale stays apart from the stored kernels, because it may be too small for float16.

    At 257, batch 1, float32, ConvNeXt-T takes 0.96 of the processor time of the unfolded one. With 1x1 convolutions in
    place of matrix products, it takes 1.1.
    """

    def __init__(self, layer: ConvNeXtBlock, types: Types):
        super().__init__()
        self.kernel = types.kernel(tf.transpose(layer.depthwise_conv.kernel, (0, 1, 3, 2)))
        self.bias = types.small(layer.depthwise_conv.bias)
        self._epsilon = layer.norm.epsilon
        first, second = layer.pointwise_conv1, layer.pointwise_conv2
        bias = first.bias + tf.linalg.matvec(first.kernel, layer.norm.beta, transpose_a=True)
        kernel = layer.norm.gamma[:, tf.newaxis] * first.kernel
        self.pointwise_conv1 = FoldedLinear(kernel, bias, activate=first.activation, types=types)
        self.pointwise_conv2 = FoldedLinear(second.kernel, second.bias, types=types)
        self.layer_scale = types.small(layer.layer_scale)

    def __call__(self, inputs, training=False):
        x = tf.nn.depthwise_conv2d(inputs, self.kernel(), (1, 1, 1, 1), "SAME")
        x = tf.cast(tf.nn.bias_add(x, self.bias()), tf.float32)
        x -= tf.reduce_mean(x, axis=-1, keepdims=True)
        x *= tf.math.rsqrt(tf.reduce_mean(tf.square(x), axis=-1, keepdims=True) + self._epsilon)
        height, width = spatial_size(inputs)
        channels = inputs.shape[-1]
        x = self.pointwise_conv2(self.pointwise_conv1(tf.reshape(x, [-1, height * width, channels])))
        return inputs + tf.reshape(x, [-1, height, width, channels]) * self.layer_scale()


class StoredConv2D(tf.Module):
    """A convolution with a bias, whose kernel is stored in few bits."""

    def __init__(self, layer: keras.layers.Conv2D, types: Types):
        super().__init__()
        self.kernel = types.kernel(layer.kernel)
        self.bias = types.small(layer.bias)
        self._convolve = layer.convolution_op

    def __call__(self, inputs, training=False):
        return tf.nn.bias_add(self._convolve(inputs, self.kernel()), self.bias())
