"""The variants of both families as tables (architecture sections 3 and 16)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar


@dataclass(frozen=True)
class StageTable:
    """One stage of the encoder.

    Attributes:
      blocks: Number of blocks. In a ResNet, the first has stride 2 in stages 2 to 4, and in stage 5 if the encoder goes
        to stride 32.
      width: Number of channels of the bottleneck, whose output has four times as many. In a ConvNeXt and an
        EfficientNet-Lite: of the output.
      attention: Whether its blocks have axial attention (`Variant.pixel_to_pixel`) in place of 3x3 convolutions. The
        strided block of stages 2 to 4 never has.
    """

    blocks: int
    width: int
    attention: bool = False


def _stages(widths: tuple[int, ...], blocks: tuple[int, ...], attention: tuple[int, ...] = ()) -> dict[int, StageTable]:
    """Tables of the last stages, the last of which is stage 5; `attention` has the numbers of those with attention."""
    first = 6 - len(widths)
    return {
        number: StageTable(count, width, number in attention)
        for number, (width, count) in enumerate(zip(widths, blocks), start=first)
    }


@dataclass(frozen=True)
class Variant:
    """What distinguishes one network from another of its family, except the data set and the crop.

    A comment above each field describes it. The memory has slots; the paper calls their number N. Defaults are those of
    MaX-DeepLab-S.
    """

    # Kind of the encoder: "resnet", or "convnext" or "efficientnet_lite", which have neither attention nor a choice of
    # stem and activation.
    encoder: str = "resnet"
    # Kind of a ResNet's stem: "inception" (three 3x3 convolutions), "convolution" (one), "convolution7" (one of 7x7).
    stem: str = "inception"
    # Number of channels of the stem's first convolution.
    stem_channels: int = 64
    # Tables of the encoder's stages by number: 2 to 5, and 1 if there is one at stride 2. Of an EfficientNet-Lite: 1 to
    # 7, the rows of its paper, two of which share stride 16 and two stride 32.
    stages: dict[int, StageTable] = field(
        default_factory=lambda: _stages((64, 128, 256, 512), (3, 4, 6, 3), attention=(4, 5))
    )
    # Activation of the encoder: "relu" or "gelu".
    encoder_activation: str = "relu"
    # Kind of a ResNet's blocks without attention: "bottleneck" or "basic".
    convolution_block: str = "bottleneck"
    # Depth of an axial block's keys relative to its stage's width; its values and its input are twice as deep.
    attention_expansion: int = 1
    # Whether pixels attend to pixels in blocks whose stage has attention; if not, they are convolutions.
    pixel_to_pixel: bool = True
    # Whether memory attends to memory.
    memory_to_memory: bool = True
    # Number of octaves of the sine encodings of positions that transformers and pixel heads read; 0 for none.
    position_octaves: int = 0
    # Whether slots begin with the feature at their point of a grid besides their learned vector.
    grid_slots: bool = False
    # Number of heads of every attention.
    num_heads: int = 8
    # Number of slots, and so of masks, and number of channels of each slot.
    num_slots: int = 128
    memory_channels: int = 256
    # Depth of a transformer's queries and keys at stride 16 (MaX-DeepLab: proportional to the stride elsewhere).
    transformer_width: int = 128
    # Number of hidden channels of the memory's feed-forward networks.
    ffn_channels: int = 2048
    # Probability that the deepest blocks of the encoder keep their residual branch; it falls linearly with depth.
    drop_path_keep: float = 0.8
    # Least input stride of a ResNet's block with drop path.
    drop_path_from_stride: int = 16
    # Pixels of the image per position of the masks: 4, or 2. A ConvNeXt has no finer feature than stride 4.
    output_stride: int = 4
    # Number of hidden channels of the pixel head.
    pixel_head_channels: int = 256
    # Number of channels (D of the paper) of pixel features and mask embeddings.
    mask_channels: int = 128
    # Whether to build the auxiliary semantic segmentation, and the number of hidden channels of its head.
    semantic_branch: bool = True
    semantic_head_channels: int = 256
    # Number of channels of the decoder before that head; numbers of channels to which it reduces the features of
    # strides 8 and 4; rates and dropout of its pyramid.
    semantic_decoder_channels: int = 256
    semantic_low_level_channels: tuple[int, int] = (64, 32)
    aspp_rates: tuple[int, int, int] = (6, 12, 18)
    aspp_dropout: float = 0.1
    # Layers that training computes again for the gradient instead of keeping their inside: "none", "axial" (axial
    # blocks) or "all" (also other blocks, transformers, fuses, the stem and the heads' convolutions). It takes time and
    # saves memory; no result depends on it.
    recompute: str = "none"

    # Allowed values of fields with names as values.
    _choices: ClassVar[dict[str, tuple]] = {
        "encoder": ("resnet", "convnext", "efficientnet_lite"),
        "stem": ("inception", "convolution", "convolution7"),
        "encoder_activation": ("relu", "gelu"),
        "convolution_block": ("bottleneck", "basic"),
        "recompute": ("none", "axial", "all"),
        "output_stride": (2, 4),
    }

    def __post_init__(self):
        for name, allowed in self._choices.items():
            if getattr(self, name) not in allowed:
                listed = ", ".join(str(choice) for choice in allowed)
                raise ValueError(f"{name} {getattr(self, name)!r}: must be one of {listed}")
        if self.encoder == "efficientnet_lite":
            if sorted(self.stages) != [1, 2, 3, 4, 5, 6, 7]:
                raise ValueError(f"stages {sorted(self.stages)}: must be 1 to 7")
        elif sorted(self.stages) not in ([1, 2, 3, 4, 5], [2, 3, 4, 5]):
            raise ValueError(f"stages {sorted(self.stages)}: must be 2, 3, 4 and 5, with or without 1")

    def scaled(self, width: float, stem_width: float) -> Variant:
        """This variant with its widths multiplied: stages 2 to 5 by `width`, stem and stage 1 by `stem_width`."""
        stages = {
            number: replace(stage, width=int(stage.width * (stem_width if number == 1 else width)))
            for number, stage in self.stages.items()
        }
        return replace(self, stages=stages, stem_channels=int(self.stem_channels * stem_width))


@dataclass(frozen=True)
class MaXVariant(Variant):
    """A MaX-DeepLab."""

    family: ClassVar[str] = "MaX-DeepLab"
    # How the memory reads pixels: "softmax" (attention), "kmeans" (kMaX-DeepLab, section 3.2) or "none".
    memory_to_pixel: str = "softmax"
    # Whether pixels attend to memory (the feedback).
    pixel_to_memory: bool = True
    # Numbers of the stages whose blocks are each followed by a dual-path transformer.
    transformer_stages: tuple[int, ...] = (5,)
    # Number of hourglasses (L of the paper) in the decoder; a way up to stride 4 follows them.
    decoder_stacks: int = 0
    # Number of hourglasses that belong to the backbone pretrained on ImageNet.
    pretrained_stacks: int = 0
    # Number of residual blocks at each pretrained decoder step, and at each other one.
    pretrained_blocks: int = 1
    decoder_blocks: int = 1
    # Strides at which decoder blocks are followed by a dual-path transformer.
    decoder_transformer_strides: tuple[int, ...] = (16,)
    # Number of hidden channels of the class and the mask head.
    memory_head_channels: int = 256

    _choices: ClassVar[dict[str, tuple]] = {**Variant._choices, "memory_to_pixel": ("none", "softmax", "kmeans")}


@dataclass(frozen=True)
class KMaXVariant(Variant):
    """A kMaX-DeepLab. Its encoder ends at stride 32.

    What the reference infers from the name of the data set (number of slots, finest stride, semantic decoder, drop
    path) are fields.
    """

    family: ClassVar[str] = "kMaX-DeepLab"
    drop_path_keep: float = 1.0
    # Activation of all layers behind the encoder: "gelu" or "relu". On CPUs, GELU takes several times the time of ReLU.
    decoder_activation: str = "gelu"
    # Widths and numbers of blocks of the pixel decoder's stages, from stride 32 on; the outputs have four times as many
    # channels. Another stage follows for output_stride 2.
    pixel_decoder_widths: tuple[int, ...] = (512, 256, 128, 64, 32)
    pixel_decoder_blocks: tuple[int, ...] = (1, 5, 1, 1, 1)
    # Rate of the 3x3 convolutions in the pixel decoder's bottleneck blocks. The published weights have 2.
    pixel_decoder_rate: int = 2
    # Numbers of transformers that read the pixel decoder's features of strides 32, 16 and 8.
    transformer_decoder_blocks: tuple[int, ...] = (2, 2, 2)
    # Probability that transformers keep a residual branch, the same in all.
    transformer_decoder_drop_path_keep: float = 0.8
    # Whether a decoder precedes the head of the auxiliary semantic segmentation, which otherwise stays at stride 32.
    semantic_decoder: bool = True

    _choices: ClassVar[dict[str, tuple]] = {**Variant._choices, "decoder_activation": ("gelu", "relu")}


# Sizes at which a network learns on two CPU cores in minutes.
_TINY = {
    "stem_channels": 16,
    "stages": _stages((16, 24, 32, 48), (1, 1, 2, 1), attention=(4, 5)),
    "num_slots": 24,
    "memory_channels": 64,
    "transformer_width": 32,
    "ffn_channels": 128,
    "drop_path_keep": 1.0,
    "pixel_head_channels": 48,
    "mask_channels": 32,
    "semantic_head_channels": 48,
    "semantic_decoder_channels": 48,
    "semantic_low_level_channels": (24, 16),
    "aspp_rates": (1, 2, 3),
    "aspp_dropout": 0.0,
}


def _convnext(widths: tuple[int, ...], depth: int, keep: float) -> KMaXVariant:
    stages = _stages(widths, (3, 3, depth, 3))
    return KMaXVariant(encoder="convnext", stages=stages, encoder_activation="gelu", drop_path_keep=keep)


VARIANTS: dict[str, MaXVariant | KMaXVariant] = {
    # S's shape, small.
    "tiny": MaXVariant(memory_head_channels=64, **_TINY),
    # ResNet-50 with axial attention in the last two stages; the last one and one more become dual-path.
    "s": MaXVariant(),
    # Wide-ResNet-41 whose blocks at stride 16 are dual-path axial blocks, with two hourglasses.
    "l": MaXVariant(
        stem="convolution",
        stages=_stages((32, 64, 128, 256, 512), (3, 3, 6, 3, 3), attention=(4, 5)),
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
    # S's encoder with GELU, small, with a small kMaX-DeepLab behind it.
    "kmax_tiny": KMaXVariant(
        encoder_activation="gelu",
        pixel_decoder_widths=(48, 32, 24, 16, 8),
        pixel_decoder_blocks=(1, 2, 1, 1, 1),
        transformer_decoder_drop_path_keep=1.0,
        **_TINY,
    ),
    # EfficientNet-Lite0, for which ImageNet weights can be installed, with a small kMaX-DeepLab behind it.
    "lite": KMaXVariant(
        encoder="efficientnet_lite",
        pixel_to_pixel=False,
        decoder_activation="relu",
        semantic_decoder=False,
        pixel_decoder_widths=(32, 24, 16, 12, 8),
        pixel_decoder_blocks=(1, 1, 1, 1, 1),
        pixel_decoder_rate=1,
        transformer_decoder_blocks=(1, 1, 1),
        transformer_decoder_drop_path_keep=1.0,
        **{
            **_TINY,
            "stem_channels": 32,
            "stages": {
                number: StageTable(blocks, width)
                for number, (blocks, width) in enumerate(
                    ((1, 16), (2, 24), (2, 40), (3, 80), (3, 112), (4, 192), (1, 320)), start=1
                )
            },
        },
    ),
    # The plain ResNet-50.
    "kmax_r50": KMaXVariant(stem="convolution7", stages=_stages((64, 128, 256, 512), (3, 4, 6, 3))),
    # S's encoder with GELU.
    "kmax_axial_r50": KMaXVariant(encoder_activation="gelu", drop_path_keep=0.8),
    "kmax_convnext_t": _convnext((96, 192, 384, 768), 9, keep=0.7),
    "kmax_convnext_s": _convnext((96, 192, 384, 768), 27, keep=0.6),
    "kmax_convnext_b": _convnext((128, 256, 512, 1024), 27, keep=0.5),
    "kmax_convnext_l": _convnext((192, 384, 768, 1536), 27, keep=0.4),
}
