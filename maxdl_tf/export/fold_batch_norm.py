"""The network of inference: the trained network with each batch norm folded into the layer before it.

Convolutions, attentions and transformers are replaced by those of `folded_layers`, `folded_attention` and
`folded_transformer`. The outputs differ only by rounding, except that mask logits lack an offset that all slots share
and that every softmax over slots cancels.

S at 641, batch 1, float32, in processor time: everything folded takes 0.84 of the unfolded network. With convolutions
alone folded, it takes 0.97.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import tensorflow as tf

from maxdl_tf.export.folded_attention import FoldedSelfAttention1D
from maxdl_tf.export.folded_convnext import FoldedConvNeXtBlock, StoredConv2D
from maxdl_tf.export.folded_layers import FoldedConv2D, FoldedDepthwiseConv2D, FoldedLinear, Types, Weight, affine
from maxdl_tf.export.folded_transformer import FoldedDualPathTransformer
from maxdl_tf.keras_api import compute_in, keras
from maxdl_tf.layers.axial_attention import SelfAttention1D
from maxdl_tf.layers.batch_norm import BatchNorm
from maxdl_tf.layers.conv_bn import Conv1DBatchNorm, Conv2DBatchNorm, DepthwiseConvBatchNorm
from maxdl_tf.layers.dual_path_transformer import DualPathTransformer
from maxdl_tf.layers.positions import with_positions
from maxdl_tf.layers.residual_block import ResidualBlock
from maxdl_tf.models.convnext import ConvNeXtBlock
from maxdl_tf.models.heads import MaskHead, PixelHead
from maxdl_tf.models.network import PanopticNetwork

_ALWAYS_FLOAT32 = (keras.layers.Conv1D,)  # The last layer of a class head.


def fold_batch_norms(
    model: PanopticNetwork, storage: tf.DType | str = tf.float32, compute: tf.DType | str = tf.float32
) -> PanopticNetwork:
    """A network with the outputs of `model` but fewer operations, for images of one size.

    The size is that of the first image. The network has no auxiliary semantic branch. `model` is not changed; layers
    without batch norms are shared.

    Args:
      model: Model with its final weights.
      storage: Type of stored kernels: float32, float16 or bfloat16. They are converted to float32 when used. With
        `compute` bfloat16 it is bfloat16.
      compute: Type of convolutions, matrix products, attention and features. With bfloat16, these stay float32:
        softmax, statistics of layer norms, L2 norms, sums of k-means, the logits and all outputs.
    """
    storage, compute = tf.dtypes.as_dtype(storage), tf.dtypes.as_dtype(compute)
    types = Types(compute if compute == tf.bfloat16 else storage, compute)
    # Variables are shared, not copied: folding replaces most of them.
    shared = {id(variable): variable for variable in model.variables}
    model = model.without_semantic_branch()
    copied = {
        name: copy.deepcopy(getattr(model, name), shared)
        for name in model.part_names
        if getattr(model, name) is not None
    }
    fold = _Folding(types, *model.with_parts(**copied).first_transformer)
    return model.with_parts(**{name: fold(part) for name, part in copied.items()})


class FoldedPixelHead(tf.Module):
    """A `PixelHead`."""

    def __init__(self, layer: PixelHead, conv, types: Types):
        super().__init__()
        scale, offset = affine(layer.batch_norm)
        self.conv, self._position_octaves = conv, layer.position_octaves
        self.kernel = types.kernel(layer.projection.kernel * scale)
        self.bias = types.small(layer.projection.bias * scale + offset)

    def __call__(self, inputs, training=False):
        x = with_positions(self.conv(inputs), self._position_octaves)
        x = tf.nn.bias_add(tf.nn.conv2d(x, self.kernel(), 1, "VALID"), self.bias())
        return tf.math.l2_normalize(tf.cast(x, tf.float32), axis=-1, epsilon=1e-12)


class FoldedMaskHead(tf.Module):
    """A `MaskHead` whose logits lack their common offset."""

    def __init__(self, layer: MaskHead, types: Types):
        super().__init__()
        self.hidden = FoldedLinear.of(layer.hidden, types) if layer.hidden is not None else None
        self.embedding = FoldedLinear.of(layer.embedding, types)
        self.scale = Weight(affine(layer.batch_norm).scale)

    def __call__(self, inputs, training=False):
        pixel_feature, memory = inputs
        embedding = self.embedding(memory if self.hidden is None else self.hidden(memory))
        embedding = tf.cast(embedding, tf.float32)
        return tf.einsum("bhwd,bnd->bhwn", pixel_feature, embedding * self.scale()), embedding


class FencedBlock(tf.Module):
    """A residual block whose sum TensorFlow does not fuse with a ReLU that follows.

    Other operations read the sum too. The fusion would fail on them and disable the optimization of the whole graph.
    """

    def __init__(self, block: ResidualBlock):
        super().__init__()
        self._block = block

    def __call__(self, inputs, training=False):
        outputs = self._block(inputs, training=training)
        return tf.ensure_shape(outputs, outputs.shape)


class _Folding:
    """Replaces the layers of a network, from the leaves up."""

    def __init__(self, types: Types, first_transformer: DualPathTransformer | None, memory):
        self._types, self._first_transformer, self._memory = types, first_transformer, memory

    def __call__(self, layer):
        """The replacement of `layer`, or `layer` itself with its parts replaced.

        Raises:
          TypeError: A batch norm has no layer into which it can be folded.
        """
        for layer_class, folded_class in (
            (Conv2DBatchNorm, FoldedConv2D),
            (Conv1DBatchNorm, FoldedLinear.of),
            (DepthwiseConvBatchNorm, FoldedDepthwiseConv2D),
            (SelfAttention1D, FoldedSelfAttention1D),
            (MaskHead, FoldedMaskHead),
            (ConvNeXtBlock, FoldedConvNeXtBlock),
            (keras.layers.Conv2D, StoredConv2D),
        ):
            if isinstance(layer, layer_class):
                return folded_class(layer, self._types)
        if isinstance(layer, PixelHead):
            return FoldedPixelHead(layer, self(layer.conv), self._types)
        if isinstance(layer, DualPathTransformer):
            memory = self._memory if layer is self._first_transformer else None
            predictor = self(layer.predictor) if layer.predictor is not None else None
            return FoldedDualPathTransformer(layer, self._types, memory, predictor)
        if isinstance(layer, BatchNorm):
            raise TypeError(
                f"batch norm {layer.name} has no layer into which it can be folded; teach fold_batch_norm its layer"
            )
        for name, part in list(vars(layer).items()):
            if isinstance(part, keras.layers.Layer):
                setattr(layer, name, self(part))
            elif isinstance(part, Mapping) and not name.startswith("_"):
                setattr(layer, name, {key: self(value) for key, value in part.items()})
        if self._types.compute == tf.bfloat16 and not isinstance(layer, _ALWAYS_FLOAT32):
            compute_in(layer, "mixed_bfloat16")
        return FencedBlock(layer) if isinstance(layer, ResidualBlock) else layer
