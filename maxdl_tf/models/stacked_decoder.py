"""The decoder that takes the feature up to stride 4, by way of hourglasses in the large variant (paper section 3.3)."""

from __future__ import annotations

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.resize import size_at_stride
from maxdl_tf.layers.resized_fuse import ResizedFuse
from maxdl_tf.layers.stage import Stage
from maxdl_tf.models.decoder_schedule import DecoderStep


class StackedDecoder(keras.layers.Layer):
    """Runs the steps of a `decoder_schedule`.

    Args:
      schedule: The steps, in order.
      fuses: The node of each step that has sources, by the step's name.
      stages: The blocks of each step, by its name.
    """

    def __init__(
        self, schedule: tuple[DecoderStep, ...], fuses: dict[str, ResizedFuse], stages: dict[str, Stage], **kwargs
    ):
        super().__init__(**kwargs)
        self.schedule = schedule
        self.fuses = dict(fuses)
        self.stages = dict(stages)

    def call(self, inputs, size, training=None):
        """Runs all steps.

        Args:
          inputs: (features of the backbone by name, memory); the last feature, `stage5`, is where the steps start.
          size: (height, width) of the image.
          training: Whether batch norms and drop path are in training.

        Returns:
          (the features and every step's output by name, un-activated; memory).
        """
        features, memory = inputs
        features = dict(features)
        current = features["stage5"]
        for step in self.schedule:
            if step.sources:
                sources = [current, *(features[name] for name in step.sources)]
                current = self.fuses[step.name](sources, size_at_stride(size, step.stride), training=training)
            current, memory = self.stages[step.name]((current, memory), training=training)
            features[step.name] = current
        return features, memory
