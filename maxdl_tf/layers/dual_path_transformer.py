"""The layer in which pixels and memory read each other (paper section 3.3, architecture section 2.3).

With a predictor, the memory reads the pixels by k-means (kMaX-DeepLab, arXiv 2207.04044, section 3.2).
"""

from __future__ import annotations

import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers import activations
from maxdl_tf.layers.batch_norm import DEFAULT_NORM, Norm
from maxdl_tf.layers.configured import Layer
from maxdl_tf.layers.conv_bn import Conv1DBatchNorm
from maxdl_tf.layers.dropout import DropPath
from maxdl_tf.layers.positions import with_positions
from maxdl_tf.layers.resize import spatial_size


class CrossAttention(Layer):
    """Multi-head attention with batch norms on similarities and retrieved values, and an activation at the end.

    Call with (query [batch, n, heads, depth], key [batch, m, heads, depth], value [batch, m, heads, value depth]).
    Returns [batch, n, heads * value depth], heads in order.
    """

    def __init__(self, *, activation: str = "relu", norm: Norm = DEFAULT_NORM, **kwargs):
        super().__init__(**kwargs)
        self.activate = activations.get(activation)
        self.batch_norm_similarity = norm(axis=1, name="batch_norm_similarity")
        self.batch_norm_retrieved_value = norm(axis=(1, 3), name="batch_norm_retrieved_value")

    def build(self, input_shape):
        *_, heads, depth = input_shape[2]
        with tf.name_scope(self.batch_norm_retrieved_value.name):
            self.batch_norm_retrieved_value.build([None, heads, None, depth])
        super().build(input_shape)

    def call(self, inputs, training=None):
        query, key, value = inputs
        similarity = tf.einsum("bnhd,bmhd->bhnm", query, key)
        similarity = self.batch_norm_similarity(similarity, training=training)
        attention = activations.softmax(similarity)
        retrieved = tf.einsum("bhnm,bmhd->bnhd", attention, value)
        length = tf.shape(query)[1] if query.shape[1] is None else query.shape[1]
        retrieved = tf.reshape(retrieved, [-1, length, value.shape[2] * value.shape[3]])
        return self.activate(self.batch_norm_retrieved_value.of_channels(retrieved, training))


