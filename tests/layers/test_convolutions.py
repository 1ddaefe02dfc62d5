"""Convolutions in training: the values and gradients of TensorFlow's operations, by other operations."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.layers.batch_norm import BatchNorm
from maxdl_tf.layers.convolutions import DepthwiseConv2D, PointwiseConv1D, PointwiseConv2D
from maxdl_tf.layers.training_mode import in_training


def value_and_gradients(layer, inputs, training: bool) -> list[np.ndarray]:
    """Outputs, gradient of the inputs and gradients of the weights, of a loss that tells all outputs apart."""

    @tf.function(autograph=False)
    def differentiate(inputs):
        with in_training(training), tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs)
            loss = tf.reduce_sum(tf.sin(outputs))
        return outputs, tape.gradient(loss, [inputs, *layer.trainable_variables])

    inputs = tf.constant(inputs)
    return [array.numpy() for array in tf.nest.flatten(differentiate(inputs))]


def operations(layer, inputs, training: bool) -> set[str]:
    with in_training(training):
        graph = tf.function(lambda: layer(tf.constant(inputs)), autograph=False).get_concrete_function().graph
    return {operation.type for operation in graph.get_operations()}


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (PointwiseConv1D(5, 1), (2, 7, 3)),
        (PointwiseConv2D(5, 1), (2, 7, 6, 3)),
        (PointwiseConv2D(5, 1, strides=2, padding="same", use_bias=False), (2, 7, 6, 3)),
        (DepthwiseConv2D(5), (1, 9, 6, 3)),
        (DepthwiseConv2D(5), (3, 9, 6, 4)),
        (DepthwiseConv2D(3), (2, 2, 1, 4)),
        (DepthwiseConv2D(5, 2), (3, 9, 6, 4)),
    ],
)
def test_values_and_gradients_are_those_of_inference(layer, shape):
    inputs = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    inference = value_and_gradients(layer, inputs, training=False)
    for got, wanted in zip(value_and_gradients(layer, inputs, training=True), inference):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)  # Sums of some ten numbers near 1.


def test_training_alone_takes_the_other_operations():
    inputs = np.ones([1, 4, 4, 2], np.float32)
    layer = PointwiseConv2D(3, 1)
    assert "MatMul" in operations(layer, inputs, training=True)
    assert "MatMul" not in operations(layer, inputs, training=False)  # Exports fuse convolutions with what follows.


@pytest.mark.parametrize(("strides", "on_gpu"), [(1, "MatMul"), (2, "Conv2D")])
def test_strided_convolutions_stay_convolutions_on_gpus(monkeypatch, strides, on_gpu):
    inputs = np.ones([1, 4, 4, 2], np.float32)
    layer = PointwiseConv2D(3, 1, strides=strides)
    assert "MatMul" in operations(layer, inputs, training=True)
    monkeypatch.setattr("maxdl_tf.layers.convolutions._on_cpu", lambda: False)
    found = operations(layer, inputs, training=True)
    assert found & {"MatMul", "Conv2D"} == {on_gpu}


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_of_channels_is_that_of_the_axes(training):
    """Statistics over [terms, batch, heads, length, depth] for each term, head and depth."""
    values = np.random.default_rng(0).normal(3.0, 2.0, [2, 3, 2, 5, 4]).astype(np.float32)
    channels = tf.constant(values.transpose(1, 3, 0, 2, 4).reshape(3, 5, 16))
    by_axes, by_channels = BatchNorm((0, 2, 4)), BatchNorm((0, 2, 4))
    for norm in (by_axes, by_channels):
        norm.build(values.shape)
        for variable in norm.variables:
            variable.assign(np.linspace(0.5, 1.5, 16).reshape(variable.shape))
    wanted = by_axes(values, training=training).numpy().transpose(1, 3, 0, 2, 4).reshape(3, 5, 16)
    np.testing.assert_allclose(by_channels.of_channels(channels, training), wanted, rtol=1e-5, atol=1e-5)
    for got, moving in zip(by_channels.variables, by_axes.variables):
        np.testing.assert_allclose(got, moving, rtol=1e-5)


def test_batch_norm_of_a_single_channel():
    values = np.random.default_rng(0).normal(3.0, 2.0, [4, 5, 6, 1]).astype(np.float32)
    norm = BatchNorm()
    outputs = norm(values, training=True)
    np.testing.assert_allclose(outputs, (values - values.mean()) / np.sqrt(values.var() + 1e-3), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, [0.99 + 0.01 * values.var()], rtol=1e-5)
