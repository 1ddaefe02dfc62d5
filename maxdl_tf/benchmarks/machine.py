"""The speed of this machine, so that times of different machines can be compared.

A time says little without the machine, and a machine shared with others has no constant speed. So a benchmark measures
two operations in the same run that every machine does well: a 3x3 convolution and a matrix product. `utilization` is
the share of that speed that a model reaches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

_SECONDS = 0.2  # A timer's resolution and one interruption by another process do not matter in this time.
_ROUNDS = 5
_CHANNELS = 256  # As in the stage of MaX-DeepLab that takes the most time.

# The backward pass computes a gradient for each input and one for each weight: twice the work of the forward pass.
FORWARD_PASSES_OF_A_STEP = 3


class Speed(NamedTuple):
    """GFLOP/s (1e9 additions and multiplications in a second), each the median of several rounds.

    Attributes:
      convolution: Speed of a 3x3 convolution with 256 channels, on 64x64 pixels (GPU: 16 times 128x128).
      matrix_product: Speed of the product of two square matrices with 2048 rows (GPU: 8192).
    """

    convolution: float
    matrix_product: float


def measure_speed(dtype: str = "float32") -> Speed:
    """Measures the device that TensorFlow uses by default.

    Args:
      dtype: "float32", "bfloat16" or "float16". TensorFlow computes float32 as TF32 on GPUs that have it.
    """
    batch, side, rows = (16, 128, 8192) if tf.config.list_logical_devices("GPU") else (1, 64, 2048)
    images = tf.cast(tf.random.normal([batch, side, side, _CHANNELS]), dtype)
    kernel = tf.cast(tf.random.normal([3, 3, _CHANNELS, _CHANNELS]), dtype)
    matrix = tf.cast(tf.random.normal([rows, rows]), dtype)
    return Speed(
        convolution=_gflops(
            lambda: tf.nn.conv2d(images, kernel, strides=1, padding="SAME"),
            batch * side**2 * 9 * _CHANNELS**2,
        ),
        matrix_product=_gflops(lambda: tf.matmul(matrix, matrix), rows**3),
    )


def model_gflops(multiply_adds: float, seconds: float) -> float:
    """GFLOP/s of a model. A multiply-add is two operations."""
    return 2 * multiply_adds / seconds / 1e9


def utilization(gflops: float, speed: Speed) -> float:
    """Share of the machine's speed that a model reaches: its GFLOP/s by those of the faster of the two operations."""
    return gflops / max(speed)


def _gflops(operation: Callable[[], tf.Tensor], multiply_adds: int) -> float:
    """Median speed of an operation."""
    calls = 1
    _seconds(operation, calls)
    while _seconds(operation, calls) < _SECONDS:
        calls *= 2
    seconds = np.median([_seconds(operation, calls) for _ in range(_ROUNDS)])
    return model_gflops(calls * multiply_adds, float(seconds))


def _seconds(operation: Callable[[], tf.Tensor], calls: int) -> float:
    """Seconds until a number of calls are finished. A GPU runs them one after the other without waiting in between."""
    start = time.monotonic()
    for _ in range(calls):
        result = operation()
    tf.reshape(result, [-1])[0].numpy()
    return time.monotonic() - start
