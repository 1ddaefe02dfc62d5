"""Makes the parts of a kMaX-DeepLab (architecture section 16)."""

from __future__ import annotations

from maxdl_tf.layers.dual_path_transformer import DualPathTransformer
from maxdl_tf.layers.resized_fuse import ResizedFuse
from maxdl_tf.models.encoder import Stage
from maxdl_tf.models.parts import Parts
from maxdl_tf.models.pixel_decoder import PixelDecoder
from maxdl_tf.models.transformer_decoder import TransformerDecoder
from maxdl_tf.models.variants import StageTable


class KMaXParts(Parts):
    """Makes the parts of a kMaX-DeepLab."""

    deepest_stride = 32

    @property
    def activation(self) -> str:
        return self.variant.decoder_activation

    @property
    def num_stages(self) -> int:
        """Number of stages of the pixel decoder: from stride 32 to 4, or to 2."""
        return 5 if self.variant.output_stride == 2 else 4

    @property
    def output_stride(self) -> int:
        # The first feature of a ConvNeXt is at stride 4, and so is the last of the pixel decoder that reads it.
        return 4 if self.variant.encoder == "convnext" else self.variant.output_stride

    def pixel_decoder(self) -> PixelDecoder:
        widths, counts = self.variant.pixel_decoder_widths, self.variant.pixel_decoder_blocks
        for option, values in (("widths", widths), ("blocks", counts)):
            if len(values) < self.num_stages:
                raise ValueError(
                    f"pixel_decoder {{ {option} }} has too few values, {len(values)}; give {self.num_stages}, one for "
                    "each stage from stride 32 on"
                )
        stages, fuses = [], []
        for number in range(self.num_stages):
            table = StageTable(counts[number], widths[number])
            blocks = {
                f"block{i}": self.block(
                    table,
                    f"block{i}",
                    attention=number < 2,  # At strides 32 and 16.
                    rate=self.variant.pixel_decoder_rate,
                    **self.common,
                )
                for i in range(1, table.blocks + 1)
            }
            stages.append(Stage(blocks, {}, recompute=self.recompute, name=f"stage{number}"))
            if number:
                stride = self.deepest_stride // 2**number
                fuses.append(
                    ResizedFuse(
                        table.width,
                        stride=stride,
                        source_strides=(2 * stride, stride),
                        **self.common,
                        name=f"fuse{number - 1}",
                    )
                )
        return PixelDecoder(stages, fuses, recompute=self.recompute, name="pixel_decoder")

    def transformer_decoder(self) -> TransformerDecoder:
        counts = self.variant.transformer_decoder_blocks
        sources = [source for source, count in enumerate(counts) for _ in range(count)]
        if len(counts) > self.num_stages or not sources:
            raise ValueError(
                f"transformer_decoder blocks {counts}: must be numbers of transformers for the up to {self.num_stages} "
                "features of the pixel decoder, at least one in all"
            )
        transformers = [
            DualPathTransformer(
                self.variant.transformer_width,
                self.variant.ffn_channels,
                num_heads=self.variant.num_heads,
                memory_to_memory=self.variant.memory_to_memory,
                pixel_to_memory=False,
                predictor=self.predictor("predictor"),
                position_octaves=self.variant.position_octaves,
                drop_path_keep=self.variant.transformer_decoder_drop_path_keep,
                **self.common,
                name=f"transformer{number}",
            )
            for number in range(len(sources))
        ]
        return TransformerDecoder(
            transformers,
            sources,
            memory_shape=(self.variant.num_slots, self.variant.memory_channels),
            seed=self.seed(),
            recompute=self.recompute,
            **self.common,
            name="transformer_decoder",
        )
