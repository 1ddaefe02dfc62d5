"""Schedule and Adam against the reference, and which variable learns at which rate."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.checkpoints.keys import variables_by_key
from maxdl_tf.checkpoints.save_restore import Checkpoints
from maxdl_tf.errors import UserError
from maxdl_tf.keras_api import keras
from maxdl_tf.training import optimizers as optimizers_module
from maxdl_tf.training.optimizers import Optimizers, PolySchedule, adam, kernels_of, radam_lookahead
from tests.helpers import shared_golden
from tests.training import fakes

needs_addons = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_addons") is None, reason="TensorFlow Addons has no release for this Python"
)


class _Variables(tf.Module):
    """What Optimizers needs of a model."""

    def __init__(self, base, backbone=()):
        super().__init__()
        self._trainable_variables = [*base, *backbone]
        self.backbone_variables = list(backbone)

    @property
    def trainable_variables(self):
        return self._trainable_variables


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
        create=adam(info["beta1"], info["beta2"], info["epsilon"]),
    )
    for gradient, value in zip(golden["adam/grads"], golden["adam/values"]):
        optimizers.apply([tf.constant(gradient)])
        np.testing.assert_allclose(variable.numpy(), value, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("data", "peak", "steps"), [("coco", 5e-4, 150_000), ("cityscapes", 3e-4, 60_000), ("ade20k", 5e-4, 100_000)]
)
def test_schedules_of_kmax_deeplab_equal_the_reference(data, peak, steps):
    golden = shared_golden("k_optimizer")
    schedule = PolySchedule(peak, steps=steps, warmup_steps=5000, power=0.9)
    for group, rates in (("base", schedule), ("backbone", schedule.scaled(0.1))):
        ours = [float(rates(step)) for step in golden["steps"]]
        # As above: few digits are left near the end.
        np.testing.assert_allclose(ours, golden[f"{data}/{group}/lr"], rtol=1e-3, atol=1e-12)
        early = golden["steps"] < 0.9 * steps
        np.testing.assert_allclose(np.array(ours)[early], golden[f"{data}/{group}/lr"][early], rtol=5e-6)


class _Layer(tf.Module):
    """Has a variable under an attribute of the given name."""

    def __init__(self, name: str, value: np.ndarray):
        super().__init__()
        setattr(self, name, tf.Variable(value))


def test_ten_steps_of_adam_with_weight_decay_equal_the_reference():
    golden = shared_golden("k_optimizer")
    info = json.loads(str(golden["adamw/info"]))
    attributes = [str(name).split("/")[-1] for name in golden["adamw/names"]]
    layers = [_Layer(name, value) for name, value in zip(attributes, golden["adamw/init"])]
    variables = [getattr(layer, name) for layer, name in zip(layers, attributes)]
    model = _Variables(variables)
    model.layers = layers  # Its submodules.
    np.testing.assert_array_equal(
        [any(variable is kernel for kernel in kernels_of(model)) for variable in variables], golden["adamw/decayed"]
    )
    schedule = PolySchedule(info["base_lr"], steps=info["steps"], warmup_steps=info["warmup"], power=info["power"])
    optimizers = Optimizers(
        model,
        schedule,
        backbone_multiplier=0.1,
        create=adam(info["beta1"], info["beta2"], info["epsilon"]),
        weight_decay=info["weight_decay"],
    )
    for gradients, values in zip(golden["adamw/grads"], golden["adamw/values"]):
        optimizers.apply([tf.constant(gradient) for gradient in gradients])
        np.testing.assert_allclose(variables, values, rtol=2e-6, atol=1e-7)


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


@needs_addons
def test_lookahead_goes_half_of_the_way_that_radam_went():
    rate = PolySchedule(0.1, steps=1000, power=0.0)
    with_lookahead, without = tf.Variable([1.0, -2.0]), tf.Variable([1.0, -2.0])
    slow = Optimizers(_Variables([with_lookahead]), rate, backbone_multiplier=1.0, create=radam_lookahead(steps=4))
    fast = Optimizers(
        _Variables([without]), rate, backbone_multiplier=1.0, create=radam_lookahead(steps=4, step_size=1.0)
    )
    for step in range(1, 5):
        for optimizers in (slow, fast):
            optimizers.apply([tf.constant([0.3, -0.1]) * step])
        expected = without if step < 4 else 0.5 * without + 0.5 * tf.constant([1.0, -2.0])
        np.testing.assert_allclose(with_lookahead, expected, rtol=1e-6)
    assert (np.abs(without - [1.0, -2.0]) > 0.01).all()


@needs_addons
def test_after_a_restart_lookahead_goes_from_the_weights_that_are_there():
    def moved(start):
        variable = tf.Variable([1.0, -2.0])
        optimizers = Optimizers(
            _Variables([variable]),
            PolySchedule(0.1, steps=1000),
            backbone_multiplier=1.0,
            create=radam_lookahead(steps=1),
        )
        variable.assign(start)
        optimizers.restart()
        optimizers.apply([tf.constant([0.3, -0.1])])
        return variable.numpy() - start

    np.testing.assert_allclose(moved([100.0, 50.0]), moved([1.0, -2.0]), atol=1e-4)


@needs_addons
def test_radam_and_lookahead_are_resumed_whole(tmp_path):
    def new_run():
        model, step = fakes.FakeModel(), tf.Variable(0, dtype=tf.int64)
        optimizers = Optimizers(
            model, PolySchedule(1e-2, steps=100), backbone_multiplier=0.1, create=radam_lookahead(), weight_decay=0.1
        )
        checkpoints = Checkpoints(str(tmp_path), model=model, global_step=step, optimizers=optimizers.by_name)
        return model, optimizers, checkpoints

    def train(model, optimizers, steps):
        for step in steps:
            optimizers.apply([tf.fill(v.shape, 0.1 * step - 0.5) for v in optimizers.variables])
        return [v.numpy() for v in model.trainable_variables]

    model, optimizers, checkpoints = new_run()
    before_the_first_step = set(variables_by_key(checkpoints._root))
    train(model, optimizers, range(8))
    assert set(variables_by_key(checkpoints._root)) == before_the_first_step
    checkpoints.save()
    unbroken = train(model, optimizers, range(8, 20))

    model, optimizers, checkpoints = new_run()
    checkpoints.restore_latest()
    for resumed, value in zip(train(model, optimizers, range(8, 20)), unbroken):
        np.testing.assert_array_equal(resumed, value)


def test_radam_says_what_it_needs_where_addons_are_missing(monkeypatch):
    monkeypatch.setattr(optimizers_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"TensorFlow Addons, which is not installed; .*3\.9 to 3\.11.*kind: adam"):
        radam_lookahead()


def test_weight_decay_shrinks_kernels_at_their_rate_and_nothing_else():
    model = fakes.FakeModel()
    assert [kernel.name.split("/")[-1] for kernel in kernels_of(model)] == ["kernel:0"] * 4
    for variable in model.trainable_variables:
        variable.assign(tf.ones_like(variable))
    schedule = PolySchedule(1e-2, steps=10, power=1.0)
    optimizers = Optimizers(model, schedule, backbone_multiplier=0.1, weight_decay=0.5)
    for _ in range(2):
        optimizers.apply([tf.zeros_like(variable) for variable in optimizers.variables])
    kernels, backbone = ({id(v) for v in group} for group in (kernels_of(model), model.backbone_variables))
    for variable in model.trainable_variables:
        rate = 1e-2 * (0.1 if id(variable) in backbone else 1.0)
        expected = (1 - 0.5 * rate) * (1 - 0.5 * 0.9 * rate) if id(variable) in kernels else 1.0
        np.testing.assert_allclose(variable, np.full(variable.shape, expected), rtol=1e-6, err_msg=variable.name)


def test_a_long_gradient_is_scaled_down_and_a_short_one_stays():
    moved = []
    for length, clip_norm in ((0.5, 0.0), (0.5, 1.0), (50.0, 1.0), (1.0, 0.0)):
        variables = [tf.Variable([0.0, 0.0]), tf.Variable([0.0])]
        optimizers = Optimizers(
            _Variables(variables[:1], variables[1:]),
            PolySchedule(0.1, steps=1000, power=0.0),
            backbone_multiplier=1.0,
            create=keras.optimizers.legacy.SGD,
            gradient_clip_norm=clip_norm,
        )
        # The norm is that of both groups together: (0.48, 0.64, 0.6) has length 1.
        optimizers.apply([length * tf.constant([0.48, 0.64]), length * tf.constant([0.6])])
        moved.append(np.concatenate([variable.numpy() for variable in variables]))
    np.testing.assert_array_equal(moved[0], moved[1])
    np.testing.assert_allclose(moved[2], moved[3], rtol=1e-6)
    np.testing.assert_allclose(moved[2], [-0.048, -0.064, -0.06], rtol=1e-6)
