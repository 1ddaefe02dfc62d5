"""The layer in which pixels and memory read each other (paper section 3.2, architecture section 2.3)."""

from __future__ import annotations

import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.batch_norm import BatchNorm, NormFactory
from maxdl_tf.layers.conv_bn import Conv1DBatchNorm
from maxdl_tf.layers.drop_path import DropPath
from maxdl_tf.layers.recompute import recomputed
from maxdl_tf.layers.resize import spatial_size


class CrossAttention(keras.layers.Layer):
    """Multi-head attention with batch norms on similarities and retrieved values, and ReLU at the end.

    Call with (query [batch, n, heads, depth], key [batch, m, heads, depth], value [batch, m, heads, value depth]);
    returns [batch, n, heads * value depth], heads in order.
    """

    def __init__(self, *, norm: NormFactory = BatchNorm, **kwargs):
        super().__init__(**kwargs)
        self.batch_norm_similarity = norm(axis=1, name="batch_norm_similarity")
        self.batch_norm_retrieved_value = norm(axis=(1, 3), name="batch_norm_retrieved_value")

    def call(self, inputs, training=None):
        query, key, value = inputs
        similarity = tf.einsum("bnhd,bmhd->bhnm", query, key)
        similarity = self.batch_norm_similarity(similarity, training=training)
        attention = tf.cast(tf.nn.softmax(tf.cast(similarity, tf.float32)), similarity.dtype)
        retrieved = tf.einsum("bhnm,bmhd->bhnd", attention, value)
        retrieved = tf.nn.relu(self.batch_norm_retrieved_value(retrieved, training=training))
        length = tf.shape(query)[1] if query.shape[1] is None else query.shape[1]
        return tf.reshape(tf.transpose(retrieved, [0, 2, 1, 3]), [-1, length, value.shape[2] * value.shape[3]])


