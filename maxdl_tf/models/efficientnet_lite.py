"""EfficientNet-Lite as an encoder (Tan and Le, "EfficientNet", arXiv 1905.11946, section 4; Lite: no
squeeze-and-excitation, ReLU6 in place of Swish).

Paddings are TensorFlow's SAME, as in the published weights: on sides of 32k+1 they are alike on both ends, so features
stay aligned at their corners.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from maxdl_tf.layers.batch_norm import DEFAULT_NORM, Norm
from maxdl_tf.layers.configured import Layer
from maxdl_tf.layers.conv_bn import Conv2DBatchNorm, DepthwiseConvBatchNorm
from maxdl_tf.layers.dropout import DropPath
from maxdl_tf.models.encoder import Encoder, Stage

HEAD_CHANNELS = 1280  # Of the convolution before the classifier, whatever the width of the stages.


class _Row(NamedTuple):
    """A row of table 1 of the paper: where its blocks go, and what they have in common."""

    stage: str
    kernel_size: int
    strides: int  # Of its first block.
    expansion: int


ROWS = (
    _Row("stage1", 3, 1, 1),
    _Row("stage2", 3, 2, 6),
    _Row("stage3", 5, 2, 6),
    _Row("stage4", 3, 2, 6),
    _Row("stage4", 5, 1, 6),
    _Row("stage5", 5, 2, 6),
    _Row("stage5", 3, 1, 6),
)


def efficientnet_lite_encoder(
    stem_channels: int,
    depths: Sequence[int],
    widths: Sequence[int],
    *,
    drop_path_keep: float = 1.0,
    recompute: tuple[type, ...] = (),
    norm: Norm = DEFAULT_NORM,
    name: str | None = None,
) -> Encoder:
    """An encoder with features `stage1` to `stage5` at strides 2 to 32. They are linear: readers do not activate them.

    Args:
      stem_channels: Number of channels of the stem. Lite0 to Lite4: 32.
      depths: Number of blocks of each of `ROWS`. Lite0: 1, 2, 2, 3, 3, 4, 1.
      widths: Number of output channels of each of them. Lite0: 16, 24, 40, 80, 112, 192, 320.
      drop_path_keep: Probability that the last block keeps its residual branch. It falls linearly from 1 in the first.
      recompute: Classes of layers that are recomputed in training.
      norm: Factory of the batch norms.
      name: Name of the layer.
    """
    keeps = iter(np.linspace(1.0, drop_path_keep, sum(depths)))
    channels = stem_channels
    blocks: dict[str, dict[str, MBConv]] = {}
    for row, depth, width in zip(ROWS, depths, widths):
        stage = blocks.setdefault(row.stage, {})
        for number in range(depth):
            block = f"block{len(stage) + 1}"
            stage[block] = MBConv(
                row.expansion * channels,
                width,
                row.kernel_size,
                strides=row.strides if number == 0 else 1,
                drop_path_keep=float(next(keeps)),
                norm=norm,
                name=block,
            )
            channels = width
    return Encoder(
        Stem(stem_channels, norm=norm, name="stem"),
        {stage: Stage(of_stage, {}, recompute=recompute, name=stage) for stage, of_stage in blocks.items()},
        memory_shape=None,
        activation="linear",
        recompute=recompute,
        name=name,
    )


class Stem(Layer):
    """A 3x3 convolution of stride 2. Image [batch, height, width, 3] of -1..1 -> activated [..., channels].

    The published weights were trained on (x - 127) / 128 for x of 0..255.

    Args:
      channels: Number of output channels.
      norm: Factory of the batch norm.
    """

    def __init__(self, channels: int, *, norm: Norm = DEFAULT_NORM, **kwargs):
        super().__init__(**kwargs)
        self.conv = Conv2DBatchNorm(channels, 3, strides=2, padding="same", activation="relu6", norm=norm, name="conv")

    def call(self, inputs, training=None):
        return self.conv(inputs * (127.5 / 128.0) + 0.5 / 128.0, training=training)


class MBConv(Layer):
    """The inverted bottleneck: a depthwise convolution between 1x1 convolutions that widen and narrow.

    [batch, height, width, in] -> linear [batch, ceil(height/strides), ceil(width/strides), channels]. Has a skip
    connection where input and output have the same shape, and no widening where the input has `width` channels.

    Args:
      width: Number of channels of the depthwise convolution.
      channels: Number of output channels.
      kernel_size: Side of the depthwise kernel.
      strides: Stride of the depthwise convolution.
      drop_path_keep: Probability that a sample keeps the residual branch.
      norm: Factory of the batch norms.
    """

    def __init__(
        self,
        width: int,
        channels: int,
        kernel_size: int = 3,
        *,
        strides: int = 1,
        drop_path_keep: float = 1.0,
        norm: Norm = DEFAULT_NORM,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.width, self.channels, self.strides, self.norm = width, channels, strides, norm
        self.drop_path = DropPath(drop_path_keep)
        common = {"activation": "relu6", "norm": norm}
        self.expand = None
        self.depthwise = DepthwiseConvBatchNorm(kernel_size, strides=strides, **common, name="depthwise")
        self.project = Conv2DBatchNorm(channels, norm=norm, name="project")

    def build(self, input_shape):
        if input_shape[-1] != self.width:
            with self.own_precision():
                self.expand = Conv2DBatchNorm(self.width, activation="relu6", norm=self.norm, name="expand")
        super().build(input_shape)

    def call(self, inputs, training=None):
        x = inputs if self.expand is None else self.expand(inputs, training=training)
        x = self.project(self.depthwise(x, training=training), training=training)
        if self.strides == 1 and inputs.shape[-1] == self.channels:
            x = inputs + self.drop_path(x, training)
        return x
