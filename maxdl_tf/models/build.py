"""The whole wiring of MaX-DeepLab and of its pretraining, from a variant's table to the model."""

from __future__ import annotations

import dataclasses
import math

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.aspp import ASPP
from maxdl_tf.layers.batch_norm import Norm
from maxdl_tf.layers.conv_bn import Conv2DBatchNorm
from maxdl_tf.layers.dual_path_transformer import DualPathTransformer
from maxdl_tf.layers.residual_block import AxialBlock, BasicBlock, BottleneckBlock
from maxdl_tf.layers.resize import size_at_stride
from maxdl_tf.layers.resized_fuse import ResizedFuse
from maxdl_tf.models.decoder import DEEPEST_STRIDE, DecoderStep, StackedDecoder, decoder_schedule, semantic_source
from maxdl_tf.models.encoder import Encoder, InceptionStem, Stage
from maxdl_tf.models.heads import ClassHead, MaskHead, PixelHead, SemanticDecoder, SemanticHead
from maxdl_tf.models.image_classifier import ImageClassifier
from maxdl_tf.models.max_deeplab import MaXDeepLab
from maxdl_tf.models.variants import StageTable, Variant

# Stride of the input of each stage in a ResNet, whose last stage would go to stride 32. Stage 5 stays at 16 here.
_INPUT_STRIDE = {1: 2, 2: 2, 3: 4, 4: 8, 5: 16}
# Number of the stage whose table the decoder's blocks follow, by their stride.
_STAGE_AT_STRIDE = {4: 2, 8: 3, 16: 5}
# Classes of layers that are recomputed, by `Variant.recompute`.
_RECOMPUTED = {"none": (), "axial": (AxialBlock,), "all": (keras.layers.Layer,)}


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
      variant: Table to build.
      num_classes: Number of classes, things and stuff, without void.
      num_semantic_channels: Number of channels of the auxiliary semantic logits: `DatasetInfo.num_semantic_channels`.
      crop_size: (height, width) of training images, each 16k+1. The model runs on other sizes too; the crop's decides
        the pooling window of the semantic decoder.
      sync_batch_norm: Whether batch norm statistics are taken over all replicas.
      batch_norm_momentum: Share of the old moving statistics that is kept at each step.
    """
    norm = Norm(batch_norm_momentum, sync_batch_norm)
    parts = _Parts(variant, norm)
    schedule = parts.schedule()
    semantic_decoder = semantic_head = None
    if variant.semantic_branch:
        semantic_head = SemanticHead(
            variant.semantic_head_channels, num_semantic_channels, norm=norm, name="semantic_head"
        )
        if semantic_source(schedule) == "stage5":
            semantic_decoder = parts.semantic_decoder(crop_size)
    model = MaXDeepLab(
        backbone=parts.encoder(memory_shape=(variant.num_slots, variant.memory_channels)),
        decoder=parts.decoder(schedule),
        pixel_head=PixelHead(variant.pixel_head_channels, variant.mask_channels, norm=norm, name="pixel_head"),
        mask_head=MaskHead(variant.memory_head_channels, variant.mask_channels, norm=norm, name="mask_head"),
        class_head=ClassHead(variant.memory_head_channels, num_classes, norm=norm, name="class_head"),
        semantic_decoder=semantic_decoder,
        semantic_head=semantic_head,
        recompute=parts.recompute,
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
    """Makes the pretrained part of a variant as a classifier of whole images, and its variables.

    It is the network without memory and transformers, up to the last pretrained step of the decoder.

    Args:
      variant: Table to build.
      num_classes: Number of classes of images.
      crop_size: (height, width) of training images, each 16k+1.
      sync_batch_norm: Whether batch norm statistics are taken over all replicas.
      batch_norm_momentum: Share of the old moving statistics that is kept at each step.
    """
    variant = dataclasses.replace(variant, transformer_stages=(), decoder_transformer_strides=())
    parts = _Parts(variant, Norm(batch_norm_momentum, sync_batch_norm))
    pretrained = tuple(step for step in parts.schedule() if step.pretrained)
    model = ImageClassifier(
        backbone=parts.encoder(memory_shape=None),
        decoder=parts.decoder(pretrained) if pretrained else None,
        num_classes=num_classes,
        name="image_classifier",
    )
    model.build((None, *crop_size, 3))
    return model


class _Parts:
    """Makes the parts of one variant."""

    def __init__(self, variant: Variant, norm: Norm):
        self.variant, self.norm = variant, norm
        self.recompute = _RECOMPUTED[variant.recompute]

    def schedule(self) -> tuple[DecoderStep, ...]:
        return decoder_schedule(
            self.variant.decoder_stacks,
            pretrained_stacks=self.variant.pretrained_stacks,
            pretrained_blocks=self.variant.pretrained_blocks,
            blocks=self.variant.decoder_blocks,
        )

    def encoder(self, memory_shape: tuple[int, int] | None) -> Encoder:
        if self.variant.stem == "inception":
            stem = InceptionStem(self.variant.stem_channels, norm=self.norm, name="stem")
        else:
            stem = Conv2DBatchNorm(self.variant.stem_channels, 3, strides=2, norm=self.norm, name="stem")
        stages = {}
        for number, table in sorted(self.variant.stages.items()):
            stages[f"stage{number}"] = self.stage(
                table,
                f"stage{number}",
                input_strides=_resnet_input_strides(number, table.blocks),
                strides=2 if number in (2, 3, 4) else 1,
                transformer_stride=_INPUT_STRIDE[number] if number in self.variant.transformer_stages else None,
            )
        return Encoder(stem, stages, memory_shape=memory_shape, recompute=self.recompute, name="backbone")

    def decoder(self, schedule: tuple[DecoderStep, ...]) -> StackedDecoder:
        stride_of = {"stage2": 4, "stage3": 8, "stage5": DEEPEST_STRIDE} | {step.name: step.stride for step in schedule}
        fuses, stages = {}, {}
        current = DEEPEST_STRIDE
        for step in schedule:
            table = self.variant.stages[_STAGE_AT_STRIDE[step.stride]]
            if step.sources:
                fuses[step.name] = ResizedFuse(
                    4 * table.width,
                    stride=step.stride,
                    source_strides=(current, *(stride_of[name] for name in step.sources)),
                    norm=self.norm,
                    name=f"{step.name}_fuse",
                )
            # At stride 16, blocks are like the later ones of stage 5, whose input would be at stride 32 in a ResNet.
            input_stride = 32 if step.stride == DEEPEST_STRIDE else step.stride
            stages[step.name] = self.stage(
                table,
                step.name,
                input_strides=[input_stride] * step.blocks,
                strides=1,
                transformer_stride=step.stride if step.stride in self.variant.decoder_transformer_strides else None,
            )
            current = step.stride
        return StackedDecoder(schedule, fuses, stages, recompute=self.recompute, name="decoder")

    def semantic_decoder(self, crop_size: tuple[int, int]) -> SemanticDecoder:
        channels = self.variant.semantic_decoder_channels
        aspp = ASPP(
            channels,
            rates=self.variant.aspp_rates,
            pool_size=size_at_stride(crop_size, DEEPEST_STRIDE),
            dropout=self.variant.aspp_dropout,
            norm=self.norm,
            name="aspp",
        )
        low_level_channels = self.variant.semantic_low_level_channels
        return SemanticDecoder(channels, aspp, low_level_channels, norm=self.norm, name="semantic_decoder")

    def stage(
        self, table: StageTable, name: str, *, input_strides: list[int], strides: int, transformer_stride: int | None
    ) -> Stage:
        """A stage of one block for each of `input_strides` (as in a ResNet that goes to stride 32)."""
        blocks, transformers = {}, {}
        for number, input_stride in enumerate(input_strides, start=1):
            block = f"block{number}"
            keep = self.drop_path_keep(input_stride)
            blocks[block] = self.block(table, strides if number == 1 else 1, input_stride, keep, block)
            if transformer_stride is not None:
                transformers[block] = DualPathTransformer(
                    self.variant.transformer_width * transformer_stride // DEEPEST_STRIDE,
                    self.variant.ffn_channels,
                    num_heads=self.variant.num_heads,
                    memory_to_pixel=self.variant.memory_to_pixel,
                    memory_to_memory=self.variant.memory_to_memory,
                    pixel_to_memory=self.variant.pixel_to_memory,
                    drop_path_keep=keep,
                    norm=self.norm,
                    name=f"{block}_transformer",
                )
        return Stage(blocks, transformers, recompute=self.recompute, name=name)

    def block(self, table: StageTable, strides: int, input_stride: int, keep: float, name: str) -> keras.layers.Layer:
        width, channels = table.width, 4 * table.width
        common = {"drop_path_keep": keep, "norm": self.norm, "name": name}
        if table.attention and strides == 1 and self.variant.pixel_to_pixel:
            key_depth = self.variant.attention_expansion * width
            return AxialBlock(key_depth, channels, num_heads=self.variant.num_heads, **common)
        # Where the feature stays at stride 16 instead of going to 32, convolutions have twice the reach.
        common |= {"strides": strides, "rate": max(input_stride // DEEPEST_STRIDE, 1)}
        if self.variant.convolution_block == "basic":
            return BasicBlock(channels, **common)
        return BottleneckBlock(width, channels, **common)

    def drop_path_keep(self, input_stride: int) -> float:
        """Falls linearly from 1 at stride 2 to the variant's probability at 32 (architecture section 2.6)."""
        if input_stride < self.variant.drop_path_from_stride:
            return 1.0
        return 1.0 - (1.0 - self.variant.drop_path_keep) * (math.log2(input_stride) - 1.0) / 4.0


def _resnet_input_strides(stage: int, blocks: int) -> list[int]:
    """Stride of the input of each block of a stage in a ResNet that goes to stride 32."""
    return [_INPUT_STRIDE[stage]] + [_INPUT_STRIDE[stage] * (1 if stage == 1 else 2)] * (blocks - 1)
