"""The stacked decoder: its steps as data, and the layer that runs them (paper section 3.3, architecture section 3)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.recompute import recomputed
from maxdl_tf.layers.resize import size_at_stride
from maxdl_tf.layers.resized_fuse import ResizedFuse
from maxdl_tf.models.encoder import Stage
from maxdl_tf.structs import OUTPUT_STRIDE

DEEPEST_STRIDE = 16


@dataclass(frozen=True)
class DecoderStep:
    """One step of the decoder.

    Attributes:
      name: Name of the step and of the feature that it makes.
      stride: Stride of that feature.
      blocks: Number of residual blocks that it runs.
      sources: Names of earlier features that are fused with the current one before the blocks; empty for no fuse.
      pretrained: Whether the step belongs to the backbone that is pretrained on ImageNet.
    """

    name: str
    stride: int
    blocks: int
    sources: tuple[str, ...]
    pretrained: bool


def decoder_schedule(
    stacks: int,
    *,
    pretrained_stacks: int = 0,
    pretrained_blocks: int = 1,
    blocks: int = 1,
    output_stride: int = OUTPUT_STRIDE,
) -> tuple[DecoderStep, ...]:
    """The steps of `stacks` hourglasses (up to stride 4, down to 16) and a last way up to `output_stride`.

    The first step that is not pretrained adds blocks to the deepest feature made so far. Every other step fuses the
    current feature with the last two that were made at its stride. Features of the encoder are named stage1 (stride 2),
    stage2 (4), stage3 (8) and stage5 (16).

    Args:
      stacks: Number of hourglasses.
      pretrained_stacks: Number of them that belong to the pretrained backbone.
      pretrained_blocks: Number of residual blocks at each pretrained step.
      blocks: Number of residual blocks at each other step.
      output_stride: Stride of the last step, 4 or 2.

    Raises:
      ValueError: If `pretrained_stacks` is not in 0..stacks.
    """
    if not 0 <= pretrained_stacks <= stacks:
        raise ValueError(f"pretrained_stacks {pretrained_stacks}: must be from 0 to stacks, which is {stacks}")
    hourglass = (8, OUTPUT_STRIDE, 8, DEEPEST_STRIDE)
    made = {2: ["stage1"], OUTPUT_STRIDE: ["stage2"], 8: ["stage3"], DEEPEST_STRIDE: ["stage5"]}
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
    visit((2,) * (output_stride == 2), pretrained=False)
    return tuple(steps)


def semantic_source(steps: tuple[DecoderStep, ...]) -> str:
    """The name of the feature that the auxiliary semantic branch reads (paper section 3.4).

    It is the last but one at stride 4, which leaves the last one to the masks; without hourglasses, the encoder's last.
    """
    final = [step.name for step in steps if step.stride == OUTPUT_STRIDE]
    return final[-2] if len(final) > 1 else "stage5"


class StackedDecoder(keras.layers.Layer):
    """Runs the steps of a `decoder_schedule`. Has no config: `models.build` makes it of a variant.

    Args:
      schedule: Steps, in order.
      fuses: Node of each step that has sources, by the step's name.
      stages: Blocks of each step, by the step's name.
      recompute: Classes of layers that are recomputed in training; decides about the fuses.
    """

    def __init__(
        self,
        schedule: tuple[DecoderStep, ...],
        fuses: dict[str, ResizedFuse],
        stages: dict[str, Stage],
        *,
        recompute: tuple[type, ...] = (),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.schedule = schedule
        self.fuses = dict(fuses)
        self.stages = dict(stages)
        self._recomputed = functools.partial(recomputed, kinds=recompute)

    def call(self, inputs, size, training=None):
        """Runs all steps.

        Args:
          inputs: (features of the encoder by name, memory). The steps start from the last feature, `stage5`.
          size: (height, width) of the image.
          training: Whether batch norms and drop path are in training mode.

        Returns:
          (features of the encoder and of every step by name, un-activated; memory; `AuxiliaryOutputs` of the
          transformers).
        """
        features, memory = inputs
        features, auxiliary = dict(features), ()
        current = features["stage5"]
        for step in self.schedule:
            if step.sources:
                sources = [current, *(features[name] for name in step.sources)]
                fuse = self._recomputed(self.fuses[step.name])
                current = fuse(sources, size_at_stride(size, step.stride), training=training)
            current, memory, predicted = self.stages[step.name]((current, memory), training=training)
            features[step.name] = current
            auxiliary += predicted
        return features, memory, auxiliary
