"""The model's variants as tables (architecture section 3, paper section 4)."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class StageTable:
    """One stage of the encoder.

    Attributes:
      blocks: Residual blocks. The first has stride 2 in stages 2 to 4; in stages 1 and 5 none has.
      width: Channels of the bottleneck; the output has four times as many.
      attention: Whether the pixels of its blocks attend to each other (`Variant.pixel_to_pixel`) instead of being
        convolved. A block with a stride is always a convolution.
    """

    blocks: int
    width: int
    attention: bool = False


@dataclass(frozen=True)
class Variant:
    """Everything that tells one MaX-DeepLab from another, but for the data set and the crop.

    Attributes:
      stem: "inception" (three convolutions) or "convolution" (one).
      stem_channels: Channels of the stem's first convolution.
      stages: Tables of the encoder's stages by number: 2 to 5, and 1 if there is one at stride 2.
      convolution_block: "bottleneck" or "basic", for blocks without attention.
      pixel_to_pixel: "axial" or "global" attention or "convolution", for blocks whose stage has attention.
      attention_expansion: Depth of the keys of an attention block, relative to its stage's width; the values and the
        channels that enter the attention are twice as many.
      num_heads: Heads of all attentions.
      num_slots: Slots of the memory, the number of masks N.
      memory_channels: Channels of each slot.
      transformer_stages: Numbers of the stages whose blocks are each followed by a dual-path transformer.
      decoder_transformer_strides: Strides at which decoder blocks are followed by one.
      transformer_width: Depth of a transformer's queries and keys at stride 16; proportional to the stride elsewhere.
      ffn_channels: Hidden channels of the memory's feed-forward networks.
      memory_to_pixel: Memory attends to pixels.
      memory_to_memory: Memory attends to memory.
      pixel_to_memory: Pixels attend to memory (the feedback).
      decoder_stacks: Hourglasses L of the decoder; a way up to stride 4 follows them.
      pretrained_stacks: How many of them belong to the backbone that is pretrained on ImageNet.
      pretrained_blocks: Residual blocks at each step of those.
      decoder_blocks: Residual blocks at each other step.
      drop_path_keep: Probability that the deepest blocks keep their residual branch; it falls linearly with depth.
      drop_path_from_stride: Blocks of input stride under this one always keep theirs.
      memory_head_channels: Hidden channels of the class and the mask head.
      pixel_head_channels: Hidden channels of the pixel head.
      mask_channels: Channels D of pixel features and mask embeddings.
      semantic_branch: Whether to have the auxiliary semantic segmentation.
      semantic_head_channels: Hidden channels of its head.
      semantic_decoder_channels: Channels of the decoder in front of it, which is there if `decoder_stacks` is 0.
      semantic_low_level_channels: Channels to which that decoder brings the features of stride 8 and 4.
      aspp_rates: Rates of that decoder's atrous convolutions.
      aspp_dropout: Dropout of that decoder's pyramid.
      recompute: What training computes again for the gradient instead of keeping it: "none", "axial" (the inside of
        attention blocks) or "all" (that of all blocks, transformers, the stem and the heads' convolutions). It costs
        time and saves memory; no result depends on it.
    """

    stem: str
    stem_channels: int
    stages: dict[int, StageTable]
    convolution_block: str
    attention_expansion: int
    memory_channels: int
    transformer_stages: tuple[int, ...]
    transformer_width: int
    decoder_stacks: int
    pretrained_stacks: int
    decoder_blocks: int
    drop_path_from_stride: int
    memory_head_channels: int
    pixel_to_pixel: str = "axial"
    num_heads: int = 8
    num_slots: int = 128
    decoder_transformer_strides: tuple[int, ...] = (16,)
    ffn_channels: int = 2048
    memory_to_pixel: bool = True
    memory_to_memory: bool = True
    pixel_to_memory: bool = True
    pretrained_blocks: int = 1
    drop_path_keep: float = 0.8
    pixel_head_channels: int = 256
    mask_channels: int = 128
    semantic_branch: bool = True
    semantic_head_channels: int = 256
    semantic_decoder_channels: int = 256
    semantic_low_level_channels: tuple[int, int] = (64, 32)
    aspp_rates: tuple[int, int, int] = (6, 12, 18)
    aspp_dropout: float = 0.1
    recompute: str = "none"

    def __post_init__(self):
        choices = {
            "stem": ("inception", "convolution"),
            "convolution_block": ("bottleneck", "basic"),
            "pixel_to_pixel": ("axial", "global", "convolution"),
            "recompute": ("none", "axial", "all"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} {getattr(self, field)!r}: must be one of {', '.join(allowed)}")
        if sorted(self.stages) not in ([1, 2, 3, 4, 5], [2, 3, 4, 5]):
            raise ValueError(f"stages {sorted(self.stages)}: must be 2 to 5, with or without 1")

    @property
    def recomputes_all(self) -> bool:
        return self.recompute == "all"

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
