"""The whole wiring of MaX-DeepLab and of its pretraining, from a variant's table to the model."""

from __future__ import annotations

import dataclasses
import functools
import math

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.aspp import ASPP
from maxdl_tf.layers.axial_attention import AxialAttention2D, GlobalAttention2D
from maxdl_tf.layers.batch_norm import BatchNorm, NormFactory
from maxdl_tf.layers.conv_bn import Conv2DBatchNorm
from maxdl_tf.layers.dual_path_transformer import DualPathTransformer
from maxdl_tf.layers.residual_block import AttentionBlock, BasicBlock, BottleneckBlock
from maxdl_tf.layers.resize import size_at_stride
from maxdl_tf.layers.resized_fuse import ResizedFuse
from maxdl_tf.layers.stage import Stage
from maxdl_tf.layers.stem import InceptionStem
from maxdl_tf.models.backbone import Backbone
from maxdl_tf.models.decoder_schedule import DEEPEST_STRIDE, DecoderStep, decoder_schedule, semantic_source
from maxdl_tf.models.heads import ClassHead, MaskHead, PixelHead, SemanticDecoder, SemanticHead
from maxdl_tf.models.image_classifier import ImageClassifier
from maxdl_tf.models.max_deeplab import MaXDeepLab
from maxdl_tf.models.stacked_decoder import StackedDecoder
from maxdl_tf.models.variants import StageTable, Variant

# Stride of what enters each stage in a ResNet, whose last stage would go to stride 32. Stage 5 stays at 16 here.
_INPUT_STRIDE = {1: 2, 2: 2, 3: 4, 4: 8, 5: 16}
# Whose table the decoder's blocks follow, by their stride.
_STAGE_AT_STRIDE = {4: 2, 8: 3, 16: 5}


