"""The encoder: stem, stages, and the memory that enters the first transformer (architecture sections 2 and 3)."""

from __future__ import annotations

import functools

import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers import activations
from maxdl_tf.layers.batch_norm import DEFAULT_NORM, Norm
from maxdl_tf.layers.configured import Layer
from maxdl_tf.layers.conv_bn import Conv2DBatchNorm
from maxdl_tf.layers.grid_seed import GridSeed
from maxdl_tf.layers.recompute import recomputed
from maxdl_tf.structs import AuxiliaryOutputs


class InceptionStem(Layer):
    """The stem of S: three 3x3 convolutions in place of ResNet's 7x7. The stem of L is one `Conv2DBatchNorm`.

    Image [batch, height, width, 3] -> un-activated [batch, height/2, width/2, 2 * channels].

    Args:
      channels: Number of channels of the first and second convolution.
      activation: Name of the activation after both.
      norm: Factory of the batch norms.
    """

    def __init__(self, channels: int, *, activation: str = "relu", norm: Norm = DEFAULT_NORM, **kwargs):
        super().__init__(**kwargs)
        self.conv1 = Conv2DBatchNorm(channels, 3, strides=2, activation=activation, norm=norm, name="conv1")
        self.conv2 = Conv2DBatchNorm(channels, 3, activation=activation, norm=norm, name="conv2")
        self.conv3 = Conv2DBatchNorm(2 * channels, 3, norm=norm, name="conv3")

    def call(self, inputs, training=None):
        x = self.conv1(inputs, training=training)
        x = self.conv2(x, training=training)
        return self.conv3(x, training=training)


class Stage(keras.layers.Layer):
    """A row of residual blocks at one stride, some followed by a dual-path transformer.

    Call with (pixel [batch, height, width, channels], un-activated; memory [batch, slots, memory channels], or None
    where no transformer reads it). Returns both, updated, and the transformers' `AuxiliaryOutputs`, if they make any.
    Has no config: `models.build` makes stages of variants.

    Args:
      blocks: Residual blocks by name, in order.
      transformers: Transformers by the name of the block that each follows.
      recompute: Classes of layers that are recomputed in training.

    Raises:
      ValueError: If a transformer follows no block.
    """

    def __init__(
        self,
        blocks: dict[str, keras.layers.Layer],
        transformers: dict[str, keras.layers.Layer],
        *,
        recompute: tuple[type, ...] = (),
        **kwargs,
    ):
        super().__init__(**kwargs)
        unknown = sorted(set(transformers) - set(blocks))
        if unknown:
            raise ValueError(f"transformers {unknown} follow no block; blocks are {sorted(blocks)}")
        self.blocks = dict(blocks)
        self.transformers = dict(transformers)
        self._recomputed = functools.partial(recomputed, kinds=recompute)

    def call(self, inputs, training=None):
        pixel, memory = inputs
        auxiliary: tuple[AuxiliaryOutputs, ...] = ()
        for name, block in self.blocks.items():
            pixel = self._recomputed(block)(pixel, training=training)
            if name in self.transformers:
                transformer = self._recomputed(self.transformers[name])
                pixel, memory, predicted = transformer((pixel, memory), training=training)
                auxiliary += predicted
        return pixel, memory, auxiliary


class Encoder(keras.layers.Layer):
    """Runs the stem and the stages. Models hold it as `backbone`, the name in checkpoints. Has no config, as `Stage`.

    Args:
      stem: Layer from an image [batch, height, width, 3] in -1..1 to an un-activated feature of stride 2.
      stages: Stages by name (`stage2`, ...), in order.
      memory_shape: (slots, channels of a slot) of the memory; None where no stage has a transformer.
      seed: Layer that adds the input of the first stage with transformers to the memory, or None.
      activation: Name of the activation of the blocks, which readers of the features apply.
      recompute: Classes of layers that are recomputed in training; decides about the stem.
    """

    def __init__(
        self,
        stem: keras.layers.Layer,
        stages: dict[str, Stage],
        *,
        memory_shape: tuple[int, int] | None,
        seed: GridSeed | None = None,
        activation: str = "relu",
        recompute: tuple[type, ...] = (),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.stem = stem
        self.stages = dict(stages)
        self.memory_shape, self.seed = memory_shape, seed
        self.activate = activations.get(activation)
        self._recomputed = functools.partial(recomputed, kinds=recompute)

    def build(self, input_shape):
        if self.memory_shape is not None:
            initializer = keras.initializers.TruncatedNormal(stddev=1.0)
            self.memory = self.add_weight("memory", (1, *self.memory_shape), initializer=initializer)
        super().build(input_shape)

    def call(self, inputs, training=None):
        """Runs stem and stages.

        Returns:
          (un-activated output of each stage by name, memory [batch, slots, channels] or None, `AuxiliaryOutputs` of the
          transformers). `stage1` is the stem's output where no stage has that name.
        """
        pixel = self._recomputed(self.stem)(inputs, training=training)
        memory = tf.tile(self.memory, [tf.shape(inputs)[0], 1, 1]) if self.memory_shape is not None else None
        features, auxiliary = {"stage1": pixel}, ()
        seeded = next((name for name, stage in self.stages.items() if stage.transformers), None)
        for name, stage in self.stages.items():
            if self.seed is not None and name == seeded:
                memory = self.seed((pixel, memory), training=training)
            pixel, memory, predicted = stage((pixel, memory), training=training)
            features[name] = pixel
            auxiliary += predicted
        return features, memory, auxiliary
