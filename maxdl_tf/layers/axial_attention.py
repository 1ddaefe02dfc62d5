"""Position-sensitive self-attention along one axis, along both, or over all pixels (architecture section 2.2)."""

from __future__ import annotations

import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.batch_norm import BatchNorm, NormFactory
from maxdl_tf.layers.resize import spatial_size

# Distances from -254 to 254 have rows of their own in a relative position table; farther ones share the end rows.
MAX_DISTANCE = 254


def relative_positions(table, length):
    """Spreads a table of relative positions over all pairs of a query and a key.

    Slices and a cyclic reshape in place of a gather keep the table's gradient dense.

    Args:
      table: [2 * MAX_DISTANCE + 1, depth], one row for each distance key - query.
      length: Number of positions, an integer or a scalar tensor.

    Returns:
      [length, length, depth]: row `clip(key - query + MAX_DISTANCE)` of the table at [query, key].
    """
    beyond = (max if isinstance(length, int) else tf.maximum)(length - MAX_DISTANCE - 1, 0)
    if not (isinstance(length, int) and beyond == 0):
        before, after = tf.repeat(table[:1], beyond, axis=0), tf.repeat(table[-1:], beyond, axis=0)
        table = tf.concat([before, table, after], axis=0)
    zero = MAX_DISTANCE + beyond
    ahead, behind = table[zero : zero + length], table[zero - length + 1 : zero]
    # Row d modulo 2 * length of this cycle belongs to distance d; the row of zeros is never looked at. Read on and on
    # in lines of 2 * length - 1, the cycle moves one to the right with every line, as the query does.
    cycle = tf.concat([ahead, tf.zeros_like(table[:1]), behind], axis=0)
    lines = tf.tile(cycle, [length, 1])[: length * (2 * length - 1)]
    return tf.reshape(lines, [length, 2 * length - 1, table.shape[1]])[:, :length]


