"""The dual-path transformer of inference: batch norms folded, projections of a constant memory computed once."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from maxdl_tf.export.folded_layers import FoldedLinear, Types, Weight, affine
from maxdl_tf.layers import activations
from maxdl_tf.layers.dual_path_transformer import CrossAttention, DualPathTransformer, sum_of_clusters
from maxdl_tf.layers.positions import with_positions
from maxdl_tf.layers.resize import spatial_size


class FoldedCrossAttention(tf.Module):
    """A `CrossAttention`. The layer that makes the queries has applied the scale of the similarities."""

    def __init__(self, layer: CrossAttention, types: Types):
        super().__init__()
        scale, offset = affine(layer.batch_norm_retrieved_value)
        self._activate = layer.activate
        self.scale, self.offset = types.small(scale[0]), types.small(offset[0])  # [heads, 1, depth]

    def __call__(self, query, key, value):
        """Takes [batch, length, heads, depth]; returns [batch, length of the queries, channels]."""
        query, key, value = (tf.transpose(part, [0, 2, 1, 3]) for part in (query, key, value))
        attention = activations.softmax(tf.matmul(query, key, transpose_b=True))
        _, heads, length, _ = query.shape
        # The smaller of values and result is scaled.
        few_values = value.shape[2] < length
        value = value * self.scale() if few_values else value
        retrieved = tf.matmul(attention, value)
        retrieved = retrieved if few_values else retrieved * self.scale()
        retrieved = self._activate(retrieved + self.offset())
        return tf.reshape(tf.transpose(retrieved, [0, 2, 1, 3]), [-1, length, heads * value.shape[3]])


class FoldedDualPathTransformer(tf.Module):
    """A `DualPathTransformer` for features of known size.

    Args:
      layer: Transformer to replace.
      types: Types of kernels and of features.
      memory: [1, slots, channels], the memory if it is the same for all images, as in the first transformer. Its
        projection is then stored instead of the projecting kernels. None for other transformers.
      predictor: Replacement of the layer's predictor, or None.
    """

    def __init__(self, layer: DualPathTransformer, types: Types, memory=None, predictor=None):
        super().__init__()
        self._compute = types.compute
        self._layer_parts = {"memory": layer.memory_parts, "pixel": layer.pixel_parts}
        self._heads, self._width, self._activate = layer.num_heads, layer.width, layer.activate
        self._reads_pixel, self._reads_memory = layer.memory_to_pixel, layer.memory_to_memory
        self.predictor, self._position_octaves = predictor, layer.position_octaves
        for path, parts in self._layer_parts.items():
            if parts or predictor is not None:
                reduce = FoldedLinear.of(getattr(layer, f"{path}_reduce"), types)
                is_constant = path == "memory" and memory is not None
                if not is_constant:
                    setattr(self, f"{path}_reduce", reduce)
                elif predictor is not None:
                    self.constant_memory = types.kernel(reduce(memory))
            if parts:
                gains = [np.ones(self._depth(part), np.float32) for part in parts]
                if "query" in parts:
                    similarity = affine(getattr(layer, f"{path}_attention").batch_norm_similarity)
                    gains[0] = np.repeat(similarity.scale, self._width // self._heads)
                qkv = FoldedLinear.of(getattr(layer, f"{path}_qkv"), types, gain=np.concatenate(gains))
                if is_constant:
                    self.constant_memory_qkv = types.kernel(qkv(reduce(memory)))
                else:
                    setattr(self, f"{path}_qkv", qkv)
            if "query" in parts:
                setattr(self, f"{path}_attention", FoldedCrossAttention(getattr(layer, f"{path}_attention"), types))
                setattr(self, f"{path}_expand", FoldedLinear.of(getattr(layer, f"{path}_expand"), types))
        if predictor is not None:
            self.pixel_value = FoldedLinear.of(layer.pixel_value, types)
            self.kmeans_norm = [Weight(value) for value in affine(layer.kmeans_batch_norm)]
            self.kmeans_expand = FoldedLinear.of(layer.kmeans_expand, types)
        self.memory_ffn1 = FoldedLinear.of(layer.memory_ffn1, types)
        self.memory_ffn2 = FoldedLinear.of(layer.memory_ffn2, types)

    def __call__(self, inputs, training=False):
        pixel, memory = (tf.cast(value, self._compute) for value in inputs)
        height, width = spatial_size(pixel)
        pixels = with_positions(self._activate(pixel), self._position_octaves)
        pixels = tf.reshape(pixels, [-1, height * width, pixels.shape[-1]])
        reduced_pixel = self.pixel_reduce(pixels) if hasattr(self, "pixel_reduce") else None
        reduced_memory = self._reduced_memory(memory)
        of_memory, of_pixel = self._project("memory", reduced_memory), self._project("pixel", reduced_pixel)

        if self.predictor is not None:
            feature = tf.reshape(reduced_pixel, [-1, height, width, 2 * self._width])
            predicted, _ = self.predictor((feature, reduced_memory))
            scale, offset = (weight() for weight in self.kmeans_norm)
            # float32, as the sums of thousands of pixels are large beside what is left after the offset.
            values = tf.cast(self.pixel_value(reduced_pixel), tf.float32)
            memory += self.kmeans_expand(sum_of_clusters(predicted.mask_logits, values) * scale + offset)
        if "query" in of_memory:
            read = [of_pixel] * self._reads_pixel + [of_memory] * self._reads_memory
            key, value = (tf.concat([parts[name] for parts in read], axis=1) for name in ("key", "value"))
            memory += self.memory_expand(self.memory_attention(of_memory["query"], key, value))
        if "query" in of_memory or self.predictor is not None:
            memory = self._activate(memory)
        memory = self._activate(memory + self.memory_ffn2(self.memory_ffn1(memory)))

        if "query" in of_pixel:
            update = self.pixel_attention(of_pixel["query"], of_memory["key"], of_memory["value"])
            pixel += tf.reshape(self.pixel_expand(update), [-1, height, width, pixel.shape[-1]])
        return pixel, memory, ()

    def _depth(self, part: str) -> int:
        return 2 * self._width if part == "value" else self._width

    def _reduced_memory(self, memory):
        if hasattr(self, "constant_memory"):
            return tf.repeat(self.constant_memory(), tf.shape(memory)[0], axis=0)
        return self.memory_reduce(memory) if hasattr(self, "memory_reduce") else memory

    def _project(self, path: str, x) -> dict[str, tf.Tensor]:
        """The required ones of query, key and value of a reduced input, each [batch, length, heads, depth]."""
        parts = self._layer_parts[path]
        if not parts:
            return {}
        if path == "memory" and hasattr(self, "constant_memory_qkv"):
            qkv = tf.repeat(self.constant_memory_qkv(), tf.shape(x)[0], axis=0)
        else:
            qkv = getattr(self, f"{path}_qkv")(x)
        split = tf.split(qkv, [self._depth(part) for part in parts], axis=-1)
        return {
            part: tf.reshape(depths, [-1, x.shape[1], self._heads, self._depth(part) // self._heads])
            for part, depths in zip(parts, split)
        }
