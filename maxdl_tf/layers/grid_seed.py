"""Slots that begin with the image: each reads the feature at its point of a regular grid."""

from __future__ import annotations

import math

import tensorflow as tf

from maxdl_tf.layers import activations
from maxdl_tf.layers.batch_norm import DEFAULT_NORM, Norm
from maxdl_tf.layers.configured import Layer
from maxdl_tf.layers.conv_bn import Conv1DBatchNorm
from maxdl_tf.layers.positions import with_positions
from maxdl_tf.layers.resize import resize_bilinear


class GridSeed(Layer):
    """Adds a projection of the feature at each point of a grid to the slot of this point.

    Call with (feature [batch, height, width, channels], un-activated; memory [batch, slots, memory channels]). Returns
    the memory. The grid has n x n points from corner to corner, with the largest n that the slots allow, and the first
    slots belong to it in raster order. The others stay as they are.

    Args:
      position_octaves: Number of octaves of the points' positions (`with_positions`) that are projected, too.
      activation: Name of the activation of the feature.
      norm: Factory of the batch norm of the projection.
    """

    def __init__(self, *, position_octaves: int = 0, activation: str = "relu", norm: Norm = DEFAULT_NORM, **kwargs):
        super().__init__(**kwargs)
        self.position_octaves, self.activate, self.norm = position_octaves, activations.get(activation), norm

    def build(self, input_shape):
        _, self.slots, channels = input_shape[1]
        with self.own_precision():
            self.projection = Conv1DBatchNorm(channels, norm=self.norm, name="projection")
        super().build(input_shape)

    def call(self, inputs, training=None):
        feature, memory = inputs
        side = math.isqrt(self.slots)
        points = with_positions(resize_bilinear(self.activate(feature), (side, side)), self.position_octaves)
        points = tf.reshape(points, [-1, side**2, points.shape[-1]])
        seeds = self.projection(points, training=training)
        return memory + tf.pad(seeds, ((0, 0), (0, self.slots - side**2), (0, 0)))
