"""Position-sensitive self-attention along one axis and along both (architecture section 2.2)."""

from __future__ import annotations

import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers import activations
from maxdl_tf.layers.batch_norm import DEFAULT_NORM, Norm
from maxdl_tf.layers.configured import Layer
from maxdl_tf.layers.convolutions import linear
from maxdl_tf.layers.resize import spatial_size

# Distances from -254 to 254 have their own rows in a table of relative positions; farther ones share the end rows.
MAX_DISTANCE = 254


def relative_positions(table, length):
    """Spreads a table of relative positions over all pairs of a query and a key.

    Slices and a cyclic reshape, instead of a gather, keep the table's gradient dense.

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
    # Row d modulo 2 * length of this cycle belongs to distance d; the row of zeros is never read. Read repeatedly in
    # lines of 2 * length - 1, the cycle moves one to the right with every line, as the query does.
    cycle = tf.concat([ahead, tf.zeros_like(table[:1]), behind], axis=0)
    lines = tf.tile(cycle, [length, 1])[: length * (2 * length - 1)]
    return tf.reshape(lines, [length, 2 * length - 1, table.shape[1]])[:, :length]


class SelfAttention1D(Layer):
    """Multi-head self-attention over a sequence, normalized by batch norms instead of 1/sqrt(depth).

    [batch, length, in] -> un-activated [batch, length, value_depth], heads in order. Three similarities (query . key,
    query . position, key . position) and two retrieved values (value, position) each have their own batch norm for
    every head and are added.

    Args:
      key_depth: Number of channels of queries and of keys, over all heads.
      value_depth: Number of channels of values, over all heads.
      num_heads: Number of heads; must divide both depths.
      norm: Factory of the batch norms.

    Raises:
      ValueError: If `num_heads` does not divide the depths.
    """

    def __init__(self, key_depth: int, value_depth: int, *, num_heads: int = 8, norm: Norm = DEFAULT_NORM, **kwargs):
        super().__init__(**kwargs)
        if key_depth % num_heads or value_depth % num_heads:
            raise ValueError(
                f"key_depth {key_depth} and value_depth {value_depth} must be multiples of num_heads {num_heads}"
            )
        self.key_depth, self.value_depth, self.num_heads = key_depth, value_depth, num_heads
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
        self.query_positions = self._add_table("query_positions", self.key_depth)
        self.key_positions = self._add_table("key_positions", self.key_depth)
        self.value_positions = self._add_table("value_positions", self.value_depth)
        with tf.name_scope(self.batch_norm_retrieved_output.name):
            self.batch_norm_retrieved_output.build([2, None, self.num_heads, None, self.value_depth // self.num_heads])
        super().build(input_shape)

    def _add_table(self, name: str, depth: int):
        shape = [2 * MAX_DISTANCE + 1, depth // self.num_heads]
        return self.add_weight(name, shape, initializer=keras.initializers.TruncatedNormal(stddev=1.0))

    def call(self, inputs, training=None):
        # In the equations: n batch, h heads, l queries, m keys, d depth of a head.
        length = tf.shape(inputs)[1] if inputs.shape[1] is None else inputs.shape[1]
        qkv = linear(inputs, self.qkv_kernel)
        qkv = self.batch_norm_qkv(qkv, training=training)
        query, key, value = (
            tf.reshape(part, [-1, length, self.num_heads, part.shape[-1] // self.num_heads])
            for part in tf.split(qkv, [self.key_depth, self.key_depth, self.value_depth], axis=-1)
        )

        tables = [self.query_positions, self.key_positions, self.value_positions]
        # Spread together, because the many small operations take longer than what they move.
        spread = relative_positions(tf.concat(tables, axis=1), length)  # [l, m, depths]
        query_positions, key_positions, value_positions = tf.split(spread, [table.shape[1] for table in tables], axis=2)

        similarities = [
            tf.einsum("nlhd,nmhd->nhlm", query, key),
            tf.einsum("nlhd,lmd->nhlm", query, query_positions),
            tf.einsum("nmhd,lmd->nhlm", key, key_positions),
        ]
        similarity = self.batch_norm_similarity(tf.stack(similarities), training=training)  # [3, n, h, l, m]
        logits = tf.reduce_sum(similarity, axis=0)
        attention = activations.softmax(logits)  # [n, h, l, m]

        retrieved = [
            tf.einsum("nhlm,nmhd->nlhd", attention, value),
            tf.einsum("nhlm,lmd->nlhd", attention, value_positions),
        ]
        retrieved = tf.reshape(tf.stack(retrieved, axis=2), [-1, length, 2 * self.value_depth])
        retrieved = self.batch_norm_retrieved_output.of_channels(retrieved, training)
        return tf.add_n(tf.split(retrieved, 2, axis=-1))


class AxialAttention2D(Layer):
    """Attention along the height axis, then along the width axis (paper section 3.3, Axial-DeepLab).

    [batch, height, width, in] -> un-activated [batch, ceil(height/strides), ceil(width/strides), value_depth].

    Args:
      key_depth, value_depth, num_heads, norm: Arguments of `SelfAttention1D`.
      strides: Distance between the rows that are kept after the height axis, and the columns after the width axis.
    """

    def __init__(
        self,
        key_depth: int,
        value_depth: int,
        *,
        strides: int = 1,
        num_heads: int = 8,
        norm: Norm = DEFAULT_NORM,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.strides = strides
        axis = {"num_heads": num_heads, "norm": norm}
        self.height_axis = SelfAttention1D(key_depth, value_depth, **axis, name="height_axis")
        self.width_axis = SelfAttention1D(key_depth, value_depth, **axis, name="width_axis")

    def call(self, inputs, training=None):
        x = tf.transpose(inputs, [0, 2, 1, 3])
        x = self._attend_rows(self.height_axis, x, training)  # [batch, width, height / strides, value_depth]
        x = tf.transpose(x, [0, 2, 1, 3])
        return self._attend_rows(self.width_axis, x, training)

    def _attend_rows(self, attention: SelfAttention1D, x, training):
        """Attention within each row of [batch, height, width, channels]; keeps every `strides`-th column."""
        height, width = spatial_size(x)
        rows = attention(tf.reshape(x, [-1, width, x.shape[-1]]), training=training)
        rows = tf.reshape(rows, [-1, height, width, rows.shape[-1]])
        return rows[:, :, :: self.strides] if self.strides > 1 else rows
