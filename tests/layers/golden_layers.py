"""Loads a golden's weights into a layer and compares everything that the golden holds."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from maxdl_tf.checkpoints.deeplab2_names import published_name, variable_paths
from maxdl_tf.layers.batch_norm import Norm
from tests.helpers import Golden

# The reference's batch norm is the synchronized one: biased variances, in the moving statistics too.
reference_norm = Norm(synchronized=True)


def load_weights(layer, weights: dict[str, np.ndarray], name=published_name, root: str = "") -> dict[str, tf.Variable]:
    """Assigns weights by published name and returns the variables by that name. The names must be the same."""
    variables = {name(path): variable for path, variable in variable_paths(layer, root).items()}
    assert sorted(variables) == sorted(weights)
    for key, variable in variables.items():
        assert tuple(variable.shape) == weights[key].shape, key
        variable.assign(weights[key])
    return variables


def assert_close(actual, expected, what: str, tolerance: float = 1e-4, least_scale: float = 1e-3):
    """Largest difference within `tolerance` of the largest expected value, or of `least_scale` where that is more."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, what
    scale = max(float(np.abs(expected).max()), least_scale)
    error = float(np.abs(actual - expected).max())
    assert error <= tolerance * scale, f"{what}: largest error {error:.3g} at values up to {scale:.3g}"


def assert_within_sensitivity(actual, golden: Golden, key: str):
    """Each value of output `key`, such as `eval/stage2`, within ten times what the reference changes by one rounding.

    The sensitivity of some goldens is not recorded; then nothing is checked.
    """
    kind, _, output = key.partition("/")
    sensitivity = {"eval": "sens", "train": "sens_train"}[kind]
    if f"{sensitivity}/{output}" in golden:
        error = float(np.abs(np.asarray(actual) - golden[key]).max())
        assert error <= 10 * golden[f"{sensitivity}/{output}"], f"{key}: largest error {error:.3g}"


def check_golden(golden: Golden, layer, call, name=published_name, tolerance: float = 1e-4):
    """Inference, training, moving statistics and, if the golden has them, gradients of a layer.

    Args:
      golden: A golden of a layer.
      layer: The layer, not built.
      call: From (layer, dict of inputs, training) to a dict of outputs, both keyed as the golden does.
      name: From our object path to the golden's.
      tolerance: Largest error, as a share of the largest value of each array.
    """
    inputs = {key: tf.constant(value) for key, value in golden.group("in").items()}
    call(layer, inputs, False)
    variables = load_weights(layer, golden.group("w"), name)
    for key, output in call(layer, inputs, False).items():
        assert_close(output, golden[f"eval/{key}"], f"inference {key}", tolerance)
        assert_within_sensitivity(output, golden, f"eval/{key}")

    trainable = {key: variable for key, variable in variables.items() if variable.trainable}
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = call(layer, inputs, True)
        cotangents = golden.group("proj")
        assert sorted(outputs) == sorted(cotangents)
        loss = tf.add_n([tf.reduce_sum(outputs[key] * cotangents[key]) for key in outputs])
    for key, output in outputs.items():
        assert_close(output, golden[f"train/{key}"], f"training {key}", tolerance)
        assert_within_sensitivity(output, golden, f"train/{key}")
    after = golden.group("after")
    for key, variable in variables.items():
        if not variable.trainable:
            assert_close(variable, after[key], f"after training {key}", tolerance)

    if not golden.group("grad"):
        return
    gradients = tape.gradient(loss, {"weights": trainable, "inputs": inputs})
    expected = golden.group("grad")
    assert sorted(expected) == sorted(trainable)
    # A gradient that is zero apart from rounding is compared at the scale of the others.
    scale = 0.01 * max(float(np.abs(value).max()) for value in expected.values())
    for key, gradient in gradients["weights"].items():
        assert isinstance(gradient, tf.Tensor), f"gradient of {key} is not dense"
        assert_close(gradient, expected[key], f"gradient of {key}", 5 * tolerance, scale)
    for key, expected_gradient in golden.group("grad_in").items():
        assert_close(gradients["inputs"][key], expected_gradient, f"gradient of input {key}", 5 * tolerance)
