"""Heads: from features and memory to pixel features, masks, classes and semantic logits (architecture section 4)."""

from __future__ import annotations

import math

import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.aspp import ASPP
from maxdl_tf.layers.batch_norm import DEFAULT_NORM, Norm
from maxdl_tf.layers.configured import Layer
from maxdl_tf.layers.conv_bn import Conv1DBatchNorm, Conv2DBatchNorm, SeparableConvBatchNorm
from maxdl_tf.layers.convolutions import PointwiseConv2D
from maxdl_tf.layers.positions import with_positions
from maxdl_tf.layers.resize import resize_bilinear, spatial_size
from maxdl_tf.structs import AuxiliaryOutputs


def _last_convolution(channels: int, name: str, dtype: str | None = None) -> keras.layers.Conv2D:
    initializer = keras.initializers.TruncatedNormal(stddev=0.01)
    return PointwiseConv2D(channels, 1, kernel_initializer=initializer, name=name, dtype=dtype)


def _hidden_layer(channels: int | None, activation: str, norm: Norm) -> Conv1DBatchNorm | None:
    return Conv1DBatchNorm(channels, activation=activation, norm=norm, name="hidden") if channels else None


class PixelHead(Layer):
    """Feature [batch, height, width, in] -> L2-normalized pixel features [batch, height, width, mask channels].

    Args:
      hidden_channels: Number of channels of the layer before the projection.
      mask_channels: Number of channels of the pixel features.
      position_octaves: Number of octaves of the positions (`with_positions`) that the projection reads, too.
      activation: Name of the activation of the layer before the projection.
      norm: Factory of the batch norms.
    """

    def __init__(
        self,
        hidden_channels: int,
        mask_channels: int,
        *,
        position_octaves: int = 0,
        activation: str = "relu",
        norm: Norm = DEFAULT_NORM,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.position_octaves = position_octaves
        self.conv = SeparableConvBatchNorm(hidden_channels, activation=activation, norm=norm, name="conv")
        self.projection = _last_convolution(mask_channels, "projection")
        self.batch_norm = norm(name="batch_norm")

    def call(self, inputs, training=None):
        x = with_positions(self.conv(inputs, training=training), self.position_octaves)
        x = self.projection(x)
        x = self.batch_norm(tf.cast(x, tf.float32), training=training)
        return tf.math.l2_normalize(x, axis=-1, epsilon=1e-12)


class MaskHead(Layer):
    """(pixel features g, memory) -> (mask logits f . g, mask embeddings f of the memory).

    The logits are [batch, height, width, slots], the embeddings [batch, slots, mask channels].

    Args:
      hidden_channels: Number of channels of the layer before the embedding; None for no such layer.
      mask_channels: Number of channels of the embeddings.
      activation: Name of the activation of the hidden layer.
      norm: Factory of the batch norms.
    """

    def __init__(
        self,
        hidden_channels: int | None,
        mask_channels: int,
        *,
        activation: str = "relu",
        norm: Norm = DEFAULT_NORM,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)  # The pixel features stay float32.
        self.hidden = _hidden_layer(hidden_channels, activation, norm)
        self.embedding = Conv1DBatchNorm(mask_channels, norm=norm, name="embedding")
        # One scale for all pixels and slots; it starts at 0.1 so that masks begin soft.
        self.batch_norm = norm(gamma_initializer=keras.initializers.Constant(0.1), name="batch_norm")

    def call(self, inputs, training=None):
        pixel_feature, memory = inputs
        if self.hidden is not None:
            memory = self.hidden(memory, training=training)
        embedding = tf.cast(self.embedding(memory, training=training), tf.float32)
        logits = tf.einsum("bhwd,bnd->bhwn", pixel_feature, embedding)
        return self.batch_norm(logits[..., tf.newaxis], training=training)[..., 0], embedding


class ClassHead(Layer):
    """Memory -> class logits [batch, slots, num_classes + 1], void last. The arguments are those of `MaskHead`."""

    def __init__(
        self,
        hidden_channels: int | None,
        num_classes: int,
        *,
        activation: str = "relu",
        norm: Norm = DEFAULT_NORM,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.hidden = _hidden_layer(hidden_channels, activation, norm)
        initializer = keras.initializers.TruncatedNormal(stddev=0.01)
        self.logits = keras.layers.Conv1D(
            num_classes + 1, 1, kernel_initializer=initializer, name="logits", dtype="float32"
        )
        # A constant that gives void a probability of 0.9 where the other logits are 0, because most slots are void.
        self.void_offset = [0.0] * num_classes + [math.log(num_classes * 0.9 / 0.1)]

    def call(self, inputs, training=None):
        hidden = inputs if self.hidden is None else self.hidden(inputs, training=training)
        logits = self.logits(hidden)
        return logits + tf.constant(self.void_offset, logits.dtype)


class ClusteringPredictor(Layer):
    """The three panoptic heads of kMaX-DeepLab, at the end of the network and in each transformer.

    Call with (pixel [batch, height, width, in], memory [batch, slots, memory channels]), or with (pixel, memory for
    classes, memory for masks). Returns (`AuxiliaryOutputs`, mask embeddings [batch, slots, mask channels]).

    Args:
      num_classes: Number of classes without void.
      pixel_head_channels: Number of hidden channels of the pixel head.
      mask_channels: Number of channels of pixel features and mask embeddings.
      position_octaves: As of `PixelHead`.
      activation: Name of the activation.
      norm: Factory of the batch norms.
    """

    def __init__(
        self,
        num_classes: int,
        pixel_head_channels: int,
        mask_channels: int,
        *,
        position_octaves: int = 0,
        activation: str = "gelu",
        norm: Norm = DEFAULT_NORM,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        common = {"activation": activation, "norm": norm}
        positions = {"position_octaves": position_octaves}
        self.pixel_head = PixelHead(pixel_head_channels, mask_channels, **positions, **common, name="pixel_head")
        self.mask_head = MaskHead(None, mask_channels, norm=norm, name="mask_head")
        self.class_head = ClassHead(None, num_classes, norm=norm, name="class_head")

    def call(self, inputs, training=None):
        pixel, class_memory, mask_memory = inputs if len(inputs) == 3 else (*inputs, inputs[1])
        pixel_feature = self.pixel_head(pixel, training=training)
        mask_logits, mask_embedding = self.mask_head((pixel_feature, mask_memory), training=training)
        class_logits = self.class_head(class_memory, training=training)
        return AuxiliaryOutputs(pixel_feature, mask_logits, class_logits), mask_embedding


class SemanticDecoder(Layer):
    """(output of `aspp`, activated features of strides 8 and 4) -> activated [batch, height/4, width/4, channels].

    Precedes the semantic head where the feature that the branch reads is at stride 16. The caller runs `aspp` first, by
    itself, so that the inside of only one of them is in memory when they are recomputed.

    Args:
      channels: Number of output channels.
      aspp: Pyramid on the feature of stride 16.
      low_level_channels: Numbers of channels to which the features of strides 8 and 4 are reduced.
      activation: Name of the activation.
      norm: Factory of the batch norms.
    """

    def __init__(
        self,
        channels: int,
        aspp: ASPP,
        low_level_channels: tuple[int, int],
        *,
        activation: str = "relu",
        norm: Norm = DEFAULT_NORM,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.aspp = aspp
        common = {"activation": activation, "norm": norm}
        self.low_level1, self.low_level2 = (
            Conv2DBatchNorm(low, **common, name=f"low_level{number}")
            for number, low in enumerate(low_level_channels, start=1)
        )
        self.fusion1 = SeparableConvBatchNorm(channels, **common, name="fusion1")
        self.fusion2 = SeparableConvBatchNorm(channels, **common, name="fusion2")

    def call(self, inputs, training=None):
        x, stride8, stride4 = inputs
        for low_level, reduce, fusion in (
            (stride8, self.low_level1, self.fusion1),
            (stride4, self.low_level2, self.fusion2),
        ):
            x = resize_bilinear(x, spatial_size(low_level))
            x = fusion(tf.concat([x, reduce(low_level, training=training)], axis=-1), training=training)
        return x


class SemanticHead(Layer):
    """Feature [batch, height, width, in] -> semantic logits [batch, height, width, semantic channels]."""

    def __init__(
        self,
        hidden_channels: int,
        num_channels: int,
        *,
        activation: str = "relu",
        norm: Norm = DEFAULT_NORM,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.conv = SeparableConvBatchNorm(hidden_channels, activation=activation, norm=norm, name="conv")
        self.logits = _last_convolution(num_channels, "logits", dtype="float32")

    def call(self, inputs, training=None):
        return self.logits(self.conv(inputs, training=training))
