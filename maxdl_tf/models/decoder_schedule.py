"""The stacked decoder as data: which strides it visits and what it adds up there (architecture section 3)."""

from __future__ import annotations

from dataclasses import dataclass

DEEPEST_STRIDE = 16
FINAL_STRIDE = 4


@dataclass(frozen=True)
class DecoderStep:
    """One step of the decoder.

    Attributes:
      name: The step's name, and that of the feature which it makes.
      stride: Stride of that feature.
      blocks: Residual blocks that it runs.
      sources: Earlier features that are fused with the current one before the blocks; none: no fuse.
      pretrained: Whether the step belongs to the backbone that is pretrained on ImageNet.
    """

    name: str
    stride: int
    blocks: int
    sources: tuple[str, ...]
    pretrained: bool


def decoder_schedule(
    stacks: int, *, pretrained_stacks: int = 0, pretrained_blocks: int = 1, blocks: int = 1
) -> tuple[DecoderStep, ...]:
    """The steps of `stacks` hourglasses (up to stride 4, down to 16) and a last way up.

    The first step that is not pretrained adds blocks to the deepest feature reached by then. Every other step fuses
    the current feature with the last two that were made at its stride; features of the encoder are named
    stage2 (stride 4), stage3 (8) and stage5 (16).
    """
    if not 0 <= pretrained_stacks <= stacks:
        raise ValueError(f"pretrained_stacks {pretrained_stacks}: must be from 0 to stacks, which is {stacks}")
    hourglass = (8, FINAL_STRIDE, 8, DEEPEST_STRIDE)
    made = {FINAL_STRIDE: ["stage2"], 8: ["stage3"], DEEPEST_STRIDE: ["stage5"]}
    steps: list[DecoderStep] = []

    def visit(strides: tuple[int, ...], pretrained: bool):
        for stride in strides:
            number = sum(bool(step.sources) for step in steps) + 1
            name = f"decoder_stage{number}" + ("" if pretrained else "_extra")
            count = pretrained_blocks if pretrained else blocks
            steps.append(DecoderStep(name, stride, count, tuple(made[stride][-2:]), pretrained))
            made[stride].append(name)

    visit(hourglass * pretrained_stacks, pretrained=True)
    deepest = made[DEEPEST_STRIDE][-1]
    steps.append(DecoderStep(f"{deepest}_extra", DEEPEST_STRIDE, blocks, (), False))
    made[DEEPEST_STRIDE][-1] = f"{deepest}_extra"
    visit(hourglass * (stacks - pretrained_stacks) + hourglass[:2], pretrained=False)
    return tuple(steps)


def semantic_source(steps: tuple[DecoderStep, ...]) -> str:
    """The feature on which the auxiliary semantic branch stands.

    It is the last but one at stride 4, which leaves the last one to the masks; without hourglasses, the encoder's
    last (paper section 3.3).
    """
    final = [step.name for step in steps if step.stride == FINAL_STRIDE]
    return final[-2] if len(final) > 1 else "stage5"
