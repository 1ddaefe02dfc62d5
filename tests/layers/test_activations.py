"""GELU with a gradient of its own."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.layers import activations
from maxdl_tf.layers.training_mode import in_training
from maxdl_tf.training.memory_estimate import peak_of_results


def gelu_and_gradient(x, training, **options):
    @tf.function(autograph=False, **options)
    def run(x):
        with tf.GradientTape() as tape, in_training(training):
            tape.watch(x)
            y = activations.get("gelu")(x)
        return y, tape.gradient(y, x, 2.0 * tf.ones_like(y))

    return [tf.cast(value, tf.float32).numpy() for value in run(x)]


@pytest.mark.parametrize(
    "dtype, tolerance", [(tf.float64, 1e-6), (tf.float32, 1e-6), (tf.float16, 2e-3), (tf.bfloat16, 2e-2)]
)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_gradient_of_gelu_in_training_is_the_usual_one(dtype, tolerance, jit_compile):
    x = tf.cast(tf.linspace(-6.0, 6.0, 201), dtype)
    expected = gelu_and_gradient(tf.cast(x, tf.float32), training=False)
    for got, want in zip(gelu_and_gradient(x, training=True, jit_compile=jit_compile), expected):
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def test_in_training_one_tensor_is_kept_for_each_gelu():
    def peak(layers, training):
        @tf.function(autograph=False)
        def step(x):
            with tf.GradientTape() as tape, in_training(training):
                tape.watch(x)
                y = x
                for _ in range(layers):
                    y = activations.get("gelu")(y)
            return tape.gradient(y, x)

        return peak_of_results(step.get_concrete_function(tf.TensorSpec([1000])).graph.get_operations()) / 4000

    usual, own = (round((peak(8, training) - peak(4, training)) / 4) for training in (False, True))
    assert usual >= 3 and own == 1


def test_a_model_out_of_training_has_tensorflows_gelu():
    graph = tf.function(activations.get("gelu")).get_concrete_function(tf.TensorSpec([3])).graph
    assert "IdentityN" not in {operation.type for operation in graph.get_operations()}