def build_max_deeplab(
    variant: Variant,
    *,
    num_classes: int,
    num_semantic_channels: int,
    crop_size: tuple[int, int],
    sync_batch_norm: bool = True,
    batch_norm_momentum: float = 0.99,
) -> MaXDeepLab:
    """Makes a model and its variables.

    Args:
      variant: The table to build.
      num_classes: Things and stuff, without void.
      num_semantic_channels: Channels of the auxiliary semantic logits: `DatasetInfo.num_semantic_channels`.
      crop_size: (height, width) of training images, each 16k+1. Other sizes can be run later; the crop's gives the
        pooling window of the semantic decoder.
      sync_batch_norm: Whether batch norm statistics are taken over all replicas.
      batch_norm_momentum: Share of the old moving statistics that stays at each step.
    """
    norm = functools.partial(BatchNorm, momentum=batch_norm_momentum, synchronized=sync_batch_norm)
    schedule = _schedule(variant)
    semantic_decoder = semantic_head = None
    if variant.semantic_branch:
        head_channels = variant.semantic_head_channels
        semantic_head = SemanticHead(
            head_channels, num_semantic_channels, norm=norm, recompute=variant.recomputes_all, name="semantic_head"
        )
        if semantic_source(schedule) == "stage5":
            semantic_decoder = _semantic_decoder(variant, crop_size, norm)
    model = MaXDeepLab(
        backbone=_backbone(variant, norm),
        decoder=_decoder(variant, schedule, norm),
        pixel_head=PixelHead(
            variant.pixel_head_channels,
            variant.mask_channels,
            norm=norm,
            recompute=variant.recomputes_all,
            name="pixel_head",
        ),
        mask_head=MaskHead(variant.memory_head_channels, variant.mask_channels, norm=norm, name="mask_head"),
        class_head=ClassHead(variant.memory_head_channels, num_classes, norm=norm, name="class_head"),
        semantic_decoder=semantic_decoder,
        semantic_head=semantic_head,
        name="max_deeplab",
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
    """Makes what is pretrained of a variant, as a classifier of whole images, and its variables.

    That is the network without memory and transformers, up to the last of the decoder's pretrained steps.

    Args:
      variant: The table to build.
      num_classes: Classes of images.
      crop_size: (height, width) of training images, each 16k+1.
      sync_batch_norm: Whether batch norm statistics are taken over all replicas.
      batch_norm_momentum: Share of the old moving statistics that stays at each step.
    """
    norm = functools.partial(BatchNorm, momentum=batch_norm_momentum, synchronized=sync_batch_norm)
    variant = dataclasses.replace(variant, transformer_stages=(), decoder_transformer_strides=())
    pretrained = tuple(step for step in _schedule(variant) if step.pretrained)
    model = ImageClassifier(
        backbone=_backbone(variant, norm, memory=False),
        decoder=_decoder(variant, pretrained, norm) if pretrained else None,
        num_classes=num_classes,
        name="image_classifier",
    )
    model.build((None, *crop_size, 3))
    return model


def _schedule(variant: Variant) -> tuple[DecoderStep, ...]:
    return decoder_schedule(
        variant.decoder_stacks,
        pretrained_stacks=variant.pretrained_stacks,
        pretrained_blocks=variant.pretrained_blocks,
        blocks=variant.decoder_blocks,
    )


def _backbone(variant: Variant, norm: NormFactory, memory: bool = True) -> Backbone:
    if variant.stem == "inception":
        stem = InceptionStem(variant.stem_channels, norm=norm, recompute=variant.recomputes_all, name="stem")
    else:
        stem = Conv2DBatchNorm(variant.stem_channels, 3, strides=2, norm=norm, name="stem")
    stages = {}
    for number, table in sorted(variant.stages.items()):
        stages[f"stage{number}"] = _stage(
            variant,
            table,
            f"stage{number}",
            input_strides=_resnet_input_strides(number, table.blocks),
            strides=2 if number in (2, 3, 4) else 1,
            transformer_stride=_INPUT_STRIDE[number] if number in variant.transformer_stages else None,
            norm=norm,
        )
    memory_shape = (variant.num_slots, variant.memory_channels) if memory else None
    return Backbone(stem, stages, memory_shape=memory_shape, name="backbone")


def _decoder(variant: Variant, schedule: tuple[DecoderStep, ...], norm: NormFactory) -> StackedDecoder:
    stride_of = {"stage2": 4, "stage3": 8, "stage5": DEEPEST_STRIDE} | {step.name: step.stride for step in schedule}
    fuses, stages = {}, {}
    current = DEEPEST_STRIDE
    for step in schedule:
        table = variant.stages[_STAGE_AT_STRIDE[step.stride]]
        if step.sources:
            fuses[step.name] = ResizedFuse(
                4 * table.width,
                stride=step.stride,
                source_strides=(current, *(stride_of[name] for name in step.sources)),
                norm=norm,
                recompute=variant.recomputes_all,
                name=f"{step.name}_fuse",
            )
        # At stride 16 blocks are like the later ones of stage 5, whose input would be at stride 32 in a ResNet.
        input_stride = 32 if step.stride == DEEPEST_STRIDE else step.stride
        stages[step.name] = _stage(
            variant,
            table,
            step.name,
            input_strides=[input_stride] * step.blocks,
            strides=1,
            transformer_stride=step.stride if step.stride in variant.decoder_transformer_strides else None,
            norm=norm,
        )
        current = step.stride
    return StackedDecoder(schedule, fuses, stages, name="decoder")


def _semantic_decoder(variant: Variant, crop_size: tuple[int, int], norm: NormFactory) -> SemanticDecoder:
    aspp = ASPP(
        variant.semantic_decoder_channels,
        rates=variant.aspp_rates,
        pool_size=size_at_stride(crop_size, DEEPEST_STRIDE),
        dropout=variant.aspp_dropout,
        norm=norm,
        recompute=variant.recomputes_all,
        name="aspp",
    )
    return SemanticDecoder(
        variant.semantic_decoder_channels,
        aspp,
        variant.semantic_low_level_channels,
        norm=norm,
        recompute=variant.recomputes_all,
        name="semantic_decoder",
    )


def _stage(
    variant: Variant,
    table: StageTable,
    name: str,
    *,
    input_strides: list[int],
    strides: int,
    transformer_stride: int | None,
    norm: NormFactory,
) -> Stage:
    """A stage of one block for each of `input_strides` (as in a ResNet that goes to stride 32)."""
    blocks, transformers = {}, {}
    for number, input_stride in enumerate(input_strides, start=1):
        block = f"block{number}"
        keep = _drop_path_keep(variant, input_stride)
        blocks[block] = _block(variant, table, strides if number == 1 else 1, input_stride, keep, norm, block)
        if transformer_stride is not None:
            transformers[block] = DualPathTransformer(
                variant.transformer_width * transformer_stride // DEEPEST_STRIDE,
                variant.ffn_channels,
                num_heads=variant.num_heads,
                memory_to_pixel=variant.memory_to_pixel,
                memory_to_memory=variant.memory_to_memory,
                pixel_to_memory=variant.pixel_to_memory,
                drop_path_keep=keep,
                norm=norm,
                recompute=variant.recomputes_all,
                name=f"{block}_transformer",
            )
    return Stage(blocks, transformers, name=name)


def _block(
    variant: Variant, table: StageTable, strides: int, input_stride: int, keep: float, norm: NormFactory, name: str
) -> keras.layers.Layer:
    width, channels = table.width, 4 * table.width
    common = {"drop_path_keep": keep, "norm": norm, "name": name}
    if table.attention and strides == 1 and variant.pixel_to_pixel != "convolution":
        attention_class = {"axial": AxialAttention2D, "global": GlobalAttention2D}[variant.pixel_to_pixel]
        key_depth = variant.attention_expansion * width
        attention = attention_class(key_depth, 2 * key_depth, num_heads=variant.num_heads, norm=norm, name="attention")
        recompute = variant.recompute != "none"
        return AttentionBlock(2 * key_depth, channels, attention, recompute=recompute, **common)
    # Where the feature stays at stride 16 instead of going to 32, convolutions look twice as far.
    rate = max(input_stride // DEEPEST_STRIDE, 1)
    common["recompute"] = variant.recomputes_all
    if variant.convolution_block == "basic":
        return BasicBlock(channels, strides=strides, rate=rate, **common)
    return BottleneckBlock(width, channels, strides=strides, rate=rate, **common)


def _resnet_input_strides(stage: int, blocks: int) -> list[int]:
    """Stride of what enters each block of a stage in a ResNet that goes to stride 32."""
    return [_INPUT_STRIDE[stage]] + [_INPUT_STRIDE[stage] * (1 if stage == 1 else 2)] * (blocks - 1)


def _drop_path_keep(variant: Variant, input_stride: int) -> float:
    """Falls linearly from 1 at stride 2 to the variant's at stride 32 (architecture section 2.6)."""
    if input_stride < variant.drop_path_from_stride:
        return 1.0
    return 1.0 - (1.0 - variant.drop_path_keep) * (math.log2(input_stride) - 1.0) / 4.0
