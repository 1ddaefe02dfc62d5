"""kMaX-DeepLab, top to bottom (arXiv 2207.04044, figure 1)."""

from __future__ import annotations

import functools

import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.dual_path_transformer import DualPathTransformer
from maxdl_tf.layers.recompute import recomputed
from maxdl_tf.models.encoder import Encoder
from maxdl_tf.models.heads import ClusteringPredictor, SemanticDecoder, SemanticHead
from maxdl_tf.models.network import PanopticNetwork, normalized, resized_to
from maxdl_tf.models.pixel_decoder import PixelDecoder
from maxdl_tf.models.transformer_decoder import TransformerDecoder
from maxdl_tf.structs import PanopticOutputs


class KMaXDeepLab(PanopticNetwork):
    """The model, made of ready-made parts; `build_kmax_deeplab` makes them.

    Args:
      backbone: Encoder, from an image to features `stage1` to `stage5`, the last at stride 32.
      pixel_decoder: Decoder from these to features of growing size.
      transformer_decoder: Decoder from these to a memory; makes the auxiliary outputs.
      predictor: Heads on the last feature and the memory.
      semantic_decoder: Decoder of the auxiliary semantic segmentation, or None.
      semantic_head: Head of the auxiliary semantic segmentation, or None. Without the decoder it reads `stage5`.
      output_stride: Pixels of the image per position of the last feature.
      recompute: Classes of layers that are recomputed in training; decides about predictor and semantic branch.
    """

    part_names = (
        "backbone",
        "pixel_decoder",
        "transformer_decoder",
        "predictor",
        "semantic_decoder",
        "semantic_head",
    )
    size_multiple = 32

    def __init__(
        self,
        backbone: Encoder,
        pixel_decoder: PixelDecoder,
        transformer_decoder: TransformerDecoder,
        predictor: ClusteringPredictor,
        semantic_decoder: SemanticDecoder | None,
        semantic_head: SemanticHead | None,
        *,
        output_stride: int = 4,
        recompute: tuple[type, ...] = (),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.transformer_decoder = transformer_decoder
        self.predictor = predictor
        self.semantic_decoder = semantic_decoder
        self.semantic_head = semantic_head
        self.output_stride = output_stride
        self._recomputed = functools.partial(recomputed, kinds=recompute)

    def call(self, images, training=False) -> PanopticOutputs:
        """Runs the network.

        Args:
          images: [batch, height, width, 3], RGB 0..255; each side 32k+1, known or not when traced.
          training: Whether batch norms, drop path and dropout are in training mode.

        Returns:
          The outputs. Auxiliary ones, of all transformers, are there in training only.

        Raises:
          ValueError: If there are not four dimensions, or a known side is not 32k+1.
        """
        features, _, _ = self.backbone(normalized(images, self.size_multiple), training=training)
        pixels = self.pixel_decoder(features, training=training)
        memories, auxiliary = self.transformer_decoder(pixels, training=training)
        predictor = self._recomputed(self.predictor)
        final, mask_embedding = predictor((pixels[-1], *memories), training=training)
        semantic_logits = None
        if self.semantic_head:
            semantic_logits = self._semantic_logits(features["stage5"], features, training)
        return PanopticOutputs(
            pixel_feature=final.pixel_feature,
            mask_logits=final.mask_logits,
            class_logits=final.class_logits,
            semantic_logits=semantic_logits,
            mask_embedding=mask_embedding,
            auxiliary=resized_to(final.mask_logits, auxiliary) if training else (),
        )

    @property
    def num_auxiliary_outputs(self) -> int:
        return len(self.transformer_decoder.transformers)

    @property
    def semantic_stride(self) -> int:
        return 4 if self.semantic_decoder else 32

    @property
    def first_transformer(self) -> tuple[DualPathTransformer | None, tf.Variable]:
        decoder = self.transformer_decoder
        return (decoder.transformers["0"] if decoder.seed is None else None), decoder.memory

    @property
    def pretrained_layers(self) -> list[keras.layers.Layer]:
        """The encoder."""
        return [self.backbone]

    def with_parts(self, **parts) -> KMaXDeepLab:
        return super().with_parts(output_stride=self.output_stride, **parts)
