"""Convolutions followed by batch normalization (architecture sections 1 and 2.5)."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.batch_norm import BatchNorm, NormFactory
from maxdl_tf.layers.resize import spatial_size


class AtrousConv2D(keras.layers.Conv2D):
    """Convolution of stride 1 with holes between its taps, all of which are one matrix product.

    TensorFlow's own cuts the image into rate^2 small ones, most of whose work is on their padding: at stride 16 a rate
    of 18 reaches over all of a small crop. What the taps make of the inputs is shifted, not the inputs, which have
    more channels where rates are high. Zeros are padded alike on all sides.
    """

    def __init__(self, filters: int, kernel_size: int, *, rate: int, **kwargs):
        super().__init__(filters, kernel_size, padding="same", **kwargs)
        self.rate = rate

    def convolution_op(self, inputs, kernel):
        offsets = [self.rate * (tap - (self.kernel_size[0] - 1) // 2) for tap in range(self.kernel_size[0])]
        rows, columns = ([_seen_from(offset, side) for offset in offsets] for side in spatial_size(inputs))
        taps, seen = [], []
        with tf.control_dependencies([inputs]):  # Recomputed, they would be made long before they are needed.
            for row, row_kernel in zip(rows, tf.unstack(kernel)):
                for column, tap in zip(columns, tf.unstack(row_kernel)):
                    if not (row.is_empty or column.is_empty):
                        taps.append(tap)
                        seen.append((row, column))
        products = tf.nn.conv2d(inputs, tf.concat(taps, axis=-1)[tf.newaxis, tf.newaxis], 1, "VALID")
        return tf.add_n(
            [
                tf.pad(
                    tf.slice(product, [0, row.start, column.start, 0], [-1, row.size, column.size, -1]),
                    [[0, 0], row.margins, column.margins, [0, 0]],
                )
                for product, (row, column) in zip(tf.split(products, len(taps), axis=-1), seen)
            ]
        )


class _Seen(NamedTuple):
    """The part of a side of an image that a tap sees, and the margins of its result; integers or scalar tensors."""

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


class Conv2DBatchNorm(keras.layers.Layer):
    """Convolution without bias, batch normalization and, if asked for, ReLU.

    Zeros are padded alike on all sides, so that strided outputs sample the pixels 0, 2, 4, ... and features of
    size 16k+1 stay aligned at their corners. [batch, height, width, in] -> [batch, ceil(height/strides),
    ceil(width/strides), filters].
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 1,
        *,
        strides: int = 1,
        rate: int = 1,
        relu: bool = False,
        gamma_initializer: Any = "ones",
        norm: NormFactory = BatchNorm,
        **kwargs,
    ):
        super().__init__(**kwargs)
        # "same" pads odd kernels symmetrically only where the stride is 1.
        self.padding = (kernel_size - 1) // 2 if strides > 1 else 0
        self.relu = relu
        common = {"use_bias": False, "kernel_initializer": "he_normal", "name": "conv"}
        if rate > 1:
            if strides > 1:
                raise ValueError(f"rate {rate} and strides {strides}: a convolution has either; set one of them to 1")
            self.conv = AtrousConv2D(filters, kernel_size, rate=rate, **common)
        else:
            padding = "same" if strides == 1 else "valid"
            self.conv = keras.layers.Conv2D(filters, kernel_size, strides=strides, padding=padding, **common)
        self.batch_norm = norm(gamma_initializer=gamma_initializer, name="batch_norm")

    def call(self, inputs, training=None):
        x = inputs
        if self.padding:
            margin = (self.padding, self.padding)
            x = tf.pad(x, ((0, 0), margin, margin, (0, 0)))
        x = self.batch_norm(self.conv(x), training=training)
        return tf.nn.relu(x) if self.relu else x


class Conv1DBatchNorm(keras.layers.Layer):
    """Linear map of each position without bias, batch normalization and, if asked for, ReLU.

    [batch, length, in] -> [batch, length, filters].
    """

    def __init__(
        self,
        filters: int,
        *,
        relu: bool = False,
        gamma_initializer: Any = "ones",
        kernel_initializer: Any = "he_normal",
        norm: NormFactory = BatchNorm,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.relu = relu
        self.conv = keras.layers.Conv1D(filters, 1, use_bias=False, kernel_initializer=kernel_initializer, name="conv")
        self.batch_norm = norm(gamma_initializer=gamma_initializer, name="batch_norm")

    def call(self, inputs, training=None):
        x = self.batch_norm(self.conv(inputs), training=training)
        return tf.nn.relu(x) if self.relu else x


class DepthwiseConvBatchNorm(keras.layers.Layer):
    """Depthwise convolution of stride 1 without bias, batch normalization and ReLU."""

    def __init__(self, kernel_size: int, *, norm: NormFactory = BatchNorm, **kwargs):
        super().__init__(**kwargs)
        self.conv = keras.layers.DepthwiseConv2D(kernel_size, padding="same", use_bias=False, name="conv")
        self.batch_norm = norm(name="batch_norm")

    def call(self, inputs, training=None):
        return tf.nn.relu(self.batch_norm(self.conv(inputs), training=training))


class SeparableConvBatchNorm(keras.layers.Layer):
    """Depthwise and then pointwise convolution, each with batch normalization and ReLU."""

    def __init__(
        self,
        filters: int,
        kernel_size: int = 5,
        *,
        norm: NormFactory = BatchNorm,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.depthwise = DepthwiseConvBatchNorm(kernel_size, norm=norm, name="depthwise")
        self.pointwise = Conv2DBatchNorm(filters, relu=True, norm=norm, name="pointwise")

    def call(self, inputs, training=None):
        return self.pointwise(self.depthwise(inputs, training=training), training=training)