class DualPathTransformer(keras.layers.Layer):
    """Memory reads pixels and itself; pixels read memory. Follows a residual block, the pixels' own attention.

    Call with (pixel [batch, height, width, channels], un-activated; memory [batch, slots, memory channels]); returns
    both, updated. Projections that a switched-off attention would need are not made.

    Args:
      width: Channels of queries and keys over all heads; values and bottlenecks have twice as many.
      ffn_channels: Hidden channels of the memory's feed-forward network.
      num_heads: Must divide `width`.
      memory_to_pixel: Memory queries the pixels.
      memory_to_memory: Memory queries the memory, in one softmax with the pixels.
      pixel_to_memory: Pixels query the memory (as it was before this layer): the feedback.
      drop_path_keep: Probability that a sample keeps a residual branch, drawn for each branch.
      norm: Makes the batch norms.
      recompute: In training, keep the inputs only and compute the rest again for the gradient.
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
        drop_path_keep: float = 1.0,
        norm: NormFactory = BatchNorm,
        recompute: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.recompute = recompute
        if width % num_heads:
            raise ValueError(f"transformer width {width} must be a multiple of num_heads {num_heads}")
        self.width, self.ffn_channels, self.num_heads, self.norm = width, ffn_channels, num_heads, norm
        self.memory_to_pixel = memory_to_pixel
        self.memory_to_memory = memory_to_memory
        self.pixel_to_memory = pixel_to_memory
        self.memory_parts = _parts(memory_to_pixel or memory_to_memory, memory_to_memory or pixel_to_memory)
        self.pixel_parts = _parts(pixel_to_memory, memory_to_pixel)
        self.memory_drop_path, self.ffn_drop_path, self.pixel_drop_path = (DropPath(drop_path_keep) for _ in range(3))

    def build(self, input_shape):
        pixel_channels, memory_channels = (shape[-1] for shape in input_shape)
        norm, hidden = self.norm, 2 * self.width
        for path, parts in (("memory", self.memory_parts), ("pixel", self.pixel_parts)):
            if parts:
                depths = sum(self._depth(part) for part in parts)
                qkv_initializer = keras.initializers.TruncatedNormal(stddev=hidden**-0.5)
                setattr(self, f"{path}_reduce", Conv1DBatchNorm(hidden, relu=True, norm=norm, name=f"{path}_reduce"))
                qkv = Conv1DBatchNorm(depths, kernel_initializer=qkv_initializer, norm=norm, name=f"{path}_qkv")
                setattr(self, f"{path}_qkv", qkv)
        if "query" in self.memory_parts:
            self.memory_attention = CrossAttention(norm=norm, name="memory_attention")
            self.memory_expand = Conv1DBatchNorm(
                memory_channels, gamma_initializer="zeros", norm=norm, name="memory_expand"
            )
        if "query" in self.pixel_parts:
            self.pixel_attention = CrossAttention(norm=norm, name="pixel_attention")
            self.pixel_expand = Conv1DBatchNorm(
                pixel_channels, gamma_initializer="zeros", norm=norm, name="pixel_expand"
            )
        self.memory_ffn1 = Conv1DBatchNorm(self.ffn_channels, relu=True, norm=norm, name="memory_ffn1")
        self.memory_ffn2 = Conv1DBatchNorm(memory_channels, gamma_initializer="zeros", norm=norm, name="memory_ffn2")
        super().build(input_shape)

    def call(self, inputs, training=None):
        memory_drawn, ffn_drawn, pixel_drawn = (
            drop_path.draw(inputs[1], training)
            for drop_path in (self.memory_drop_path, self.ffn_drop_path, self.pixel_drop_path)
        )

        def run(pixel, memory):
            return self._update(pixel, memory, memory_drawn, ffn_drawn, pixel_drawn, training)

        return recomputed(run, when=self.recompute and bool(training))(*inputs)

    def _update(self, pixel, memory, memory_drawn, ffn_drawn, pixel_drawn, training):
        height, width = spatial_size(pixel)
        pixels = tf.reshape(pixel, [-1, height * width, pixel.shape[-1]])
        of_memory = self._project("memory", self.memory_parts, memory, training)
        of_pixel = self._project("pixel", self.pixel_parts, tf.nn.relu(pixels), training)

        if self.memory_to_pixel or self.memory_to_memory:
            read = [of_pixel] * self.memory_to_pixel + [of_memory] * self.memory_to_memory
            key, value = (tf.concat([parts[name] for parts in read], axis=1) for name in ("key", "value"))
            update = self.memory_attention((of_memory["query"], key, value), training=training)
            update = self.memory_expand(update, training=training)
            memory = tf.nn.relu(memory + DropPath.apply(update, memory_drawn))
        update = self.memory_ffn2(self.memory_ffn1(memory, training=training), training=training)
        memory = tf.nn.relu(memory + DropPath.apply(update, ffn_drawn))

        if self.pixel_to_memory:
            read = (of_pixel["query"], of_memory["key"], of_memory["value"])
            update = self.pixel_expand(self.pixel_attention(read, training=training), training=training)
            update = tf.reshape(update, [-1, height, width, pixel.shape[-1]])
            pixel = pixel + DropPath.apply(update, pixel_drawn)
        return pixel, memory

    def _depth(self, part: str) -> int:
        return 2 * self.width if part == "value" else self.width

    def _project(self, path: str, parts: tuple[str, ...], x, training) -> dict:
        """The parts of query, key and value that are needed of `x`, each [batch, length, heads, depth]."""
        if not parts:
            return {}
        x = getattr(self, f"{path}_reduce")(x, training=training)
        x = getattr(self, f"{path}_qkv")(x, training=training)
        length = tf.shape(x)[1] if x.shape[1] is None else x.shape[1]
        split = tf.split(x, [self._depth(part) for part in parts], axis=-1)
        return {
            part: tf.reshape(depths, [-1, length, self.num_heads, self._depth(part) // self.num_heads])
            for part, depths in zip(parts, split)
        }


def _parts(asks: bool, is_asked: bool) -> tuple[str, ...]:
    """What a path must be projected to, in the order of the joint projection."""
    return ("query",) * asks + ("key", "value") * is_asked
