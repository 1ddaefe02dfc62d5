"""What the networks share: how they are traced, and what they make of an image first."""

from __future__ import annotations

import tensorflow as tf

from maxdl_tf.keras_api import keras


class Network(keras.Model):
    """A Keras model that AutoGraph leaves alone.

    It has nothing to find in one, and looking through all of Keras would take most of the time of a trace.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)  # Images are normalized in float32 first.

    @tf.autograph.experimental.do_not_convert
    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)

    @tf.autograph.experimental.do_not_convert
    def build(self, input_shape):
        super().build(input_shape)


def normalized(images) -> tf.Tensor:
    """Images [batch, height, width, 3] of 0..255 as float32 of -1..1.

    Raises:
      ValueError: If a known side is not 16k+1.
    """
    _check_sides(images.shape)
    return tf.cast(images, tf.float32) / 127.5 - 1.0


def _check_sides(shape):
    for side in shape[1:3]:
        if side is not None and side % 16 != 1:
            below = max(side - 2, 16) // 16 * 16 + 1
            raise ValueError(
                f"images of {shape[1]} x {shape[2]}: each side must be 16k+1 so that features stay aligned; "
                f"pad or resize, for example {side} to {below + 16 if side > below else below}"
            )
