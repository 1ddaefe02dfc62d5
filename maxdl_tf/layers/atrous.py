"""Atrous convolution as one matrix product (architecture section 1)."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.configured import Configured
from maxdl_tf.layers.convolutions import product
from maxdl_tf.layers.resize import spatial_size
from maxdl_tf.layers.training_mode import is_training


class AtrousConv2D(Configured, keras.layers.Conv2D):
    """Convolution of stride 1 whose taps are `rate` pixels apart, zero-padded alike on all sides.

    TensorFlow's own cuts the image into rate^2 small ones and works mostly on their padding: at stride 16 a rate of 18
    spans a small crop. Here all taps are one matrix product. Its results are shifted rather than its inputs, which have
    more channels where rates are high.

    Args:
      filters: Number of output channels.
      kernel_size: Number of taps along each side.
      rate: Distance between taps, in pixels.
      **kwargs: Arguments of `keras.layers.Conv2D`.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        *,
        rate: int,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs,
    ):
        super().__init__(
            filters, kernel_size, padding="same", use_bias=use_bias, kernel_initializer=kernel_initializer, **kwargs
        )
        self.rate = rate

    def convolution_op(self, inputs, kernel):
        offsets = [self.rate * (tap - (self.kernel_size[0] - 1) // 2) for tap in range(self.kernel_size[0])]
        rows, columns = ([_seen_from(offset, side) for offset in offsets] for side in spatial_size(inputs))
        taps, seen = [], []
        # When recomputed, these would otherwise be made long before they are needed.
        with tf.control_dependencies([inputs]):
            for row, row_kernel in zip(rows, tf.unstack(kernel)):
                for column, tap in zip(columns, tf.unstack(row_kernel)):
                    if not (row.is_empty or column.is_empty):
                        taps.append(tap)
                        seen.append((row, column))
        kernel = tf.concat(taps, axis=-1)[tf.newaxis, tf.newaxis]  # [1, 1, in, taps * filters]
        # [batch, height, width, taps * filters]
        products = product(inputs, kernel) if is_training() else tf.nn.conv2d(inputs, kernel, 1, "VALID")
        return tf.add_n(
            [
                tf.pad(
                    tf.slice(tap, [0, row.start, column.start, 0], [-1, row.size, column.size, -1]),
                    [[0, 0], row.margins, column.margins, [0, 0]],
                )
                for tap, (row, column) in zip(tf.split(products, len(taps), axis=-1), seen)
            ]
        )


class _Seen(NamedTuple):
    """The part of an image's side that a tap reads, and the margins of its result; integers or scalar tensors."""

    start: Any
    size: Any
    before: Any
    after: Any

    @property
    def is_empty(self) -> bool:
        return isinstance(self.size, int) and self.size == 0

    @property
    def margins(self) -> list:
        return [self.before, self.after]


def _seen_from(offset: int, side) -> _Seen:
    at_least, at_most = (max, min) if isinstance(side, int) else (tf.maximum, tf.minimum)
    size = at_least(side - abs(offset), 0)
    before = at_most(max(-offset, 0), side)
    return _Seen(at_most(max(offset, 0), side), size, before, side - size - before)
