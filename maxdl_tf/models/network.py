"""The common base of the networks: tracing, saving, and the normalization of images."""

from __future__ import annotations

import tensorflow as tf

from maxdl_tf.keras_api import keras


class Network(keras.Model):
    """A Keras model made of ready-made parts.

    AutoGraph leaves it alone: there is nothing to convert, and searching all of Keras takes most of a trace's time.
    The model has no config, so Keras can save its weights but not the model itself.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)  # Images are normalized in float32 first.

    @tf.autograph.experimental.do_not_convert
    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)

    @tf.autograph.experimental.do_not_convert
    def build(self, input_shape):
        super().build(input_shape)

    def get_config(self):
        raise NotImplementedError(
            f"{type(self).__name__} has no Keras config: an experiment describes it. Build the model with "
            "maxdl_tf.build_model(experiment), save its weights with model.save_weights or "
            "tf.train.Checkpoint(model=model), and export it with maxdl-export"
        )

    def save(self, *args, **kwargs):
        """Raises NotImplementedError: Keras could not load what it would write."""
        self.get_config()


def normalized(images) -> tf.Tensor:
    """Images [batch, height, width, 3] of 0..255 as float32 of -1..1.

    Raises:
      ValueError: If there are not four dimensions, or a known side is not 16k+1.
    """
    _check_sides(images.shape)
    return tf.cast(images, tf.float32) / 127.5 - 1.0


def _check_sides(shape):
    shape = tf.TensorShape(shape)
    if shape.rank is not None and shape.rank != 4:
        raise ValueError(
            f"images of shape {shape}: wanted [batch, height, width, 3]; give a single image a batch dimension with "
            "images[np.newaxis]"
        )
    for side in shape[1:3]:
        if side is not None and side % 16 != 1:
            below = max(side - 2, 16) // 16 * 16 + 1
            raise ValueError(
                f"images of {shape[1]} x {shape[2]}: each side must be 16k+1 so that features stay aligned; "
                f"pad or resize, for example {side} to {below + 16 if side > below else below}"
            )
