"""The decoder's node: features of several strides, resized, projected and added (architecture section 2.4)."""

from __future__ import annotations

import tensorflow as tf

from maxdl_tf.layers import activations
from maxdl_tf.layers.batch_norm import DEFAULT_NORM, Norm
from maxdl_tf.layers.configured import Layer
from maxdl_tf.layers.conv_bn import Conv2DBatchNorm
from maxdl_tf.layers.resize import resize_bilinear


class ResizedFuse(Layer):
    """Adds un-activated features after bringing each to one size and number of channels.

    A feature that already has `channels` channels is resized bilinearly. Any other is activated and projected: with
    stride 2 where that alone gives the size, otherwise at its own size, and then resized.

    Args:
      channels: Number of channels of the sum.
      stride: Stride of the sum, relative to the image.
      source_strides: Strides of the features, in the order of the call.
      activation: Name of the activation before a projection.
      norm: Factory of the batch norms.
    """

    def __init__(
        self,
        channels: int,
        *,
        stride: int,
        source_strides: tuple[int, ...],
        activation: str = "relu",
        norm: Norm = DEFAULT_NORM,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.activate = activations.get(activation)
        self.channels, self.stride, self.source_strides, self.norm = channels, stride, tuple(source_strides), norm

    def build(self, input_shape):
        # Numbered from 1 by the place of their feature, because features that fit need no projection.
        self.projections = {}
        for number, (shape, stride) in enumerate(zip(input_shape, self.source_strides), start=1):
            if shape[-1] != self.channels:
                strided = 2 * stride == self.stride
                name = f"{'strided' if strided else 'resized'}{number}"
                with self.own_precision():
                    conv = Conv2DBatchNorm(self.channels, strides=2 if strided else 1, norm=self.norm, name=name)
                self.projections[name] = conv
        super().build(input_shape)

    def call(self, inputs, size, training=None):
        """Fuses a sequence of features [batch, h, w, c] to [batch, *size, channels]."""
        fused = []
        for number, feature in enumerate(inputs, start=1):
            for name in (f"strided{number}", f"resized{number}"):
                if name in self.projections:
                    feature = self.projections[name](self.activate(feature), training=training)
            fused.append(resize_bilinear(feature, size))
        return tf.add_n(fused)
