"""Makes the parts that both families have of a variant's table: encoder, blocks, semantic branch, k-means heads."""

from __future__ import annotations

import math

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.aspp import ASPP
from maxdl_tf.layers.batch_norm import Norm
from maxdl_tf.layers.conv_bn import Conv2DBatchNorm
from maxdl_tf.layers.dual_path_transformer import DualPathTransformer
from maxdl_tf.layers.grid_seed import GridSeed
from maxdl_tf.layers.residual_block import AxialBlock, BasicBlock, BottleneckBlock
from maxdl_tf.models.convnext import convnext_encoder
from maxdl_tf.models.efficientnet_lite import HEAD_CHANNELS, efficientnet_lite_encoder
from maxdl_tf.models.encoder import Encoder, InceptionStem, Stage
from maxdl_tf.models.heads import ClusteringPredictor, SemanticDecoder, SemanticHead
from maxdl_tf.models.variants import StageTable, Variant

# Stride of the input of each stage in a ResNet that goes to stride 32.
INPUT_STRIDE = {1: 2, 2: 2, 3: 4, 4: 8, 5: 16}
# Classes of layers that are recomputed, by `Variant.recompute`.
_RECOMPUTED = {"none": (), "axial": (AxialBlock,), "all": (keras.layers.Layer,)}


