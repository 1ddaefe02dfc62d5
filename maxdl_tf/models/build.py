"""Builds the networks of both families, and of their pretraining, from a variant's table."""

from __future__ import annotations

import dataclasses

from maxdl_tf.layers.batch_norm import Norm
from maxdl_tf.layers.resize import size_at_stride
from maxdl_tf.models.decoder import DEEPEST_STRIDE, semantic_source
from maxdl_tf.models.heads import ClassHead, MaskHead
from maxdl_tf.models.image_classifier import ImageClassifier
from maxdl_tf.models.kmax_deeplab import KMaXDeepLab
from maxdl_tf.models.kmax_parts import KMaXParts
from maxdl_tf.models.max_deeplab import MaXDeepLab
from maxdl_tf.models.max_parts import MaXParts
from maxdl_tf.models.network import PanopticNetwork
from maxdl_tf.models.variants import KMaXVariant, MaXVariant, Variant


def build_panoptic_model(variant: Variant, **arguments) -> PanopticNetwork:
    """Makes a model of the variant's family; arguments as `build_max_deeplab`."""
    return (build_kmax_deeplab if isinstance(variant, KMaXVariant) else build_max_deeplab)(variant, **arguments)


def build_max_deeplab(
    variant: MaXVariant,
    *,
    num_classes: int,
    num_semantic_channels: int,
    crop_size: tuple[int, int],
    sync_batch_norm: bool = True,
    batch_norm_momentum: float = 0.99,
) -> MaXDeepLab:
    """Makes a model and its variables.

    Args:
      variant: Table to build.
      num_classes: Number of classes, things and stuff, without void.
      num_semantic_channels: Number of channels of the auxiliary semantic logits: `DatasetInfo.num_semantic_channels`.
      crop_size: (height, width) of training images, each 16k+1. The model runs on other sizes too; the crop's decides
        the pooling window of the semantic decoder.
      sync_batch_norm: Whether batch norm statistics are taken over all replicas.
      batch_norm_momentum: Share of the old moving statistics that is kept at each step.
    """
    norm = Norm(batch_norm_momentum, sync_batch_norm)
    parts = MaXParts(variant, norm, num_classes)
    schedule = parts.schedule()
    semantic_decoder = None
    if variant.semantic_branch and semantic_source(schedule) == "stage5":
        semantic_decoder = parts.semantic_decoder(pool_size=size_at_stride(crop_size, DEEPEST_STRIDE))
    model = MaXDeepLab(
        backbone=parts.encoder(memory_shape=(variant.num_slots, variant.memory_channels)),
        decoder=parts.decoder(schedule),
        pixel_head=parts.pixel_head(),
        mask_head=MaskHead(variant.memory_head_channels, variant.mask_channels, **parts.common, name="mask_head"),
        class_head=ClassHead(variant.memory_head_channels, num_classes, **parts.common, name="class_head"),
        semantic_decoder=semantic_decoder,
        semantic_head=parts.semantic_head(num_semantic_channels),
        recompute=parts.recompute,
        name="max_deeplab",
    )
    model.build((None, *crop_size, 3))
    return model


def build_kmax_deeplab(
    variant: KMaXVariant,
    *,
    num_classes: int,
    num_semantic_channels: int,
    crop_size: tuple[int, int],
    sync_batch_norm: bool = True,
    batch_norm_momentum: float = 0.99,
) -> KMaXDeepLab:
    """Makes a kMaX-DeepLab and its variables; arguments as `build_max_deeplab`, with sides of 32k+1."""
    parts = KMaXParts(variant, Norm(batch_norm_momentum, sync_batch_norm), num_classes)
    model = KMaXDeepLab(
        backbone=parts.encoder(memory_shape=None),
        pixel_decoder=parts.pixel_decoder(),
        transformer_decoder=parts.transformer_decoder(),
        predictor=parts.predictor("predictor"),
        semantic_decoder=parts.semantic_decoder() if variant.semantic_branch and variant.semantic_decoder else None,
        semantic_head=parts.semantic_head(num_semantic_channels),
        output_stride=parts.output_stride,
        recompute=parts.recompute,
        name="kmax_deeplab",
    )
    model.build((None, *crop_size, 3))
    return model


def build_image_classifier(
    variant: Variant,
    *,
    num_classes: int,
    crop_size: tuple[int, int],
    sync_batch_norm: bool = True,
    batch_norm_momentum: float = 0.99,
) -> ImageClassifier:
    """Makes the pretrained part of a variant as a classifier of whole images, and its variables.

    It is the network without memory and transformers: a MaX-DeepLab up to the last pretrained step of its decoder, or
    the encoder of a kMaX-DeepLab.

    Args:
      variant: Table to build.
      num_classes: Number of classes of images.
      crop_size: (height, width) of training images, each 16k+1.
      sync_batch_norm: Whether batch norm statistics are taken over all replicas.
      batch_norm_momentum: Share of the old moving statistics that is kept at each step.
    """
    norm = Norm(batch_norm_momentum, sync_batch_norm)
    decoder = None
    if isinstance(variant, KMaXVariant):
        parts = KMaXParts(variant, norm, num_classes)
    else:
        variant = dataclasses.replace(variant, transformer_stages=(), decoder_transformer_strides=())
        parts = MaXParts(variant, norm, num_classes)
        pretrained = tuple(step for step in parts.schedule() if step.pretrained)
        decoder = parts.decoder(pretrained) if pretrained else None
    model = ImageClassifier(
        backbone=parts.encoder(memory_shape=None),
        decoder=decoder,
        classifier_conv=parts.classifier_conv(),
        num_classes=num_classes,
        name="image_classifier",
    )
    model.build((None, *crop_size, 3))
    return model
