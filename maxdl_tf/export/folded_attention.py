"""The self-attention of inference: batch norms folded, relative positions expanded once.

A batch norm on similarities is a scale and an offset for each head. The softmax cancels the offset, which all logits
share. The scale is multiplied into queries and keys. A batch norm on retrieved values is a scale and an offset for each
channel. The weights of a softmax sum to 1, so an offset of all values is an offset of the result; all offsets become
one bias.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from maxdl_tf.export.folded_layers import FoldedLinear, Types, affine
from maxdl_tf.layers import activations
from maxdl_tf.layers.axial_attention import SelfAttention1D, relative_positions


class FoldedSelfAttention1D(tf.Module):
    """A `SelfAttention1D` for sequences of one length. [batch, length, in] -> [batch, length, value_depth].

    The length is that of the first call, which expands relative positions to all pairs of a query and a key.
    """

    def __init__(self, layer: SelfAttention1D, types: Types):
        super().__init__()
        self._heads, self._types = layer.num_heads, types
        self._depths = [layer.key_depth, layer.key_depth, layer.value_depth]
        content, *self._position_scales = _by_channel(affine(layer.batch_norm_similarity).scale, layer.key_depth)
        retrieved = affine(layer.batch_norm_retrieved_output)
        content_value, *position_value = _by_channel(retrieved.scale, layer.value_depth)

        scale, offset = affine(layer.batch_norm_qkv)
        gain = np.concatenate([np.ones(2 * layer.key_depth, np.float32), content_value])
        scale, offset = scale * gain, offset * gain
        of_keys, of_values = np.split(offset, [2 * layer.key_depth])
        self.qkv = FoldedLinear(
            layer.qkv_kernel * scale, np.concatenate([of_keys, np.zeros_like(of_values)]), types=types
        )
        bias = of_values + _by_channel(retrieved.offset, layer.value_depth).sum(axis=0)
        self.bias = types.small(bias)
        self._tables = [table.numpy() for table in (layer.query_positions, layer.key_positions, layer.value_positions)]
        # For queries that meet keys, queries that meet positions, and keys that meet positions.
        self.similarity_scales = types.small([content, *self._position_scales])
        self.position_value_scale = types.small(np.reshape(position_value, [self._heads, 1, -1]))
        self._length = None

    def __call__(self, inputs, training=False):
        length = inputs.shape[1]
        query, key, value = tf.split(self.qkv(inputs), self._depths, axis=-1)
        self._spread_positions(length)
        attention = activations.softmax(self._logits(query, key))
        retrieved = tf.matmul(attention, self._by_head(value))  # [batch, heads, length, depth]
        at_place = tf.reshape(tf.transpose(attention, [2, 0, 1, 3]), [length, -1, length])
        of_positions = self._by_sequence(tf.matmul(at_place, self.value_positions()))
        retrieved += tf.transpose(of_positions, [1, 2, 0, 3]) * self.position_value_scale()
        outputs = tf.reshape(tf.transpose(retrieved, [0, 2, 1, 3]), [-1, length, self._depths[2]])
        return tf.nn.bias_add(outputs, self.bias())

    def _logits(self, query, key):
        """[batch, heads, length of queries, length of keys]."""
        content, query_scale, key_scale = tf.unstack(self.similarity_scales())
        logits = tf.matmul(self._by_head(query * content), self._by_head(key), transpose_b=True)
        of_query = tf.matmul(self._by_place(query * query_scale), self.query_positions())  # [query, *, key]
        of_key = tf.matmul(self._by_place(key * key_scale), self.key_positions())  # [key, *, query]
        logits += tf.transpose(self._by_sequence(of_query), [1, 2, 0, 3])
        return logits + tf.transpose(self._by_sequence(of_key), [1, 2, 3, 0])

    def _spread_positions(self, length: int) -> None:
        if self._length not in (None, length):
            raise ValueError(f"sequences of {length}: this attention was folded for those of {self._length}; fold anew")
        if self._length is None:
            self._length = length
            with tf.init_scope():  # Not a part of the function that is being traced.
                query, key, value = (relative_positions(tf.constant(table), length) for table in self._tables)
                self.query_positions = self._types.kernel(tf.transpose(query, [0, 2, 1]))  # [query, depth, key]
                self.key_positions = self._types.kernel(tf.transpose(key, [1, 2, 0]))  # [key, depth, query]
                self.value_positions = self._types.kernel(value)  # [query, key, depth]

    def _by_head(self, x):
        """[batch, length, channels] to [batch, heads, length, depth]."""
        length, channels = x.shape[1:]
        return tf.transpose(tf.reshape(x, [-1, length, self._heads, channels // self._heads]), [0, 2, 1, 3])

    def _by_place(self, x):
        """[batch, length, channels] to [length, batch * heads, depth]."""
        length, channels = x.shape[1:]
        return tf.reshape(tf.transpose(x, [1, 0, 2]), [length, -1, channels // self._heads])

    def _by_sequence(self, x):
        """[length, batch * heads, depth] to [length, batch, heads, depth]."""
        length, _, depth = x.shape
        return tf.reshape(x, [length, -1, self._heads, depth])


def _by_channel(statistics: np.ndarray, channels: int) -> np.ndarray:
    """Statistics [terms, 1, heads, 1, 1 or depth] as [terms, channels]."""
    by_term = statistics.reshape([statistics.shape[0], -1])
    return np.repeat(by_term, channels // by_term.shape[1], axis=1)
