"""MaX-DeepLab, top to bottom (paper figure 3)."""

from __future__ import annotations

import functools

import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.dual_path_transformer import DualPathTransformer
from maxdl_tf.layers.recompute import recomputed
from maxdl_tf.layers.resize import spatial_size
from maxdl_tf.models.decoder import StackedDecoder, semantic_source
from maxdl_tf.models.encoder import Encoder
from maxdl_tf.models.heads import ClassHead, MaskHead, PixelHead, SemanticDecoder, SemanticHead
from maxdl_tf.models.network import PanopticNetwork, normalized, resized_to
from maxdl_tf.structs import PanopticOutputs


class MaXDeepLab(PanopticNetwork):
    """The model, made of ready-made parts; `build_max_deeplab` makes them.

    Example:
      model = build_max_deeplab(VARIANTS["tiny"], num_classes=5, num_semantic_channels=6, crop_size=(97, 97))
      outputs = model(images, training=False)  # images [batch, 97, 97, 3], 0..255
      masks = tf.nn.softmax(outputs.mask_logits)  # [batch, 25, 25, slots]

    Args:
      backbone: Encoder, from an image to features and memory.
      decoder: Decoder, from both to features of stride 4, or 2.
      pixel_head: Head from the last feature to pixel features.
      mask_head: Head from pixel features and memory to mask logits and mask embeddings.
      class_head: Head from memory to class logits.
      semantic_decoder: Decoder of the auxiliary branch where it reads a feature of stride 16, else None.
      semantic_head: Head of the auxiliary semantic segmentation, or None.
      recompute: Classes of layers that are recomputed in training; decides about the heads with convolutions.
    """

    part_names = (
        "backbone",
        "decoder",
        "pixel_head",
        "mask_head",
        "class_head",
        "semantic_decoder",
        "semantic_head",
    )

    def __init__(
        self,
        backbone: Encoder,
        decoder: StackedDecoder,
        pixel_head: PixelHead,
        mask_head: MaskHead,
        class_head: ClassHead,
        semantic_decoder: SemanticDecoder | None,
        semantic_head: SemanticHead | None,
        *,
        recompute: tuple[type, ...] = (),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.backbone = backbone
        self.decoder = decoder
        self.output_stride = decoder.schedule[-1].stride
        self.pixel_head = pixel_head
        self.mask_head = mask_head
        self.class_head = class_head
        self.semantic_decoder = semantic_decoder
        self.semantic_head = semantic_head
        self._recomputed = functools.partial(recomputed, kinds=recompute)

    def call(self, images, training=False) -> PanopticOutputs:
        """Runs the network.

        Args:
          images: [batch, height, width, 3], RGB 0..255; each side 16k+1, known or not when traced.
          training: Whether batch norms, drop path and dropout are in training mode.

        Raises:
          ValueError: If there are not four dimensions, or a known side is not 16k+1.
        """
        features, memory, early = self.backbone(normalized(images), training=training)
        features, memory, late = self.decoder((features, memory), spatial_size(images), training=training)

        last = self.backbone.activate(features[self.decoder.schedule[-1].name])
        pixel_feature = self._recomputed(self.pixel_head)(last, training=training)
        mask_logits, mask_embedding = self.mask_head((pixel_feature, memory), training=training)
        class_logits = self.class_head(memory, training=training)
        semantic_logits = None
        if self.semantic_head:
            source = self.backbone.activate(features[semantic_source(self.decoder.schedule)])
            semantic_logits = self._semantic_logits(source, features, training)
        return PanopticOutputs(
            pixel_feature=pixel_feature,
            mask_logits=mask_logits,
            class_logits=class_logits,
            semantic_logits=semantic_logits,
            mask_embedding=mask_embedding,
            auxiliary=resized_to(mask_logits, early + late) if training else (),
        )

    @property
    def transformers(self) -> list[DualPathTransformer]:
        """All transformers, in order."""
        stages = [*self.backbone.stages.values(), *self.decoder.stages.values()]
        return [transformer for stage in stages for transformer in stage.transformers.values()]

    @property
    def num_auxiliary_outputs(self) -> int:
        return sum(transformer.predictor is not None for transformer in self.transformers)

    @property
    def first_transformer(self) -> tuple[DualPathTransformer | None, tf.Variable]:
        is_constant = self.transformers and self.backbone.seed is None
        return (self.transformers[0] if is_constant else None), self.backbone.memory

    @property
    def pretrained_layers(self) -> list[keras.layers.Layer]:
        """The layers that are pretrained on ImageNet (architecture section 7) and that a backbone's checkpoint holds.

        They are the stem, the blocks of the encoder, and the blocks and fuses of the decoder's pretrained steps. Memory
        and transformers are not.
        """
        steps = [step.name for step in self.decoder.schedule if step.pretrained]
        stages = [*self.backbone.stages.values(), *(self.decoder.stages[name] for name in steps)]
        blocks = [block for stage in stages for block in stage.blocks.values()]
        return [self.backbone.stem, *blocks, *(self.decoder.fuses[name] for name in steps)]
