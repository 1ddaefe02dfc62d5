"""Computing activations again changes neither outputs, gradients nor statistics."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.convolutions import PointwiseConv2D
from maxdl_tf.models.build import build_max_deeplab
from tests.models.test_max_deeplab import SMALL

# With drop path and dropout, which must drop the same in both passes.
VARIANT = replace(SMALL, drop_path_keep=0.5, drop_path_from_stride=2, aspp_dropout=0.5, position_octaves=2)


def _step(recompute: str, weights=None):
    keras.utils.set_random_seed(1)
    model = build_max_deeplab(
        replace(VARIANT, recompute=recompute), num_classes=3, num_semantic_channels=4, crop_size=(65, 65)
    )
    if weights is None:
        # Zero scales at the ends of residual branches would hide the branches.
        for variable in model.variables:
            variable.assign(tf.random.normal(variable.shape) * 0.1 + (1.0 if "gamma" in variable.name else 0.0))
            if "variance" in variable.name:
                variable.assign(tf.ones_like(variable))
        weights = [variable.numpy() for variable in model.variables]
    for variable, value in zip(model.variables, weights):
        variable.assign(value)
    images = np.random.default_rng(1).uniform(0, 255, [3, 65, 65, 3]).astype(np.float32)

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            outputs = model(images, training=True)
            loss = tf.add_n([tf.reduce_sum(tf.square(output)) for output in outputs])
        return outputs, tape.gradient(loss, model.trainable_variables)

    keras.utils.set_random_seed(2)
    # Matrix products round otherwise in a graph that recomputes, which this network amplifies. Convolutions do not.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PointwiseConv2D, "convolution_op", keras.layers.Conv2D.convolution_op)
        outputs, gradients = step()
    return weights, outputs, gradients, [variable.numpy() for variable in model.variables], step


@pytest.fixture(scope="module")
def plain_step():
    return _step("none")


@pytest.mark.parametrize("recompute", ["axial", "all"])
def test_a_step_is_the_same(plain_step, recompute):
    weights, outputs, gradients, after, plain = plain_step
    _, outputs_again, gradients_again, after_again, step = _step(recompute, weights)
    for one, other in zip(outputs, outputs_again):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    assert len(gradients) == len(gradients_again)
    largest = max(float(tf.reduce_max(tf.abs(gradient))) for gradient in gradients)
    for one, other in zip(gradients, gradients_again):
        scale = max(float(tf.reduce_max(tf.abs(one))), 1e-4 * largest)
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3 * scale)
    for start, one, other in zip(weights, after, after_again):
        np.testing.assert_allclose(one - start, other - start, rtol=1e-3, atol=1e-5)
    operations = [len(function.get_concrete_function().graph.get_operations()) for function in (plain, step)]
    assert operations[1] > 1.05 * operations[0], "nothing is computed again"


def test_inference_does_not_know_of_it():
    model = build_max_deeplab(
        replace(VARIANT, recompute="all"), num_classes=3, num_semantic_channels=4, crop_size=(65, 65)
    )
    traced = tf.function(lambda x: model(x, training=False)[1]).get_concrete_function(tf.zeros([1, 65, 65, 3]))
    assert not [operation for operation in traced.graph.get_operations() if "recompute" in operation.name.lower()]
