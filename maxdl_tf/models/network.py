"""What the networks have in common: tracing, saving, normalization of images, groups of variables."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.dual_path_transformer import DualPathTransformer
from maxdl_tf.layers.resize import resize_bilinear, spatial_size
from maxdl_tf.layers.training_mode import in_training
from maxdl_tf.models.heads import ClassHead, SemanticHead
from maxdl_tf.structs import OUTPUT_STRIDE, AuxiliaryOutputs


class Network(keras.Model):
    """A Keras model made of ready-made parts.

    AutoGraph leaves it alone: there is nothing to convert, and searching all of Keras takes most of a trace's time.
    The model has no config, so Keras can save its weights but not the model itself.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)  # Images are normalized in float32 first.

    @tf.autograph.experimental.do_not_convert
    def __call__(self, *args, training=False, **kwargs):
        with in_training(training):
            return super().__call__(*args, training=training, **kwargs)

    @tf.autograph.experimental.do_not_convert
    def build(self, input_shape):
        super().build(input_shape)

    def get_config(self):
        raise NotImplementedError(
            f"{type(self).__name__} has no Keras config: an experiment describes it. Build the model with "
            "maxdl_tf.build_model(experiment), save its weights with model.save_weights or "
            "tf.train.Checkpoint(model=model), and export it with maxdl-export"
        )

    def save(self, *args, **kwargs):
        """Raises NotImplementedError: Keras could not load what it would write."""
        self.get_config()


class PanopticNetwork(Network):
    """A network from images to `PanopticOutputs`, made of parts; the interface of both families.

    Subclasses list in `part_names` the arguments of their constructor that are layers, and keep each under its name.

    Attributes:
      size_multiple: Sides of images are multiples of this number, plus 1.
      output_stride: Pixels of the image per position of the mask logits, along height and width.
      semantic_stride: The same of the semantic logits.
      num_auxiliary_outputs: Number of `PanopticOutputs.auxiliary` in training.
    """

    part_names: tuple[str, ...]
    size_multiple = 16
    output_stride = OUTPUT_STRIDE
    semantic_stride = OUTPUT_STRIDE
    num_auxiliary_outputs = 0

    def with_parts(self, **parts: Any) -> PanopticNetwork:
        """A network of the same layers, with some replaced. It does not recompute any."""
        current = {name: getattr(self, name) for name in self.part_names}
        return type(self)(**{**current, **parts}, name=self.name)

    def without_semantic_branch(self) -> PanopticNetwork:
        """A network of the same layers without the auxiliary semantic branch, which inference does not need.

        Build and restore the model with the branch, as it was trained, before removing it.
        """
        return self.with_parts(semantic_decoder=None, semantic_head=None)

    def _semantic_logits(self, source, features, training) -> tf.Tensor:
        """Logits of the semantic head on `source`, or on what the semantic decoder makes of it and `features`."""
        if self.semantic_decoder:
            source = self._recomputed(self.semantic_decoder.aspp)(source, training=training)
            low_level = (self.backbone.activate(features[name]) for name in ("stage3", "stage2"))
            source = self._recomputed(self.semantic_decoder)((source, *low_level), training=training)
        return self._recomputed(self.semantic_head)(source, training=training)

    @property
    def first_transformer(self) -> tuple[DualPathTransformer | None, tf.Variable]:
        """The transformer that reads the initial memory, if that is the same for all images, and that memory."""
        raise NotImplementedError

    @property
    def pretrained_layers(self) -> list[keras.layers.Layer]:
        """The layers that are pretrained on ImageNet and that a backbone's checkpoint holds."""
        raise NotImplementedError

    @property
    def pretrained_variables(self) -> list[tf.Variable]:
        """All variables of `pretrained_layers`, moving statistics included."""
        return [variable for layer in self.pretrained_layers for variable in layer.variables]

    @property
    def backbone_variables(self) -> list[tf.Variable]:
        """Trainable variables of `pretrained_layers`, which train at a lower learning rate (architecture section 7)."""
        return [variable for layer in self.pretrained_layers for variable in layer.trainable_variables]

    @property
    def class_dependent_variables(self) -> list[tf.Variable]:
        """Variables whose shape depends on the class table: the last layers of class and semantic heads."""
        heads = [layer for layer in self.submodules if isinstance(layer, (ClassHead, SemanticHead))]
        return [variable for head in heads for variable in head.logits.variables]


def resized_to(mask_logits, auxiliary: tuple[AuxiliaryOutputs, ...]) -> tuple[AuxiliaryOutputs, ...]:
    """Auxiliary outputs with maps of the size of the final mask logits. Resized features are not normalized again."""
    size = spatial_size(mask_logits)
    return tuple(
        AuxiliaryOutputs(
            pixel_feature=resize_bilinear(outputs.pixel_feature, size),
            mask_logits=resize_bilinear(outputs.mask_logits, size),
            class_logits=outputs.class_logits,
        )
        for outputs in auxiliary
    )


def normalized(images, size_multiple: int = 16) -> tf.Tensor:
    """Images [batch, height, width, 3] of 0..255 as float32 of -1..1.

    Raises:
      ValueError: If there are not four dimensions, or a known side is no multiple of `size_multiple`, plus 1.
    """
    check_sides(images.shape, size_multiple)
    return tf.cast(images, tf.float32) / 127.5 - 1.0


def check_sides(shape, multiple: int) -> None:
    """Raises ValueError unless `shape` is [batch, height, width, 3] with known sides of a multiple plus 1."""
    shape = tf.TensorShape(shape)
    if shape.rank is not None and shape.rank != 4:
        raise ValueError(
            f"images of shape {shape}: wanted [batch, height, width, 3]; give a single image a batch dimension with "
            "images[np.newaxis]"
        )
    for side in shape[1:3]:
        if side is not None and side % multiple != 1:
            below = max(side - 2, multiple) // multiple * multiple + 1
            raise ValueError(
                f"images of {shape[1]} x {shape[2]}: each side must be {multiple}k+1 so that features stay aligned; "
                f"pad or resize, for example {side} to {below + multiple if side > below else below}"
            )
