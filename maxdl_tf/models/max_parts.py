"""Makes the parts of a MaX-DeepLab (architecture section 3)."""

from __future__ import annotations

from maxdl_tf.layers.dual_path_transformer import DualPathTransformer
from maxdl_tf.layers.resized_fuse import ResizedFuse
from maxdl_tf.models.decoder import DEEPEST_STRIDE, DecoderStep, StackedDecoder, decoder_schedule
from maxdl_tf.models.heads import PixelHead
from maxdl_tf.models.parts import INPUT_STRIDE, Parts
from maxdl_tf.models.variants import StageTable

# Number of the stage whose table the decoder's blocks follow, by their stride.
_STAGE_AT_STRIDE = {4: 2, 8: 3, 16: 5}


class MaXParts(Parts):
    """Makes the parts of a MaX-DeepLab."""

    deepest_stride = DEEPEST_STRIDE

    @property
    def activation(self) -> str:
        return self.variant.encoder_activation

    def schedule(self) -> tuple[DecoderStep, ...]:
        return decoder_schedule(
            self.variant.decoder_stacks,
            pretrained_stacks=self.variant.pretrained_stacks,
            pretrained_blocks=self.variant.pretrained_blocks,
            blocks=self.variant.decoder_blocks,
            output_stride=self.variant.output_stride,
        )

    def decoder(self, schedule: tuple[DecoderStep, ...]) -> StackedDecoder:
        stride_of = {"stage1": 2, "stage2": 4, "stage3": 8, "stage5": DEEPEST_STRIDE} | {
            step.name: step.stride for step in schedule
        }
        fuses, stages = {}, {}
        current = DEEPEST_STRIDE
        for step in schedule:
            table = self.table(step.stride)
            if step.sources:
                fuses[step.name] = ResizedFuse(
                    4 * table.width,
                    stride=step.stride,
                    source_strides=(current, *(stride_of[name] for name in step.sources)),
                    **self.common,
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

    def table(self, stride: int) -> StageTable:
        """Table of the decoder's blocks at a stride."""
        if stride == 2:  # Not all encoders have blocks there.
            return StageTable(1, self.variant.stages[2].width // 2)
        return self.variant.stages[_STAGE_AT_STRIDE[stride]]

    def pixel_head(self) -> PixelHead:
        return PixelHead(
            self.variant.pixel_head_channels,
            self.variant.mask_channels,
            position_octaves=self.variant.position_octaves,
            **self.common,
            name="pixel_head",
        )

    def transformer_stride(self, stage: int) -> int | None:
        return INPUT_STRIDE[stage] if stage in self.variant.transformer_stages else None

    def transformer(self, stride: int, drop_path_keep: float, name: str) -> DualPathTransformer:
        return DualPathTransformer(
            self.variant.transformer_width * stride // DEEPEST_STRIDE,
            self.variant.ffn_channels,
            num_heads=self.variant.num_heads,
            memory_to_pixel=self.variant.memory_to_pixel != "none",
            memory_to_memory=self.variant.memory_to_memory,
            pixel_to_memory=self.variant.pixel_to_memory,
            predictor=self.predictor(f"{name}_predictor") if self.variant.memory_to_pixel == "kmeans" else None,
            position_octaves=self.variant.position_octaves,
            drop_path_keep=drop_path_keep,
            **self.common,
            name=name,
        )