class SelfAttention1D(keras.layers.Layer):
    """Multi-head self-attention over a sequence, normalized by batch norms instead of 1/sqrt(depth).

    With positions, three similarities (query . key, query . position, key . position) and two retrieved values
    (value, position) each have their own batch norm for every head and are added; without, only the content terms
    remain. [batch, length, in] -> un-activated [batch, length, value_depth], heads in order.

    Args:
      key_depth: Channels of queries and of keys, over all heads.
      value_depth: Channels of values, over all heads.
      num_heads: Must divide both.
      positions: Whether to use relative positions.
      norm: Makes the batch norms.
    """

    def __init__(
        self,
        key_depth: int,
        value_depth: int,
        *,
        num_heads: int = 8,
        positions: bool = True,
        norm: NormFactory = BatchNorm,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if key_depth % num_heads or value_depth % num_heads:
            raise ValueError(
                f"key_depth {key_depth} and value_depth {value_depth} must be multiples of num_heads {num_heads}"
            )
        self.key_depth, self.value_depth, self.num_heads = key_depth, value_depth, num_heads
        self.positions = positions
        self.batch_norm_qkv = norm(name="batch_norm_qkv")
        self.batch_norm_similarity = norm(axis=(0, 2), name="batch_norm_similarity")
        self.batch_norm_retrieved_output = norm(axis=(0, 2, 4), name="batch_norm_retrieved_output")

    def build(self, input_shape):
        channels = input_shape[-1]
        self.qkv_kernel = self.add_weight(
            "qkv_kernel",
            [channels, 2 * self.key_depth + self.value_depth],
            initializer=keras.initializers.TruncatedNormal(stddev=channels**-0.5),
        )
        if self.positions:
            key, value = self.key_depth // self.num_heads, self.value_depth // self.num_heads
            for name, depth in (("query_positions", key), ("key_positions", key), ("value_positions", value)):
                initializer = keras.initializers.TruncatedNormal(stddev=1.0)
                setattr(self, name, self.add_weight(name, [2 * MAX_DISTANCE + 1, depth], initializer=initializer))
        super().build(input_shape)

    def call(self, inputs, training=None):
        length = tf.shape(inputs)[1] if inputs.shape[1] is None else inputs.shape[1]
        qkv = tf.einsum("nlc,cd->nld", inputs, self.qkv_kernel)
        qkv = self.batch_norm_qkv(qkv, training=training)
        query, key, value = (
            tf.reshape(part, [-1, length, self.num_heads, part.shape[-1] // self.num_heads])
            for part in tf.split(qkv, [self.key_depth, self.key_depth, self.value_depth], axis=-1)
        )

        similarities = [tf.einsum("nlhd,nmhd->nhlm", query, key)]
        if self.positions:
            tables = [self.query_positions, self.key_positions, self.value_positions]
            # Spread together, because the many small operations take longer than what they move.
            spread = relative_positions(tf.concat(tables, axis=1), length)
            query_positions, key_positions, value_positions = tf.split(
                spread, [table.shape[1] for table in tables], axis=2
            )
            similarities.append(tf.einsum("nlhd,lmd->nhlm", query, query_positions))
            similarities.append(tf.einsum("nmhd,lmd->nhlm", key, key_positions))
        similarity = self.batch_norm_similarity(tf.stack(similarities), training=training)  # [terms, n, heads, l, m]
        logits = tf.reduce_sum(similarity, axis=0)
        attention = tf.cast(tf.nn.softmax(tf.cast(logits, tf.float32)), logits.dtype)

        retrieved = [tf.einsum("nhlm,nmhd->nhld", attention, value)]
        if self.positions:
            retrieved.append(tf.einsum("nhlm,lmd->nhld", attention, value_positions))
        retrieved = self.batch_norm_retrieved_output(
            tf.stack(retrieved), training=training
        )  # [terms, n, heads, l, depth]
        outputs = tf.transpose(tf.reduce_sum(retrieved, axis=0), [0, 2, 1, 3])
        return tf.reshape(outputs, [-1, length, self.value_depth])


class AxialAttention2D(keras.layers.Layer):
    """Attention along the height axis, then along the width axis (paper section 3.3, Axial-DeepLab).

    [batch, height, width, in] -> un-activated [batch, height/strides, width/strides, value_depth]. A stride keeps
    every `strides`-th row after the height axis and column after the width axis.
    """

    def __init__(
        self,
        key_depth: int,
        value_depth: int,
        *,
        strides: int = 1,
        num_heads: int = 8,
        norm: NormFactory = BatchNorm,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.strides = strides
        axis = {"num_heads": num_heads, "norm": norm}
        self.height_axis = SelfAttention1D(key_depth, value_depth, **axis, name="height_axis")
        self.width_axis = SelfAttention1D(key_depth, value_depth, **axis, name="width_axis")

    def call(self, inputs, training=None):
        x = tf.transpose(inputs, [0, 2, 1, 3])
        x = _attend_rows(self.height_axis, x, training)[:, :, :: self.strides]
        x = tf.transpose(x, [0, 2, 1, 3])
        return _attend_rows(self.width_axis, x, training)[:, :, :: self.strides]


def _attend_rows(attention: SelfAttention1D, x, training):
    """Attention within each row of [batch, height, width, channels]."""
    height, width = spatial_size(x)
    rows = attention(tf.reshape(x, [-1, width, x.shape[-1]]), training=training)
    return tf.reshape(rows, [-1, height, width, rows.shape[-1]])


class GlobalAttention2D(keras.layers.Layer):
    """Attention of every pixel to every pixel, by content only.

    [batch, height, width, in] -> un-activated [batch, height/strides, width/strides, value_depth].
    """

    def __init__(
        self,
        key_depth: int,
        value_depth: int,
        *,
        strides: int = 1,
        num_heads: int = 8,
        norm: NormFactory = BatchNorm,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.strides = strides
        self.all_pixels = SelfAttention1D(
            key_depth, value_depth, num_heads=num_heads, positions=False, norm=norm, name="all_pixels"
        )

    def call(self, inputs, training=None):
        height, width = spatial_size(inputs)
        pixels = tf.reshape(inputs, [-1, height * width, inputs.shape[-1]])
        pixels = self.all_pixels(pixels, training=training)
        outputs = tf.reshape(pixels, [-1, height, width, pixels.shape[-1]])
        return outputs[:, :: self.strides, :: self.strides]