class DualPathTransformer(Layer):
    """Memory reads pixels and itself; pixels read memory. Follows a residual block, the pixels' own attention.

    Call with (pixel [batch, height, width, channels], un-activated; memory [batch, slots, memory channels]). Returns
    both, updated, and a tuple of the predictor's `AuxiliaryOutputs`, empty without one. Has no projections for an
    attention that is switched off.

    Args:
      width: Number of channels of queries and keys over all heads; values and bottlenecks have twice as many.
      ffn_channels: Number of hidden channels of the memory's feed-forward network.
      num_heads: Number of heads; must divide `width`.
      memory_to_pixel: Whether memory queries the pixels.
      memory_to_memory: Whether memory queries the memory, in one softmax with the pixels.
      pixel_to_memory: Whether pixels query the memory (as it was before this layer): the feedback.
      predictor: Layer from (pixel [batch, height, width, 2 * width], memory [batch, slots, 2 * width]), both projected,
        to (`AuxiliaryOutputs`, anything). If given, memory reads pixels by k-means instead of attention: each pixel
        belongs to the slot of its greatest mask logit, and each slot gets the sum of its pixels' values.
      position_octaves: Number of octaves of the positions (`with_positions`) from which pixels are projected, too.
      activation: Name of the activation.
      drop_path_keep: Probability that a sample keeps a residual branch, drawn for each branch.
      norm: Factory of the batch norms.

    Raises:
      ValueError: If `num_heads` does not divide `width`, or there is a predictor but no `memory_to_pixel`.
    """

    def __init__(
        self,
        width: int,
        ffn_channels: int,
        *,
        num_heads: int = 8,
        memory_to_pixel: bool = True,
        memory_to_memory: bool = True,
        pixel_to_memory: bool = True,
        predictor: keras.layers.Layer | None = None,
        position_octaves: int = 0,
        activation: str = "relu",
        drop_path_keep: float = 1.0,
        norm: Norm = DEFAULT_NORM,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if width % num_heads:
            raise ValueError(f"transformer width {width} must be a multiple of num_heads {num_heads}")
        if predictor is not None and not memory_to_pixel:
            raise ValueError("k-means is a kind of memory_to_pixel, which is off; switch it on, or give no predictor")
        self.width, self.ffn_channels, self.num_heads, self.norm = width, ffn_channels, num_heads, norm
        self.activation, self.activate = activation, activations.get(activation)
        self.memory_to_pixel = memory_to_pixel and predictor is None
        self.memory_to_memory = memory_to_memory
        self.pixel_to_memory = pixel_to_memory
        self.predictor = predictor
        self.position_octaves = position_octaves
        self.memory_parts = _parts(self.memory_to_pixel or memory_to_memory, memory_to_memory or pixel_to_memory)
        self.pixel_parts = _parts(pixel_to_memory, self.memory_to_pixel)
        self.memory_drop_path, self.ffn_drop_path, self.pixel_drop_path, self.kmeans_drop_path = (
            DropPath(drop_path_keep) for _ in range(4)
        )

    def build(self, input_shape):
        with self.own_precision():
            self._make_layers(*(shape[-1] for shape in input_shape))
        super().build(input_shape)

    def _make_layers(self, pixel_channels: int, memory_channels: int):
        if self.memory_parts or self.predictor is not None:
            self.memory_reduce = self._reduce("memory_reduce")
        if self.memory_parts:
            self.memory_qkv = self._qkv("memory_qkv", self.memory_parts)
        if self.pixel_parts or self.predictor is not None:
            self.pixel_reduce = self._reduce("pixel_reduce")
        if self.pixel_parts:
            self.pixel_qkv = self._qkv("pixel_qkv", self.pixel_parts)
        last = {"gamma_initializer": "zeros", "norm": self.norm}  # Residual branches start at zero.
        if "query" in self.memory_parts:
            self.memory_attention = CrossAttention(**self._common, name="memory_attention")
            self.memory_expand = Conv1DBatchNorm(memory_channels, **last, name="memory_expand")
        if "query" in self.pixel_parts:
            self.pixel_attention = CrossAttention(**self._common, name="pixel_attention")
            self.pixel_expand = Conv1DBatchNorm(pixel_channels, **last, name="pixel_expand")
        if self.predictor is not None:
            self.pixel_value = self._qkv("pixel_value", ("value",))
            self.kmeans_batch_norm = self.norm(name="kmeans_batch_norm")
            self.kmeans_expand = Conv1DBatchNorm(memory_channels, **last, name="kmeans_expand")
        self.memory_ffn1 = Conv1DBatchNorm(self.ffn_channels, **self._common, name="memory_ffn1")
        self.memory_ffn2 = Conv1DBatchNorm(memory_channels, **last, name="memory_ffn2")

    @property
    def _common(self):
        return {"activation": self.activation, "norm": self.norm}

    def _reduce(self, name: str) -> Conv1DBatchNorm:
        return Conv1DBatchNorm(2 * self.width, **self._common, name=name)

    def _qkv(self, name: str, parts: tuple[str, ...]) -> Conv1DBatchNorm:
        """The joint projection to `parts`."""
        initializer = keras.initializers.TruncatedNormal(stddev=(2 * self.width) ** -0.5)
        channels = sum(self._depth(part) for part in parts)
        return Conv1DBatchNorm(channels, kernel_initializer=initializer, norm=self.norm, name=name)

    def call(self, inputs, training=None):
        pixel, memory = inputs
        height, width = spatial_size(pixel)
        of_memory, of_pixel = {}, {}  # Query, key and value of each, as far as they are read.
        if self.memory_parts or self.predictor is not None:
            reduced_memory = self.memory_reduce(memory, training=training)
        if self.memory_parts:
            of_memory = self._split(self.memory_qkv(reduced_memory, training=training), self.memory_parts)
        if self.pixel_parts or self.predictor is not None:
            pixels = with_positions(self.activate(pixel), self.position_octaves)
            pixels = tf.reshape(pixels, [-1, height * width, pixels.shape[-1]])
            reduced_pixel = self.pixel_reduce(pixels, training=training)
        if self.pixel_parts:
            of_pixel = self._split(self.pixel_qkv(reduced_pixel, training=training), self.pixel_parts)

        auxiliary = ()
        if self.predictor is not None:
            feature = tf.reshape(reduced_pixel, [-1, height, width, 2 * self.width])
            predicted, _ = self.predictor((feature, reduced_memory), training=training)
            auxiliary = (predicted,)
            update = sum_of_clusters(predicted.mask_logits, self.pixel_value(reduced_pixel, training=training))
            update = self.kmeans_expand(self.kmeans_batch_norm(update, training=training), training=training)
            memory += self.kmeans_drop_path(update, training)
        if "query" in of_memory:
            read = [of_pixel] * self.memory_to_pixel + [of_memory] * self.memory_to_memory
            key, value = (tf.concat([parts[name] for parts in read], axis=1) for name in ("key", "value"))
            update = self.memory_attention((of_memory["query"], key, value), training=training)
            update = self.memory_expand(update, training=training)
            memory += self.memory_drop_path(update, training)
        if "query" in of_memory or self.predictor is not None:
            memory = self.activate(memory)
        update = self.memory_ffn2(self.memory_ffn1(memory, training=training), training=training)
        memory = self.activate(memory + self.ffn_drop_path(update, training))

        if "query" in of_pixel:
            read = (of_pixel["query"], of_memory["key"], of_memory["value"])
            update = self.pixel_expand(self.pixel_attention(read, training=training), training=training)
            update = tf.reshape(update, [-1, height, width, pixel.shape[-1]])
            pixel = pixel + self.pixel_drop_path(update, training)
        return pixel, memory, auxiliary

    def _depth(self, part: str) -> int:
        return 2 * self.width if part == "value" else self.width

    def _split(self, qkv, parts: tuple[str, ...]) -> dict:
        """The parts of a joint projection, each [batch, length, heads, depth]."""
        length = tf.shape(qkv)[1] if qkv.shape[1] is None else qkv.shape[1]
        return {
            part: tf.reshape(depths, [-1, length, self.num_heads, self._depth(part) // self.num_heads])
            for part, depths in zip(parts, tf.split(qkv, [self._depth(part) for part in parts], axis=-1))
        }


def sum_of_clusters(mask_logits, values) -> tf.Tensor:
    """The sum of the values of each slot's pixels, where each pixel belongs to the slot of its greatest logit.

    No gradient flows through the choice (kMaX-DeepLab equation 9). Among equal logits, the first slot wins.

    Args:
      mask_logits: [batch, height, width, slots].
      values: [batch, height * width, channels].

    Returns:
      [batch, slots, channels], in the type of `values`.
    """
    height, width = spatial_size(mask_logits)
    slot = tf.reshape(tf.argmax(mask_logits, axis=-1, output_type=tf.int32), [-1, height * width])
    assignment = tf.one_hot(slot, mask_logits.shape[-1], dtype=values.dtype)  # [batch, pixels, slots]
    return tf.matmul(assignment, values, transpose_a=True)


def _parts(queries: bool, is_queried: bool) -> tuple[str, ...]:
    """The parts that a path is projected to, in the order of the joint projection."""
    return ("query",) * queries + ("key", "value") * is_queried
