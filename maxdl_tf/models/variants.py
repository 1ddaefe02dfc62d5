"""The model's variants as tables (architecture section 3, paper section 4)."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class StageTable:
    """One stage of the encoder.

    Attributes:
      blocks: Number of residual blocks. The first has stride 2 in stages 2 to 4; in stages 1 and 5 none has.
      width: Number of channels of the bottleneck; the output has four times as many.
      attention: Whether its blocks have axial attention (`Variant.pixel_to_pixel`) in place of 3x3 convolutions; a
        block with a stride never has.
    """

    blocks: int
    width: int
    attention: bool = False


@dataclass(frozen=True)
class Variant:
    """All that distinguishes one MaX-DeepLab from another, except the data set and the crop.

    A comment above each field describes it. The memory has slots; the paper calls their number N.
    """

    # Kind of the stem: "inception" (three convolutions) or "convolution" (one).
    stem: str
    # Number of channels of the stem's first convolution.
    stem_channels: int
    # Tables of the encoder's stages by number: 2 to 5, and 1 if there is one at stride 2.
    stages: dict[int, StageTable]
    # Kind of the blocks without attention: "bottleneck" or "basic".
    convolution_block: str
    # Depth of an axial block's keys relative to its stage's width; its values and its input are twice as deep.
    attention_expansion: int
    # Number of channels of each slot.
    memory_channels: int
    # Numbers of the stages whose blocks are each followed by a dual-path transformer.
    transformer_stages: tuple[int, ...]
    # Depth of a transformer's queries and keys at stride 16; proportional to the stride elsewhere.
    transformer_width: int
    # Number of hourglasses (L of the paper) in the decoder; a way up to stride 4 follows them.
    decoder_stacks: int
    # Number of hourglasses that belong to the backbone pretrained on ImageNet.
    pretrained_stacks: int
    # Number of residual blocks at each decoder step that is not pretrained.
    decoder_blocks: int
    # Least input stride of a block with drop path.
    drop_path_from_stride: int
    # Number of hidden channels of the class and the mask head.
    memory_head_channels: int
    # Whether pixels attend to pixels in blocks whose stage has attention; if not, they are convolutions.
    pixel_to_pixel: bool = True
    # Whether memory attends to pixels, memory to memory, and pixels to memory (the feedback).
    memory_to_pixel: bool = True
    memory_to_memory: bool = True
    pixel_to_memory: bool = True
    # Number of heads of every attention.
    num_heads: int = 8
    # Number of slots, and so of masks.
    num_slots: int = 128
    # Strides at which decoder blocks are followed by a dual-path transformer.
    decoder_transformer_strides: tuple[int, ...] = (16,)
    # Number of hidden channels of the memory's feed-forward networks.
    ffn_channels: int = 2048
    # Number of residual blocks at each pretrained decoder step.
    pretrained_blocks: int = 1
    # Probability that the deepest blocks keep their residual branch; it falls linearly with depth.
    drop_path_keep: float = 0.8
    # Number of hidden channels of the pixel head.
    pixel_head_channels: int = 256
    # Number of channels (D of the paper) of pixel features and mask embeddings.
    mask_channels: int = 128
    # Whether to build the auxiliary semantic segmentation, and the number of hidden channels of its head.
    semantic_branch: bool = True
    semantic_head_channels: int = 256
    # Number of channels of the decoder before that head, which exists where `decoder_stacks` is 0; numbers of channels
    # to which it reduces the features of strides 8 and 4; rates and dropout of its pyramid.
    semantic_decoder_channels: int = 256
    semantic_low_level_channels: tuple[int, int] = (64, 32)
    aspp_rates: tuple[int, int, int] = (6, 12, 18)
    aspp_dropout: float = 0.1
    # Layers that training computes again for the gradient instead of keeping their inside: "none", "axial" (axial
    # blocks) or "all" (also other blocks, transformers, fuses, the stem and the heads' convolutions). It takes time and
    # saves memory; no result depends on it.
    recompute: str = "none"

    def __post_init__(self):
        choices = {
            "stem": ("inception", "convolution"),
            "convolution_block": ("bottleneck", "basic"),
            "recompute": ("none", "axial", "all"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} {getattr(self, field)!r}: must be one of {', '.join(allowed)}")
        if sorted(self.stages) not in ([1, 2, 3, 4, 5], [2, 3, 4, 5]):
            raise ValueError(f"stages {sorted(self.stages)}: must be 2, 3, 4 and 5, with or without 1")

    def scaled(self, width: float, stem_width: float) -> Variant:
        """This variant with its widths multiplied: stages 2 to 5 by `width`, stem and stage 1 by `stem_width`."""
        stages = {
            number: replace(stage, width=int(stage.width * (stem_width if number == 1 else width)))
            for number, stage in self.stages.items()
        }
        return replace(self, stages=stages, stem_channels=int(self.stem_channels * stem_width))


VARIANTS: dict[str, Variant] = {
    # S's shape at a size that learns on two CPU cores in minutes.
    "tiny": Variant(
        stem="inception",
        stem_channels=16,
        stages={
            2: StageTable(blocks=1, width=16),
            3: StageTable(blocks=1, width=24),
            4: StageTable(blocks=2, width=32, attention=True),
            5: StageTable(blocks=1, width=48, attention=True),
        },
        convolution_block="bottleneck",
        attention_expansion=1,
        num_slots=24,
        memory_channels=64,
        transformer_stages=(5,),
        transformer_width=32,
        ffn_channels=128,
        decoder_stacks=0,
        pretrained_stacks=0,
        decoder_blocks=1,
        drop_path_keep=1.0,
        drop_path_from_stride=16,
        memory_head_channels=64,
        pixel_head_channels=48,
        mask_channels=32,
        semantic_head_channels=48,
        semantic_decoder_channels=48,
        semantic_low_level_channels=(24, 16),
        aspp_rates=(1, 2, 3),
        aspp_dropout=0.0,
    ),
    # ResNet-50 with axial attention in the last two stages; the last one and one more become dual-path.
    "s": Variant(
        stem="inception",
        stem_channels=64,
        stages={
            2: StageTable(blocks=3, width=64),
            3: StageTable(blocks=4, width=128),
            4: StageTable(blocks=6, width=256, attention=True),
            5: StageTable(blocks=3, width=512, attention=True),
        },
        convolution_block="bottleneck",
        attention_expansion=1,
        memory_channels=256,
        transformer_stages=(5,),
        transformer_width=128,
        decoder_stacks=0,
        pretrained_stacks=0,
        decoder_blocks=1,
        drop_path_from_stride=16,
        memory_head_channels=256,
    ),
    # Wide-ResNet-41 whose blocks at stride 16 are dual-path axial blocks, with two hourglasses.
    "l": Variant(
        stem="convolution",
        stem_channels=64,
        stages={
            1: StageTable(blocks=3, width=32),
            2: StageTable(blocks=3, width=64),
            3: StageTable(blocks=6, width=128),
            4: StageTable(blocks=3, width=256, attention=True),
            5: StageTable(blocks=3, width=512, attention=True),
        },
        convolution_block="basic",
        attention_expansion=2,
        memory_channels=512,
        transformer_stages=(4, 5),
        transformer_width=256,
        decoder_stacks=2,
        pretrained_stacks=1,
        decoder_blocks=3,
        drop_path_from_stride=4,
        memory_head_channels=512,
    ),
}
