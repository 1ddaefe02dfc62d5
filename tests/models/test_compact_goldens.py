"""Narrow S and kMaX-DeepLab as a whole, and a part of L, against the reference; needs no ../shared.

The numbers of S and L belong to weights that were not rounded (tests/golden/README.md); the tolerance covers that.
`test_golden_models.py` compares with the unrounded weights.
"""

import numpy as np
import tensorflow as tf

from maxdl_tf.checkpoints.deeplab2_names import published_name, variable_paths
from maxdl_tf.models.decoder import StackedDecoder
from tests.golden.compact import OUTPUTS, PART_OF_L, unpack
from tests.helpers import own_golden
from tests.layers.golden_layers import assert_close, load_weights
from tests.models.golden_models import golden_model

TOLERANCE = 1e-3


def _load(model, golden, is_packed=lambda name: True):
    variables = {published_name(path): variable for path, variable in variable_paths(model, "model").items()}
    variables = {name: variable for name, variable in variables.items() if is_packed(name)}
    weights = unpack(golden["weights"], {name: tuple(variable.shape) for name, variable in variables.items()})
    for name, variable in variables.items():
        variable.assign(weights[name])


def test_whole_model_of_s():
    golden, model = own_golden("b_whole_s"), golden_model("s")
    _load(model, golden)
    outputs = model(tf.constant(golden["in/image"]), training=False)
    for name, output in zip(OUTPUTS, outputs):
        assert_close(output, golden[f"out/{name}"], name, TOLERANCE)


def test_whole_kmax_with_resnet_50():
    golden, model = own_golden("k_whole_r50"), golden_model("kmax_r50")
    load_weights(model, golden.group("w"), root="model")
    outputs = model(tf.constant(golden["in/image"], tf.float32), training=False)
    for name, output in zip(OUTPUTS, outputs):
        error = float(np.abs(output - golden[f"out/{name}"]).max())
        assert error <= 10 * float(golden[f"sens/{name}"]), f"{name}: {error:.3g}"


def test_encoder_and_first_hourglass_of_l():
    golden, model = own_golden("b_part_of_l"), golden_model("l")
    _load(model, golden, PART_OF_L.match)
    image = tf.constant(golden["in/image"], tf.float32)
    features, memory, _ = model.backbone(image / 127.5 - 1.0, training=False)
    steps = tuple(step for step in model.decoder.schedule if step.pretrained)
    hourglass = StackedDecoder(steps, dict(model.decoder.fuses), dict(model.decoder.stages))
    features, _, _ = hourglass((features, memory), image.shape[1:3], training=False)
    for name, expected in golden.group("out/endpoint").items():
        # The reference's last one is activated.
        feature = tf.nn.relu(features[steps[-1].name]) if name == "backbone_output" else features[name]
        assert_close(feature, expected, name, TOLERANCE)


def test_a_wrong_epsilon_would_be_seen():
    """The tolerance is not so wide that it lets a small departure pass."""
    golden, model = own_golden("b_whole_s"), golden_model("s")
    _load(model, golden)
    norms = [layer for layer in model.submodules if hasattr(layer, "epsilon")]
    before = {norm.epsilon for norm in norms}
    try:
        for norm in norms:
            norm.epsilon = 1e-5
        outputs = model(tf.constant(golden["in/image"]), training=False)
    finally:
        for norm in norms:
            norm.epsilon = 1e-3
    assert before == {1e-3}
    errors = [np.abs(output - golden[f"out/{name}"]).max() for name, output in zip(OUTPUTS, outputs)]
    scales = [np.abs(golden[f"out/{name}"]).max() for name in OUTPUTS]
    assert all(error > 2 * TOLERANCE * scale for error, scale in zip(errors, scales)), errors
