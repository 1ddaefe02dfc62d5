"""The transformer decoder of kMaX-DeepLab: the memory reads features of growing size (architecture section 16.3)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.batch_norm import DEFAULT_NORM, Norm
from maxdl_tf.layers.conv_bn import Conv1DBatchNorm
from maxdl_tf.layers.dual_path_transformer import DualPathTransformer
from maxdl_tf.layers.grid_seed import GridSeed
from maxdl_tf.layers.recompute import recomputed


class TransformerDecoder(keras.layers.Layer):
    """Transformers with k-means, several for each feature, and the projections of the memory at the end.

    Call with un-activated features [batch, height, width, channels]. Returns (memory for classes and memory for masks,
    both [batch, slots, channels of a slot]; `AuxiliaryOutputs` of each transformer at the size of its feature). Has no
    config: `models.build` makes it of a variant.

    Args:
      transformers: Transformers in order.
      sources: Number of the feature that each of them reads.
      memory_shape: (slots, channels of a slot).
      seed: Layer that adds the last feature with a transformer to the initial memory, or None.
      activation: Name of the activation of the projections.
      norm: Factory of the batch norms.
      recompute: Classes of layers that are recomputed in training.
    """

    def __init__(
        self,
        transformers: Sequence[DualPathTransformer],
        sources: Sequence[int],
        *,
        memory_shape: tuple[int, int],
        seed: GridSeed | None = None,
        activation: str = "gelu",
        norm: Norm = DEFAULT_NORM,
        recompute: tuple[type, ...] = (),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.transformers = {str(number): transformer for number, transformer in enumerate(transformers)}
        self.sources = tuple(sources)
        self.memory_shape, self.seed = memory_shape, seed
        common = {"activation": activation, "norm": norm}
        self.class_projection = Conv1DBatchNorm(memory_shape[1], **common, name="class_projection")
        self.mask_projection = Conv1DBatchNorm(memory_shape[1], **common, name="mask_projection")
        self._recomputed = functools.partial(recomputed, kinds=recompute)

    def build(self, input_shape):
        initializer = keras.initializers.TruncatedNormal(stddev=1.0)
        self.memory = self.add_weight("memory", (1, *self.memory_shape), initializer=initializer)
        super().build(input_shape)

    def call(self, features, training=None):
        memory = tf.tile(self.memory, [tf.shape(features[0])[0], 1, 1])
        if self.seed is not None:
            memory = self.seed((features[self.sources[-1]], memory), training=training)
        auxiliary = ()
        for transformer, source in zip(self.transformers.values(), self.sources):
            inputs = (features[source], memory)
            _, memory, predicted = self._recomputed(transformer)(inputs, training=training)
            auxiliary += predicted
        memories = tuple(
            projection(memory, training=training) for projection in (self.class_projection, self.mask_projection)
        )
        return memories, auxiliary
