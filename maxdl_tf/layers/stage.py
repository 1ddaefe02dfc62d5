"""A row of residual blocks at one stride, some followed by a dual-path transformer."""

from __future__ import annotations

from maxdl_tf.keras_api import keras


class Stage(keras.layers.Layer):
    """Runs blocks in order; where `transformers` has one of the same name, it follows the block.

    Call with (pixel [batch, height, width, channels], un-activated; memory [batch, slots, memory channels], or
    None where there is no transformer); returns both, updated.
    """

    def __init__(self, blocks: dict[str, keras.layers.Layer], transformers: dict[str, keras.layers.Layer], **kwargs):
        super().__init__(**kwargs)
        unknown = sorted(set(transformers) - set(blocks))
        if unknown:
            raise ValueError(f"transformers {unknown} follow no block; blocks are {sorted(blocks)}")
        self.blocks = dict(blocks)
        self.transformers = dict(transformers)

    def call(self, inputs, training=None):
        pixel, memory = inputs
        for name, block in self.blocks.items():
            pixel = block(pixel, training=training)
            if name in self.transformers:
                pixel, memory = self.transformers[name]((pixel, memory), training=training)
        return pixel, memory