class Parts:
    """Makes the parts that both families have.

    Args:
      variant: Table to build.
      norm: Factory of the batch norms.
      num_classes: Number of classes without void.
    """

    activation: str  # Of all layers behind the encoder.
    deepest_stride: int  # Of the encoder; where a ResNet would go deeper, its convolutions have a rate.

    def __init__(self, variant: Variant, norm: Norm, num_classes: int):
        self.variant, self.norm, self.num_classes = variant, norm, num_classes
        self.recompute = _RECOMPUTED[variant.recompute]
        self.common = {"activation": self.activation, "norm": norm}
        self.in_encoder = {"activation": variant.encoder_activation, "norm": norm}

    def encoder(self, memory_shape: tuple[int, int] | None) -> Encoder:
        if self.variant.encoder == "convnext":
            return self.convnext()
        if self.variant.encoder == "efficientnet_lite":
            return self.efficientnet_lite()
        stages = {}
        for number, table in sorted(self.variant.stages.items()):
            deepens = number in (2, 3, 4) or (number == 5 and self.deepest_stride == 32)
            stages[f"stage{number}"] = self.stage(
                table,
                f"stage{number}",
                input_strides=_resnet_input_strides(number, table.blocks),
                strides=2 if deepens else 1,
                transformer_stride=self.transformer_stride(number),
            )
        return Encoder(
            self.stem(),
            stages,
            memory_shape=memory_shape,
            seed=self.seed() if memory_shape else None,
            activation=self.variant.encoder_activation,
            recompute=self.recompute,
            name="backbone",
        )

    def stem(self) -> keras.layers.Layer:
        channels = self.variant.stem_channels
        if self.variant.stem == "inception":
            return InceptionStem(channels, **self.in_encoder, name="stem")
        kernel_size = 7 if self.variant.stem == "convolution7" else 3
        return Conv2DBatchNorm(channels, kernel_size, strides=2, norm=self.norm, name="stem")

    def convnext(self) -> Encoder:
        tables = [self.variant.stages[number] for number in (2, 3, 4, 5)]
        return convnext_encoder(
            [table.blocks for table in tables],
            [table.width for table in tables],
            drop_path_keep=self.variant.drop_path_keep,
            recompute=self.recompute,
            name="backbone",
        )

    def efficientnet_lite(self) -> Encoder:
        tables = [self.variant.stages[number] for number in sorted(self.variant.stages)]
        return efficientnet_lite_encoder(
            self.variant.stem_channels,
            [table.blocks for table in tables],
            [table.width for table in tables],
            drop_path_keep=self.variant.drop_path_keep,
            recompute=self.recompute,
            norm=self.norm,
            name="backbone",
        )

    def classifier_conv(self) -> Conv2DBatchNorm | None:
        """The convolution between the encoder and the classifier of images; None if there is none."""
        if self.variant.encoder != "efficientnet_lite":
            return None
        return Conv2DBatchNorm(HEAD_CHANNELS, activation="relu6", norm=self.norm, name="classifier_conv")

    def transformer_stride(self, stage: int) -> int | None:
        """Stride of the transformers of an encoder's stage, None if it has none."""
        return None

    def transformer(self, stride: int, drop_path_keep: float, name: str) -> DualPathTransformer:
        """A transformer of a stage at a stride."""
        raise NotImplementedError

    def seed(self) -> GridSeed | None:
        if not self.variant.grid_slots:
            return None
        return GridSeed(position_octaves=self.variant.position_octaves, **self.common, name="seed")

    def semantic_decoder(self, pool_size: tuple[int, int] | None = None) -> SemanticDecoder:
        channels = self.variant.semantic_decoder_channels
        aspp = ASPP(
            channels,
            rates=self.variant.aspp_rates,
            pool_size=pool_size,
            dropout=self.variant.aspp_dropout,
            **self.common,
            name="aspp",
        )
        low_level_channels = self.variant.semantic_low_level_channels
        return SemanticDecoder(channels, aspp, low_level_channels, **self.common, name="semantic_decoder")

    def semantic_head(self, num_channels: int) -> SemanticHead | None:
        if not self.variant.semantic_branch:
            return None
        hidden_channels = self.variant.semantic_head_channels
        return SemanticHead(hidden_channels, num_channels, **self.common, name="semantic_head")

    def predictor(self, name: str) -> ClusteringPredictor:
        return ClusteringPredictor(
            self.num_classes,
            self.variant.pixel_head_channels,
            self.variant.mask_channels,
            position_octaves=self.variant.position_octaves,
            **self.common,
            name=name,
        )

    def stage(
        self, table: StageTable, name: str, *, input_strides: list[int], strides: int, transformer_stride: int | None
    ) -> Stage:
        """A stage of one block for each of `input_strides` (as in a ResNet that goes to stride 32)."""
        blocks, transformers = {}, {}
        for number, input_stride in enumerate(input_strides, start=1):
            block = f"block{number}"
            keep = self.drop_path_keep(input_stride)
            stride = strides if number == 1 else 1
            blocks[block] = self.block(
                table,
                block,
                attention=table.attention and (stride == 1 or name == "stage5"),
                strides=stride,
                # Where the feature stays at stride 16 instead of going to 32, convolutions have twice the reach.
                rate=max(input_stride // self.deepest_stride, 1),
                drop_path_keep=keep,
                **self.in_encoder,
            )
            if transformer_stride is not None:
                transformers[block] = self.transformer(transformer_stride, keep, f"{block}_transformer")
        return Stage(blocks, transformers, recompute=self.recompute, name=name)

    def block(self, table: StageTable, name: str, *, attention: bool, rate: int, **common) -> keras.layers.Layer:
        width, channels = table.width, 4 * table.width
        if attention and self.variant.pixel_to_pixel:
            key_depth = self.variant.attention_expansion * width
            return AxialBlock(key_depth, channels, num_heads=self.variant.num_heads, name=name, **common)
        if self.variant.convolution_block == "basic":
            return BasicBlock(channels, rate=rate, name=name, **common)
        return BottleneckBlock(width, channels, rate=rate, name=name, **common)

    def drop_path_keep(self, input_stride: int) -> float:
        """Falls linearly from 1 at stride 2 to the variant's probability at 32 (architecture section 2.6)."""
        if input_stride < self.variant.drop_path_from_stride:
            return 1.0
        return 1.0 - (1.0 - self.variant.drop_path_keep) * (math.log2(input_stride) - 1.0) / 4.0


def _resnet_input_strides(stage: int, blocks: int) -> list[int]:
    """Stride of the input of each block of a stage in a ResNet that goes to stride 32."""
    return [INPUT_STRIDE[stage]] + [INPUT_STRIDE[stage] * (1 if stage == 1 else 2)] * (blocks - 1)
