"""MaX-DeepLab, top to bottom (paper figure 3)."""

from __future__ import annotations

import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.resize import spatial_size
from maxdl_tf.models.backbone import Backbone
from maxdl_tf.models.decoder_schedule import semantic_source
from maxdl_tf.models.heads import ClassHead, MaskHead, PixelHead, SemanticDecoder, SemanticHead
from maxdl_tf.models.network import Network, normalized
from maxdl_tf.models.stacked_decoder import StackedDecoder
from maxdl_tf.structs import PanopticOutputs


class MaXDeepLab(Network):
    """The model, of ready-made parts; `build_max_deeplab` makes them.

    Example:
      model = build_max_deeplab(VARIANTS["tiny"], num_classes=5, num_semantic_channels=6, crop_size=(97, 97))
      outputs = model(images, training=False)  # images [batch, 97, 97, 3], 0..255
      masks = tf.nn.softmax(outputs.mask_logits)  # [batch, 25, 25, slots]

    Args:
      backbone: Image to features and memory.
      decoder: Both to features of stride 4.
      pixel_head: Last feature to pixel features.
      mask_head: Pixel features and memory to mask logits and mask embeddings.
      class_head: Memory to class logits.
      semantic_decoder: In front of the semantic head where that reads a feature of stride 16, else None.
      semantic_head: Auxiliary semantic segmentation, or None.
    """

    def __init__(
        self,
        backbone: Backbone,
        decoder: StackedDecoder,
        pixel_head: PixelHead,
        mask_head: MaskHead,
        class_head: ClassHead,
        semantic_decoder: SemanticDecoder | None,
        semantic_head: SemanticHead | None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.backbone = backbone
        self.decoder = decoder
        self.pixel_head = pixel_head
        self.mask_head = mask_head
        self.class_head = class_head
        self.semantic_decoder = semantic_decoder
        self.semantic_head = semantic_head

    def call(self, images, training=False) -> PanopticOutputs:
        """Runs the network.

        Args:
          images: [batch, height, width, 3], RGB 0..255; each side 16k+1, known or not when traced.
          training: Whether batch norms, drop path and dropout are in training.

        Raises:
          ValueError: if a known side is not 16k+1.
        """
        features, memory = self.backbone(normalized(images), training=training)
        features, memory = self.decoder((features, memory), spatial_size(images), training=training)
        activated = {name: tf.nn.relu(feature) for name, feature in features.items()}

        pixel_feature = self.pixel_head(activated[self.decoder.schedule[-1].name], training=training)
        mask_logits, mask_embedding = self.mask_head((pixel_feature, memory), training=training)
        class_logits = self.class_head(memory, training=training)
        semantic_logits = self._semantic_logits(activated, training) if self.semantic_head else None
        return PanopticOutputs(
            pixel_feature=pixel_feature,
            mask_logits=mask_logits,
            class_logits=class_logits,
            semantic_logits=semantic_logits,
            mask_embedding=mask_embedding,
        )

    def _semantic_logits(self, activated, training):
        x = activated[semantic_source(self.decoder.schedule)]
        if self.semantic_decoder:
            x = self.semantic_decoder((x, activated["stage3"], activated["stage2"]), training=training)
        return self.semantic_head(x, training=training)

    @property
    def pretrained_layers(self) -> list[keras.layers.Layer]:
        """What is pretrained on ImageNet (architecture section 7), of which a backbone's checkpoint has the variables.

        It is the stem and the blocks of all stages, with the decoder's pretrained steps and their fuses; not the memory
        and the transformers.
        """
        steps = [step.name for step in self.decoder.schedule if step.pretrained]
        stages = [*self.backbone.stages.values(), *(self.decoder.stages[name] for name in steps)]
        blocks = [block for stage in stages for block in stage.blocks.values()]
        return [self.backbone.stem, *blocks, *(self.decoder.fuses[name] for name in steps)]

    @property
    def pretrained_variables(self) -> list[tf.Variable]:
        """All variables of `pretrained_layers`, moving statistics included."""
        return [variable for layer in self.pretrained_layers for variable in layer.variables]

    @property
    def backbone_variables(self) -> list[tf.Variable]:
        """Trainable variables of `pretrained_layers`, which learn at a lower rate (architecture section 7)."""
        return [variable for layer in self.pretrained_layers for variable in layer.trainable_variables]

    @property
    def class_dependent_variables(self) -> list[tf.Variable]:
        """Those whose shape depends on the class table: the last layers of the class and the semantic head."""
        heads = [head for head in (self.class_head, self.semantic_head) if head]
        return [variable for head in heads for variable in head.logits.variables]
