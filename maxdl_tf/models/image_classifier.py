"""The part of the network that is pretrained on whole images, under a linear classifier (paper section 4)."""

from __future__ import annotations

import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.resize import spatial_size
from maxdl_tf.models.decoder import StackedDecoder
from maxdl_tf.models.encoder import Encoder
from maxdl_tf.models.network import Network, normalized


class ImageClassifier(Network):
    """The pretrained part of a MaX-DeepLab, made of ready-made parts; `build_image_classifier` makes them.

    Its variables have the same object paths as the pretrained part of the panoptic model, plus the classifier. A
    checkpoint of this model can therefore initialize the panoptic model.

    Example:
      model = build_image_classifier(VARIANTS["tiny"], num_classes=10, crop_size=(97, 97))
      logits = model(images, training=False)  # images [batch, 97, 97, 3], 0..255; logits [batch, 10]

    Args:
      backbone: Encoder, without memory and transformers.
      decoder: Decoder of the pretrained steps; None where the variant has none.
      num_classes: Number of channels of the logits.
      classifier_conv: Layer between the last feature and its mean; None for none.
    """

    def __init__(
        self,
        backbone: Encoder,
        decoder: StackedDecoder | None,
        num_classes: int,
        *,
        classifier_conv: keras.layers.Layer | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.backbone = backbone
        self.decoder = decoder
        self.classifier_conv = classifier_conv
        self.last_feature = decoder.schedule[-1].name if decoder else list(backbone.stages)[-1]
        initializer = keras.initializers.TruncatedNormal(stddev=0.01)
        self.classifier = keras.layers.Dense(
            num_classes, kernel_initializer=initializer, name="classifier", dtype="float32"
        )

    def call(self, images, training=False) -> tf.Tensor:
        """Classifies images.

        Args:
          images: [batch, height, width, 3], RGB 0..255; each side 16k+1, known or not when traced.
          training: Whether batch norms and drop path are in training mode.

        Returns:
          float32 [batch, classes], logits.

        Raises:
          ValueError: If a known side is not 16k+1.
        """
        features, memory, _ = self.backbone(normalized(images), training=training)
        if self.decoder:
            features, _, _ = self.decoder((features, memory), spatial_size(images), training=training)
        last = self.backbone.activate(features[self.last_feature])
        if self.classifier_conv is not None:
            last = self.classifier_conv(last, training=training)
        return self.classifier(tf.reduce_mean(tf.cast(last, tf.float32), axis=(1, 2)))

    @property
    def backbone_variables(self) -> list[tf.Variable]:
        """Empty: nothing here is pretrained, and all variables train at the full learning rate."""
        return []

    @property
    def pretrained_variables(self) -> list[tf.Variable]:
        """All variables but the classifier's, moving statistics included: the variables of a backbone's checkpoint."""
        layers = [self.backbone, self.decoder] if self.decoder else [self.backbone]
        return [variable for layer in layers for variable in layer.variables]

    @property
    def class_dependent_variables(self) -> list[tf.Variable]:
        """The variables whose shape depends on the number of classes."""
        return [self.classifier.kernel, self.classifier.bias]
