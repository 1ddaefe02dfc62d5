"""The encoders of kMaX-DeepLab that are residual networks (architecture section 16.1)."""

from __future__ import annotations

import pytest

from maxdl_tf.checkpoints.deeplab2_names import published_name
from maxdl_tf.layers.conv_bn import Conv2DBatchNorm
from maxdl_tf.layers.residual_block import AxialBlock, BottleneckBlock
from maxdl_tf.models.complexity import measure
from maxdl_tf.models.encoder import Encoder, InceptionStem, Stage
from tests.helpers import shared_golden
from tests.layers.golden_layers import check_golden
from tests.layers.golden_layers import reference_norm as norm


def _stage(number: int, blocks: int, width: int, attention: bool = False) -> Stage:
    """A stage whose first block has stride 2."""
    made = {}
    for block in range(1, blocks + 1):
        common = {"strides": 2 if block == 1 else 1, "norm": norm, "name": f"block{block}"}
        # At stride 16 the stage starts with a convolution, in spite of its attention.
        if attention and not (number == 4 and block == 1):
            made[f"block{block}"] = AxialBlock(width, 4 * width, activation="gelu", **common)
        else:
            made[f"block{block}"] = BottleneckBlock(width, 4 * width, **common)
    return Stage(made, {}, name=f"stage{number}")


@pytest.mark.parametrize("name", ["k_resnet50_stem_stage2_17x21", "k_resnet50_stem_stage2_16x18"])
def test_plain_resnet(name):
    stem = Conv2DBatchNorm(8, 7, strides=2, norm=norm, name="stem")
    encoder = Encoder(stem, {"stage2": _stage(2, 3, 8)}, memory_shape=None)
    check_golden(
        shared_golden(name),
        encoder,
        lambda encoder, inputs, training: encoder(inputs["x"], training=training)[0],
        lambda path: published_name(f"model/backbone/{path}").replace("encoder/", ""),
    )


@pytest.mark.parametrize(
    ("is_axial", "parameters", "billions"), [(False, 23_508_032, 137.7), (True, 41_343_424, 264.1)]
)
def test_sizes(is_axial, parameters, billions):
    """At 1281 x 1281."""

    def build():
        if is_axial:
            stem = InceptionStem(64, activation="gelu", norm=norm, name="stem")
        else:
            stem = Conv2DBatchNorm(64, 7, strides=2, norm=norm, name="stem")
        tables = [(2, 3, 64), (3, 4, 128), (4, 6, 256, is_axial), (5, 3, 512, is_axial)]
        return Encoder(stem, {f"stage{table[0]}": _stage(*table) for table in tables}, memory_shape=None)

    counted = measure(build, (1281, 1281))
    assert counted.parameters == parameters
    assert counted.multiply_adds / 1e9 == pytest.approx(billions, abs=0.05)
