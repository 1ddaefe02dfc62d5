"""The encoder: stem and stages, and the memory that starts its way through the transformers."""

from __future__ import annotations

import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.stage import Stage


class Backbone(keras.layers.Layer):
    """Runs the stem and the stages.

    Args:
      stem: From an image [batch, height, width, 3] in -1..1 to an un-activated feature of stride 2.
      stages: In order, by name (`stage2`, ...).
      memory_shape: (slots, channels of each) of the memory; None: there is none, and no stage has a transformer.
    """

    def __init__(
        self, stem: keras.layers.Layer, stages: dict[str, Stage], *, memory_shape: tuple[int, int] | None, **kwargs
    ):
        super().__init__(**kwargs)
        self.stem = stem
        self.stages = dict(stages)
        self.memory_shape = memory_shape

    def build(self, input_shape):
        if self.memory_shape is not None:
            initializer = keras.initializers.TruncatedNormal(stddev=1.0)
            self.memory = self.add_weight("memory", (1, *self.memory_shape), initializer=initializer)
        super().build(input_shape)

    def call(self, inputs, training=None):
        """Returns (features: un-activated output of each stage by name, memory [batch, slots, channels] or None)."""
        pixel = self.stem(inputs, training=training)
        memory = tf.tile(self.memory, [tf.shape(inputs)[0], 1, 1]) if self.memory_shape is not None else None
        features = {}
        for name, stage in self.stages.items():
            pixel, memory = stage((pixel, memory), training=training)
            features[name] = pixel
        return features, memory
