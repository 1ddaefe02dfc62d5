"""Mixed precision rounds convolutions and matrix products, and nothing else."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.keras_api import computing_in, keras
from maxdl_tf.layers.batch_norm import BatchNorm
from maxdl_tf.losses.panoptic import PanopticLoss
from maxdl_tf.models.build import build_image_classifier, build_max_deeplab
from maxdl_tf.structs import PanopticOutputs, PanopticTargets
from tests.models.test_max_deeplab import SMALL

POLICIES = {"mixed_bfloat16": tf.bfloat16, "mixed_float16": tf.float16}
CLASSES = tuple(SegmentClass(number, str(number), number == 1, (0, 0, 0), number) for number in (1, 2, 3))


def _build(policy: str, recompute: str = "none"):
    with computing_in(policy):
        return build_max_deeplab(
            replace(SMALL, recompute=recompute), num_classes=3, num_semantic_channels=4, crop_size=(65, 65)
        )


def _images() -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 255, [3, 65, 65, 3]).astype(np.float32)


def _targets() -> PanopticTargets:
    thing = np.zeros([3, 65, 65], bool)
    thing[:, 10:40, 20:50] = True
    return PanopticTargets(
        semantic=np.where(thing, 1, 2).astype(np.int32),
        semantic_weight=np.ones(thing.shape, np.float32),
        thing_id_mask=np.where(thing, 0, -1).astype(np.int32),
        thing_id_class=np.tile(np.int32([[1, -1]]), [3, 1]),
    )


@pytest.fixture(scope="module")
def weights():
    """Weights under which every layer matters: initially the last scale of each residual branch is 0."""
    keras.utils.set_random_seed(1)
    model = _build("float32")
    for variable in model.trainable_variables:
        variable.assign_add(0.1 * tf.random.normal(variable.shape))
    return model.get_weights()


class _Step(NamedTuple):
    """A training step: its graph, its results and the moving statistics after it."""

    graph: tf.Graph
    outputs: PanopticOutputs
    losses: NamedTuple
    gradients: list
    moving: list


@pytest.fixture(scope="module")
def steps(weights):
    """Function of policy and recompute to a step, which runs once."""

    @functools.cache
    def run(policy: str, recompute: str = "none") -> _Step:
        model = _build(policy, recompute)
        model.set_weights(weights)
        loss = PanopticLoss(DatasetInfo("three", CLASSES))

        @tf.function(autograph=False)
        def step():
            with tf.GradientTape() as tape:
                outputs = model(_images(), training=True)
                losses = loss(outputs, _targets())
                total = tf.reduce_mean(losses.total)
            return outputs, losses, tape.gradient(total, model.trainable_variables)

        graph = step.get_concrete_function().graph
        return _Step(graph, *step(), [variable.numpy() for variable in model.non_trainable_variables])

    return run


def _difference(one, other) -> float:
    """Norm of the difference, relative to the norm of the expected values."""
    one, other = (np.concatenate([np.ravel(value) for value in values]) for values in (one, other))
    return np.linalg.norm(one - other) / np.linalg.norm(other)


@pytest.mark.parametrize("policy", POLICIES)
def test_only_convolutions_and_matrix_products_are_rounded(policy, steps):
    ours, expected = steps(policy), steps("float32")
    values = (*ours.outputs[:5], *ours.losses, *ours.gradients, *map(tf.constant, ours.moving))
    assert {value.dtype for value in values} == {tf.float32}
    # Values are rounded to 8 and 11 bits some dozen times. Some cross zero before a ReLU, which changes gradients more.
    tolerance, gradient_tolerance = {"mixed_bfloat16": (0.1, 0.3), "mixed_float16": (0.02, 0.15)}[policy]
    for name in ours.outputs._fields[:5]:
        error = _difference([getattr(ours.outputs, name)], [getattr(expected.outputs, name)])
        assert 0 < error < tolerance, name
    for name in ("total", "pq_style_dice", "pq_style_class", "mask_id", "instance_discrimination", "semantic"):
        assert _difference([getattr(ours.losses, name)], [getattr(expected.losses, name)]) < tolerance, name
    assert _difference(ours.gradients, expected.gradients) < gradient_tolerance
    assert _difference(ours.moving, expected.moving) < tolerance


@pytest.mark.parametrize("policy", POLICIES)
def test_softmax_statistics_and_logits_are_float32_in_the_graph(policy, steps):
    dtypes: dict[str, list] = {}
    for operation in steps(policy).graph.get_operations():
        if operation.outputs and operation.name.startswith("max_deeplab/"):
            dtypes.setdefault(operation.type, []).append(operation.outputs[0].dtype)
            if operation.type == "FusedBatchNormV3":
                assert [output.dtype for output in operation.outputs[1:3]] == [tf.float32, tf.float32]
    assert set(dtypes["Softmax"]) == set(dtypes["Rsqrt"]) == {tf.float32}
    # The last convolutions of two heads, and the product of pixel features and mask embeddings.
    convolutions = dtypes["Conv2D"] + dtypes["MatMul"]  # 1x1 convolutions are matrix products.
    assert convolutions.count(tf.float32) == 2 and convolutions.count(POLICIES[policy]) > 40
    assert dtypes["Einsum"].count(tf.float32) == 1 and dtypes["Einsum"].count(POLICIES[policy]) > 20


def test_recompute_gives_the_same_numbers(steps):
    ours, expected = steps("mixed_bfloat16", "all"), steps("mixed_bfloat16")
    # Not bit for bit, because TensorFlow may compute a graph's products in another order.
    assert _difference(ours.outputs[:5], expected.outputs[:5]) < 0.01
    assert _difference(ours.gradients, expected.gradients) < 0.1
    assert _difference(ours.moving, expected.moving) < 1e-3


@pytest.mark.parametrize("axis", [-1, (0, 2)])
def test_statistics_of_batch_norm_are_exact(axis):
    # In bfloat16 a sum of ones stops at 256, and squares around 10,000 are 64 apart.
    features = tf.cast(np.random.default_rng(0).normal(100.0, 2.0, [4, 60, 5, 7]), tf.bfloat16)
    with computing_in("mixed_bfloat16"):
        layer = BatchNorm(axis=axis, momentum=0.0)
        outputs = layer(features, training=True)
    assert outputs.dtype == tf.bfloat16
    values = tf.cast(features, tf.float64).numpy()
    axes = (0, 1, 2) if axis == -1 else (1, 3)
    mean, variance = values.mean(axes), values.var(axes)
    np.testing.assert_allclose(np.reshape(layer.moving_mean, mean.shape), mean, rtol=1e-5)
    np.testing.assert_allclose(np.reshape(layer.moving_variance, mean.shape), variance, rtol=1e-2)
    normalized = (values - values.mean(axes, keepdims=True)) / np.sqrt(values.var(axes, keepdims=True) + 1e-3)
    np.testing.assert_allclose(tf.cast(outputs, tf.float64), normalized, atol=0.03)


def test_the_policy_is_that_of_the_layers_made_inside():
    with pytest.raises(ZeroDivisionError), computing_in("mixed_bfloat16"):
        assert keras.layers.Dense(1).compute_dtype == "bfloat16"
        raise ZeroDivisionError
    assert keras.layers.Dense(1).compute_dtype == "float32"


def test_the_classifier_of_the_backbone_gives_float32_logits():
    with computing_in("mixed_bfloat16"):
        model = build_image_classifier(SMALL, num_classes=5, crop_size=(65, 65))
    assert model.backbone.stages["stage2"].blocks["block1"].compute_dtype == "bfloat16"
    assert tf.function(lambda: model(_images(), training=False), autograph=False)().dtype == tf.float32
    assert {variable.dtype for variable in model.variables} == {tf.float32}
