"""Schedule and Adam against the reference, and which variable learns at which rate."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.training.optimizers import Optimizers, PolySchedule
from tests.helpers import shared_golden


class _Variables:
    """What Optimizers needs of a model."""

    def __init__(self, base, backbone=()):
        self.trainable_variables = [*base, *backbone]
        self.backbone_variables = list(backbone)


@pytest.mark.parametrize(("variant", "peak"), [("s", 1e-3), ("l", 3e-4)])
def test_schedule_equals_the_reference(variant, peak):
    golden = shared_golden("h_optimizer")
    schedule = PolySchedule(peak, steps=400_000, warmup_steps=5000, power=0.9)
    for group, rates in (("base", schedule), ("backbone", schedule.scaled(0.1))):
        ours = [float(rates(step)) for step in golden["steps"]]
        # 1 - step/steps has few digits left near the end in float32, the reference's included.
        np.testing.assert_allclose(ours, golden[f"{variant}/{group}/lr"], rtol=1e-3, atol=1e-12)
        np.testing.assert_allclose(ours[:10], golden[f"{variant}/{group}/lr"][:10], rtol=2e-6)


def test_schedule_ends_at_zero_and_warm_up_does_not_shift_the_decay():
    with_warm_up = PolySchedule(1.0, steps=100, warmup_steps=20)
    without = PolySchedule(1.0, steps=100)
    assert float(with_warm_up(0)) == 0.0 and float(without(0)) == 1.0
    assert float(with_warm_up(100)) == 0.0 and float(with_warm_up(1000)) == 0.0
    assert [float(with_warm_up(s)) for s in (20, 50, 99)] == [float(without(s)) for s in (20, 50, 99)]


def test_ten_steps_of_adam_equal_the_reference():
    golden = shared_golden("h_optimizer")
    info = json.loads(str(golden["adam/info"]))
    variable = tf.Variable(golden["adam/init"])
    schedule = PolySchedule(info["base_lr"], steps=info["steps"], warmup_steps=info["warmup"], power=info["power"])
    optimizers = Optimizers(
        _Variables([variable]),
        schedule,
        backbone_multiplier=0.1,
        beta1=info["beta1"],
        beta2=info["beta2"],
        epsilon=info["epsilon"],
    )
    for gradient, value in zip(golden["adam/grads"], golden["adam/values"]):
        optimizers.apply([tf.constant(gradient)])
        np.testing.assert_allclose(variable.numpy(), value, rtol=2e-6, atol=1e-7)


def test_the_backbone_moves_at_its_share_of_the_rate():
    head, stem = tf.Variable([1.0, 2.0]), tf.Variable([1.0, 2.0])
    optimizers = Optimizers(_Variables([head], [stem]), PolySchedule(1e-2, steps=1000), backbone_multiplier=0.1)
    optimizers.apply([tf.constant([0.3, -0.2])] * 2)
    np.testing.assert_allclose(stem - [1.0, 2.0], 0.1 * (head - [1.0, 2.0]), rtol=1e-4)
    rates = optimizers.learning_rates(0)
    assert float(rates["backbone_learning_rate"]) == pytest.approx(0.1 * float(rates["learning_rate"]))


def test_slots_exist_before_the_first_step_and_zeros_move_nothing():
    head, unused = tf.Variable([1.0]), tf.Variable([5.0])
    optimizers = Optimizers(_Variables([head, unused]), PolySchedule(1e-2, steps=10), backbone_multiplier=1.0)
    count = len(optimizers.slot_variables)
    assert count >= 4  # m and v of both
    optimizers.apply([tf.constant([1.0]), tf.constant([0.0])])
    assert len(optimizers.slot_variables) == count
    assert unused.numpy() == [5.0] and head.numpy() != [1.0]
