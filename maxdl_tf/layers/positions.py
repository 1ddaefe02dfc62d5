"""Sine encodings of pixel positions, joined to features.

Sines are those of Vaswani et al. (arXiv 1706.03762), joining is that of Liu et al. (CoordConv, arXiv 1807.03247).
"""

from __future__ import annotations

import math

import tensorflow as tf

from maxdl_tf.layers.resize import spatial_size


def with_positions(features, octaves: int):
    """Features with `4 * octaves` more channels, which encode the position of each pixel.

    These are sines and cosines of row and column. Their wavelengths are 2 sides of the feature, 1, 1/2, 1/4 and so on,
    one an octave.

    Args:
      features: [batch, height, width, channels], sides known or not when traced.
      octaves: Number of wavelengths. 0: the features stay as they are.
    """
    if not octaves:
        return features
    height, width = spatial_size(features)
    shape = [tf.shape(features)[0], height, width, 2 * octaves]
    rows, columns = _waves(height, octaves)[:, tf.newaxis], _waves(width, octaves)
    waves = (tf.broadcast_to(tf.cast(axis, features.dtype), shape) for axis in (rows, columns))
    return tf.concat([features, *waves], axis=-1)


def _waves(side, octaves: int) -> tf.Tensor:
    """float32 [side, 2 * octaves]."""
    position = tf.range(tf.cast(side, tf.float32)) / tf.cast(tf.maximum(side - 1, 1), tf.float32)  # 0..1
    angle = position[:, tf.newaxis] * tf.constant([math.pi * 2.0**octave for octave in range(octaves)])
    return tf.concat([tf.sin(angle), tf.cos(angle)], axis=-1)
