"""The inner loop: it learns, goes on where it was, stops at a NaN, and does not care for the number of replicas."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import orbit
import pytest
import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.losses.total import PanopticLoss
from maxdl_tf.training.checkpoints import Checkpoints
from maxdl_tf.training.optimizers import Optimizers, PolySchedule
from maxdl_tf.training.train_step import NonFiniteLossError, Trainer
from tests.helpers import REPOSITORY
from tests.training import fakes

BATCH_SIZE = 4
# TensorBoard shows runs of different days together, so that these names stay.
CURVES = {
    "losses/total",
    "losses/pq_style_dice",
    "losses/pq_style_class",
    "losses/mask_id",
    "losses/instance_discrimination",
    "losses/semantic",
    "matching/matched_class_probability",
    "matching/matched_dice",
    "matching/mask_id_accuracy",
    "matching/instance_discrimination_accuracy",
    "optimizer/gradient_norm",
    "optimizer/learning_rate",
    "optimizer/backbone_learning_rate",
}


def build(strategy=None, *, batches=None, learning_rate=1e-2, steps_per_loop=2, seed=1, loss=None):
    """A trainer with its model, optimizers and step counter."""
    strategy = strategy or tf.distribute.get_strategy()
    keras.utils.set_random_seed(seed)
    with strategy.scope():
        model = fakes.FakeModel()
        global_step = orbit.utils.create_global_step()
        optimizers = Optimizers(model, PolySchedule(learning_rate, steps=1000), backbone_multiplier=1.0)
    if batches is None:
        batches = fakes.train_batches(BATCH_SIZE)
    trainer = Trainer(
        strategy=strategy,
        model=model,
        loss=loss or PanopticLoss(fakes.DATASET_INFO),
        optimizers=optimizers,
        batches=strategy.experimental_distribute_dataset(batches),
        global_step=global_step,
        batch_size=BATCH_SIZE,
        steps_per_loop=steps_per_loop,
    )
    return trainer, model, optimizers, global_step


def losses_of(trainer, steps):
    return [trainer.train(tf.constant(1))["losses/total"] for _ in range(steps)]


def test_the_loss_falls_and_the_curves_are_of_the_whole_interval():
    trainer, _, _, global_step = build()
    reports = []
    trainer.on_progress = lambda steps, means: reports.append(steps)
    first = trainer.train(tf.constant(1))
    middle = trainer.train(tf.constant(40))
    last = trainer.train(tf.constant(5))
    assert int(global_step) == 46 == sum(reports)
    assert reports[:3] == [1, 2, 2] and reports[-1] == 1
    assert last["losses/total"] < middle["losses/total"] < first["losses/total"]
    assert last["matching/matched_dice"] > first["matching/matched_dice"]
    assert set(last) - {"images_per_second"} == CURVES
    terms = [value for name, value in last.items() if name.startswith("losses/") and name != "losses/total"]
    assert sum(terms) == pytest.approx(last["losses/total"], rel=1e-4)
    assert "images_per_second" not in first and middle["images_per_second"] > 0
    assert last["optimizer/learning_rate"] == pytest.approx(1e-2 * (1 - 45 / 1000) ** 0.9)


def test_a_seeded_run_repeats_and_a_restored_one_goes_on_as_if_it_had_not_stopped(tmp_path):
    trainer, *_ = build()
    unbroken = losses_of(trainer, 8)

    trainer, model, optimizers, global_step = build()
    assert losses_of(trainer, 4) == unbroken[:4]
    Checkpoints(str(tmp_path), model=model, global_step=global_step, optimizers=optimizers.by_name).save()

    trainer, model, optimizers, global_step = build(seed=2)
    checkpoints = Checkpoints(str(tmp_path), model=model, global_step=global_step, optimizers=optimizers.by_name)
    assert checkpoints.restore_latest().step == 4
    # The fake data repeat every 4 steps, so that the new iterator stands where the old one stood.
    np.testing.assert_allclose(losses_of(trainer, 4), unbroken[4:], rtol=1e-6)


def test_a_nan_stops_with_the_name_of_its_term():
    class Loss(PanopticLoss):
        def __call__(self, outputs, targets):
            losses = super().__call__(outputs, targets)
            poisoned = tf.where(tf.reduce_mean(targets.thing_id_mask, axis=(1, 2)) > -99, np.nan, losses.mask_id)
            return losses._replace(mask_id=poisoned, total=losses.total + poisoned)

    trainer, *_ = build(loss=Loss(fakes.DATASET_INFO))
    with pytest.raises(NonFiniteLossError, match="mask_id became nan between step 0 and step 1"):
        trainer.train(tf.constant(4))


def test_an_infinite_gradient_under_a_finite_loss_stops_too():
    class Loss(PanopticLoss):
        def __call__(self, outputs, targets):
            losses = super().__call__(outputs, targets)
            logits = tf.reduce_sum(outputs.mask_logits, axis=(1, 2, 3))
            zero = tf.abs(logits - tf.stop_gradient(logits))
            return losses._replace(total=losses.total + tf.sqrt(zero))  # The slope of the root is infinite there.

    trainer, *_ = build(loss=Loss(fakes.DATASET_INFO))
    with pytest.raises(NonFiniteLossError, match="gradient_norm"):
        trainer.train(tf.constant(4))


# TensorFlow hangs at the exit of a process with two MirroredStrategies on CPUs, hence a process of its own.
_TWO_REPLICAS = """
import json, sys
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
from maxdl_tf.training.distribution import create_strategy
from tests.training.test_train_step import build
strategy = create_strategy("mirrored")
assert strategy.num_replicas_in_sync == 2, strategy.num_replicas_in_sync
trainer, *_ = build(strategy)
print(json.dumps([trainer.train(tf.constant(1)) for _ in range(5)]))
"""


def test_two_replicas_train_like_one():
    process = subprocess.run(
        [sys.executable, "-c", _TWO_REPLICAS], cwd=REPOSITORY, capture_output=True, text=True, timeout=180
    )
    assert process.returncode == 0, process.stderr
    two = json.loads(process.stdout.splitlines()[-1])
    trainer, *_ = build()
    one = [trainer.train(tf.constant(1)) for _ in range(5)]
    for name in one[0]:
        if name != "images_per_second":
            np.testing.assert_allclose([r[name] for r in two], [r[name] for r in one], rtol=2e-3, err_msg=name)
