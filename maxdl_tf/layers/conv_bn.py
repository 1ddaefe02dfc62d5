"""Convolutions followed by batch normalization (architecture sections 1 and 2.5)."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.batch_norm import BatchNorm, NormFactory
from maxdl_tf.layers.recompute import recomputed
from maxdl_tf.layers.resize import spatial_size


class AtrousConv2D(keras.layers.Conv2D):
    """Convolution of stride 1 with holes between its taps, each of which is a matrix product on what it sees.

    TensorFlow's own cuts the image into rate^2 small ones, most of whose work is on their padding: at stride 16 a rate
    of 18 reaches over all of a small crop. Zeros are padded alike on all sides.
    """

    def __init__(self, filters: int, kernel_size: int, *, rate: int, **kwargs):
        super().__init__(filters, kernel_size, padding="same", **kwargs)
        self.rate = rate

    def convolution_op(self, inputs, kernel):
        height, width = spatial_size(inputs)
        offsets = [self.rate * (tap - (self.kernel_size[0] - 1) // 2) for tap in range(self.kernel_size[0])]
        outputs = []
        for row, vertical in enumerate(_seen_from(offset, height) for offset in offsets):
            for column, horizontal in enumerate(_seen_from(offset, width) for offset in offsets):
                if not (vertical.is_empty or horizontal.is_empty):
                    seen = tf.slice(
                        inputs,
                        tf.stack([0, vertical.start, horizontal.start, 0]),
                        tf.stack([-1, vertical.size, horizontal.size, -1]),
                    )
                    product = tf.nn.conv2d(seen, kernel[row : row + 1, column : column + 1], 1, "VALID")
                    margins = [[0, 0], [vertical.before, vertical.after], [horizontal.before, horizontal.after], [0, 0]]
                    outputs.append(tf.pad(product, margins))
        return tf.add_n(outputs)


class _Seen(NamedTuple):
    """The part of a side of an image that a tap sees, and the margins of its result; integers or scalar tensors."""

    start: Any
    size: Any
    before: Any
    after: Any

    @property
    def is_empty(self) -> bool:
        return isinstance(self.size, int) and self.size == 0


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
        self.rate = rate
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
        # What the taps see comes to several copies of the image; to cut them out again costs next to nothing.
        conv = recomputed(self.conv, when=self.rate > 1 and bool(training))
        x = self.batch_norm(conv(x), training=training)
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
    """Depthwise and then pointwise convolution, each with batch normalization and ReLU.

    With `recompute`, training keeps the input only, and computes the rest again for the gradient.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 5,
        *,
        norm: NormFactory = BatchNorm,
        recompute: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.recompute = recompute
        self.depthwise = DepthwiseConvBatchNorm(kernel_size, norm=norm, name="depthwise")
        self.pointwise = Conv2DBatchNorm(filters, relu=True, norm=norm, name="pointwise")

    def call(self, inputs, training=None):
        def run(inputs):
            return self.pointwise(self.depthwise(inputs, training=training), training=training)

        return recomputed(run, when=self.recompute and bool(training))(inputs)
