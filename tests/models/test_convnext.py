"""ConvNeXt against the reference: blocks, whole encoders, drop path, variables, sizes."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.checkpoints.deeplab2_names import published_name, variable_paths
from maxdl_tf.models.complexity import measure
from maxdl_tf.models.convnext import ConvNeXtBlock, Downsample, PatchStem, convnext_encoder
from tests.helpers import any_golden, shared_golden, shared_path
from tests.layers.golden_layers import check_golden, load_weights

# Numbers of blocks and of channels of the four stages.
CONVNEXT = {
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "xlarge": ((3, 3, 27, 3), (256, 512, 1024, 2048)),
}


def _name_in_encoder(path: str) -> str:
    return published_name(f"model/backbone/{path}").replace("encoder/", "")


def test_block():
    golden = shared_golden("k_convnext_block")
    layer = ConvNeXtBlock(golden.info["dim"])
    check_golden(golden, layer, lambda layer, inputs, training: {"out": layer(inputs["x"], training=training)})


@pytest.mark.parametrize("name", ["k_convnext_33x41", "k_convnext_32x48"])
def test_encoder(name):
    golden = any_golden(name)
    encoder = convnext_encoder(golden.info["depths"], golden.info["dims"])

    def call(layer, inputs, training):
        features, memory, auxiliary = layer(inputs["x"], training=training)
        assert (memory, auxiliary) == (None, ())
        activated = {key.replace("stage", "res"): tf.nn.gelu(feature) for key, feature in features.items()}
        return features | activated

    check_golden(golden, encoder, call, _name_in_encoder)


def test_drop_path(monkeypatch):
    golden = shared_golden("k_convnext_droppath")
    info = golden.info
    encoder = convnext_encoder(info["depths"], info["dims"], drop_path_keep=info["drop_path_keep_prob"])
    inputs = golden["in/x"]
    encoder(inputs, training=False)
    blocks = [block for stage in encoder.stages.values() for block in stage.blocks.values()]
    keeps = [block.drop_path.keep for block in blocks if isinstance(block, ConvNeXtBlock)]
    np.testing.assert_array_equal(np.float32(keeps), golden["keep"])
    load_weights(encoder, golden.group("w"), _name_in_encoder)
    draws = iter(np.ravel(golden[f"u/{number}"]) for number in range(len(keeps) - 1))
    monkeypatch.setattr(tf.random, "uniform", lambda shape: tf.constant(next(draws)))
    features, _, _ = encoder(inputs, training=True)
    # No sensitivities are recorded here. Those of the encoders above, which are of the same size, are 1e-6 to 4e-6.
    for key, expected in golden.group("train").items():
        np.testing.assert_allclose(features[key], expected, rtol=0, atol=1e-5)
    assert next(draws, None) is None


def test_padding():
    """Sizes are rounded up. Where an odd side is padded, the normalization has turned the zeros into its offset."""
    for side in (32, 33, 34, 35):
        assert PatchStem(4)(tf.zeros([1, side, side, 3])).shape[1:3] == [(side - 1) // 4 + 1] * 2
    layer = Downsample(1)
    layer(tf.zeros([1, 5, 4, 2]))
    last_tap = np.zeros([2, 2, 2, 1])
    last_tap[1, 1, 0] = 1.0
    layer.set_weights([np.ones(2), np.float32([7.0, 0.0]), last_tap, np.zeros(1)])
    outputs = layer(tf.constant([1.0, 3.0]) * tf.ones([1, 5, 4, 2]))[0, ..., 0]
    np.testing.assert_allclose(outputs, [[6.0, 6.0], [6.0, 6.0], [7.0, 7.0]], atol=1e-5)


def test_variables():
    lines = shared_path("reference", "kmax_convnext_tiny_variables.txt").read_text().splitlines()
    published = {}
    for line in lines:
        key, shape, *_ = line.split("\t")
        if key.startswith("encoder/"):
            published[key.replace("encoder/", "")] = shape
    with tf.Graph().as_default():
        encoder = convnext_encoder(*CONVNEXT["tiny"])
        encoder(tf.zeros([1, 65, 65, 3]), training=False)
        ours = {_name_in_encoder(path): variable for path, variable in variable_paths(encoder).items()}
    assert {key: str(tuple(variable.shape)) for key, variable in ours.items()} == published
    assert all(variable.trainable for variable in ours.values())


@pytest.mark.parametrize(
    ("name", "parameters", "billions"),
    [
        ("tiny", 27_818_592, 149.0),
        pytest.param("small", 49_453_152, None, marks=pytest.mark.slow),
        ("base", 87_564_416, 513.7),
        pytest.param("large", 196_227_264, None, marks=pytest.mark.slow),
        pytest.param("xlarge", 348_143_872, None, marks=pytest.mark.slow),
    ],
)
def test_sizes(name, parameters, billions):
    """At 1281 x 1281."""
    counted = measure(lambda: convnext_encoder(*CONVNEXT[name]), (1281, 1281))
    assert counted.parameters == parameters
    if billions is not None:
        assert counted.multiply_adds / 1e9 == pytest.approx(billions, abs=0.05)
