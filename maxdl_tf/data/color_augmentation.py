"""Random changes of color: the color operations of an AutoAugment policy (architecture section 8).

Each operation maps uint8 [height, width, 3] to uint8 [height, width, 3] and moves no pixel, so labels stay valid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from maxdl_tf.structs import Tensor

NUM_DRAWS = 3


class _Step(NamedTuple):
    """An operation, its probability, and its strength, 0..10."""

    operation: Callable[[Tensor, float], Tensor]
    probability: float
    level: float


def augment_color(image: Tensor, draws: Tensor, magnitude: float = 1.0) -> Tensor:
    """Applies one of five pairs of operations; each operation of the pair has its own probability.

    Args:
      image: uint8 [height, width, 3].
      draws: float [3], uniform in [0, 1): draws for the pair, its first and its second operation.
      magnitude: Factor of the levels. The probabilities stay the same.

    Returns:
      uint8 [height, width, 3].
    """
    pair = tf.cast(draws[0] * len(_POLICY), tf.int32)
    return tf.switch_case(pair, [lambda steps=steps: _apply(steps, image, draws[1:], magnitude) for steps in _POLICY])


def _apply(steps: tuple[_Step, ...], image: Tensor, draws: Tensor, magnitude: float) -> Tensor:
    for index, step in enumerate(steps):
        image = tf.cond(
            draws[index] < step.probability,
            lambda step=step, image=image: step.operation(image, magnitude * step.level),
            lambda image=image: image,
        )
    return image


def sharpness(image: Tensor, level: float) -> Tensor:
    """Blends with the image smoothed by a 3 x 3 kernel; the border is not smoothed."""
    values = tf.cast(image, tf.float32)
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    # The truncation below makes the order of the additions matter, so they are written out.
    smooth = tf.zeros([height - 2, width - 2, 3])
    for row in range(3):
        for column in range(3):
            weight = np.float32(5 if row == column == 1 else 1) / np.float32(13)
            smooth += weight * values[row : height - 2 + row, column : width - 2 + column]
    smooth = tf.pad(_to_uint8(smooth), [[1, 1], [1, 1], [0, 0]])
    inner = tf.pad(tf.ones([height - 2, width - 2, 1], tf.bool), [[1, 1], [1, 1], [0, 0]])
    return _blend(tf.where(inner, smooth, image), image, level)


def brightness(image: Tensor, level: float) -> Tensor:
    """Blends with black."""
    return _blend(tf.zeros_like(image), image, level)


def color(image: Tensor, level: float) -> Tensor:
    """Blends with the gray image."""
    return _blend(tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(image)), image, level)


def contrast(image: Tensor, level: float) -> Tensor:
    """Blends with one gray value.

    The gray value is the number of pixels / 256, at most 255, and not the mean of the image. The published policies
    were searched with this value, so results depend on it.
    """
    gray = tf.minimum(tf.cast(tf.shape(image)[0] * tf.shape(image)[1], tf.float32) / 256, 255.0)
    return _blend(tf.fill(tf.shape(image), tf.cast(gray, tf.uint8)), image, level)


def solarize(image: Tensor, level: float) -> Tensor:
    """Inverts values of at least 25.6 * level."""
    threshold = int(level / 10 * 256)
    return tf.where(tf.cast(image, tf.int32) < threshold, image, 255 - image)


def equalize(image: Tensor, level: float) -> Tensor:
    """Equalizes the histogram of each channel; `level` is ignored."""
    del level
    values = tf.cast(image, tf.int32)  # [height, width, 3]
    histogram = tf.math.bincount(tf.reshape(values + 256 * tf.range(3), [-1]), minlength=768, maxlength=768)
    histogram = tf.reshape(histogram, [3, 256])
    largest = tf.reduce_max(values, axis=[0, 1])  # [3]
    step = (tf.reduce_sum(histogram, axis=1) - tf.gather(histogram, largest, batch_dims=1)) // 255
    step = step[:, tf.newaxis]
    table = (tf.cumsum(histogram, axis=1, exclusive=True) + step // 2) // tf.maximum(step, 1)
    table = tf.where(step == 0, tf.range(256), tf.minimum(table, 255))
    return tf.cast(tf.gather(tf.reshape(table, [-1]), values + 256 * tf.range(3)), tf.uint8)


def _blend(degenerate: Tensor, image: Tensor, level: float) -> Tensor:
    """Interpolates from `degenerate` to `image` and extrapolates for levels above 5: factors 0.1 to 1.9."""
    factor = level / 10 * 1.8 + 0.1
    start = tf.cast(degenerate, tf.float32)
    return _to_uint8(start + factor * (tf.cast(image, tf.float32) - start))


def _to_uint8(values: Tensor) -> Tensor:
    """Truncates, as the reference does."""
    return tf.cast(tf.clip_by_value(values, 0.0, 255.0), tf.uint8)


# AutoAugment's "simple classification policy".
_POLICY = (
    (_Step(sharpness, 0.4, 7), _Step(brightness, 0.2, 10)),
    (_Step(equalize, 0.0, 9), _Step(contrast, 0.2, 10)),
    (_Step(sharpness, 0.2, 9), _Step(color, 0.2, 9)),
    (_Step(solarize, 0.2, 7), _Step(equalize, 0.6, 9)),
    (_Step(sharpness, 0.2, 1), _Step(equalize, 0.2, 7)),
)
