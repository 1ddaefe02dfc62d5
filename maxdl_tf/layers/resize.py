"""Sizes of features and bilinear resizing with aligned corners (architecture section 1)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def spatial_size(features) -> tuple[Any, Any]:
    """(height, width) of [batch, height, width, ...]: integers where known, scalar tensors otherwise."""
    dynamic = tf.shape(features)
    return tuple(dynamic[axis] if features.shape[axis] is None else features.shape[axis] for axis in (1, 2))


def size_at_stride(size: tuple[Any, Any], stride: int) -> tuple[Any, Any]:
    """(height, width) of the feature at a stride, for an image of `size`: 641 gives 321, 161, 81, 41 at 2, 4, 8, 16."""
    return tuple((side - 1) // stride + 1 for side in size)


def resize_bilinear(features, size: tuple[Any, Any]):
    """Resizes [batch, height, width, channels] so that the centers of the corner pixels stay at the corners.

    Keeps the dtype. Costs nothing where the sizes are known to agree.
    """
    if tuple(features.shape[1:3]) == tuple(size):
        return features
    resized = tf.raw_ops.ResizeBilinear(images=features, size=tf.stack(size), align_corners=True)
    return tf.cast(resized, features.dtype)
