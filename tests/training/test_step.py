"""The inner loop: it learns, goes on where it was, does nothing on a NaN, and is the same for more replicas."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import orbit
import pytest
import tensorflow as tf

from maxdl_tf.checkpoints.save_restore import Checkpoints
from maxdl_tf.keras_api import keras
from maxdl_tf.losses.panoptic import PanopticLoss
from maxdl_tf.training.ema import ExponentialMovingAverage
from maxdl_tf.training.nonfinite import NonFiniteLossError, NonFiniteSteps
from maxdl_tf.training.optimizers import Optimizers, PolySchedule
from maxdl_tf.training.step import StepOptions, StopTraining, Trainer
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


def build(
    strategy=None,
    *,
    batches=None,
    batch_size=BATCH_SIZE,
    learning_rate=1e-2,
    steps_per_loop=2,
    seed=1,
    loss=None,
    model_class=fakes.FakeModel,
    create=None,
    ema_decay=None,
    loss_scale=None,
    nonfinite=None,
    **options,
):
    """A trainer with its model, optimizers and step counter."""
    strategy = strategy or tf.distribute.get_strategy()
    keras.utils.set_random_seed(seed)
    with strategy.scope():
        model = model_class()
        global_step = orbit.utils.create_global_step()
        optimizers = Optimizers(
            model,
            PolySchedule(learning_rate, steps=1000),
            backbone_multiplier=1.0,
            create=create,
            loss_scale=loss_scale,
        )
    ema = ExponentialMovingAverage(strategy, model, ema_decay) if ema_decay else None
    if batches is None:
        batches = fakes.train_batches(batch_size)
    trainer = Trainer(
        strategy=strategy,
        model=model,
        loss=loss or PanopticLoss(fakes.DATASET_INFO),
        optimizers=optimizers,
        batches=strategy.experimental_distribute_dataset(batches),
        global_step=global_step,
        options=StepOptions(batch_size=batch_size, steps_per_loop=steps_per_loop, **options),
        ema=ema,
        nonfinite=nonfinite,
    )
    trainer.ema = ema
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
    assert set(last) - {"images_per_second", "input/wait_share"} == CURVES
    terms = [value for name, value in last.items() if name.startswith("losses/") and name != "losses/total"]
    assert sum(terms) == pytest.approx(last["losses/total"], rel=1e-4)
    assert "images_per_second" not in first and middle["images_per_second"] > 0
    assert last["optimizer/learning_rate"] == pytest.approx(1e-2 * (1 - 45 / 1000) ** 0.9)


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_random_draws_of_a_loss_repeat_with_the_seed_and_differ_between_batches(accumulate_steps):
    def draws(seed):
        """The losses of three steps on the same images; nothing is learned."""
        trainer, *_ = build(
            loss=contrastive_loss(samples=20),
            batches=fakes.train_batches(BATCH_SIZE // accumulate_steps, count=1),
            learning_rate=1e-30,
            model_class=FrozenStatistics,
            accumulate_steps=accumulate_steps,
            seed=seed,
        )
        return [trainer.train(tf.constant(1))["losses/pixel_contrastive"] for _ in range(3)]

    first = draws(seed=1)
    assert draws(seed=1) == first
    assert len(set(first)) == 3


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


def with_nan_in(number: int, count: int = 4) -> tf.data.Dataset:
    """The fakes' batches, of which one has an image with a NaN."""
    batches = [fakes.train_batch(range(i * BATCH_SIZE, (i + 1) * BATCH_SIZE)) for i in range(count)]
    batches[number].images[2, 5, 5] = np.nan
    stacked = tf.nest.map_structure(lambda *parts: np.stack(parts), *batches)
    return tf.data.Dataset.from_tensor_slices(stacked).repeat()


def test_a_nan_stops_with_the_name_of_its_term_and_leaves_the_batch(tmp_path):
    class Loss(PanopticLoss):
        def __call__(self, outputs, targets):
            losses = super().__call__(outputs, targets)
            poisoned = tf.where(tf.math.is_nan(losses.total), np.nan, 0.0)
            # Only one of the terms has it.
            rest = {name: tf.where(tf.math.is_nan(losses.total), 1.0, getattr(losses, name)) for name in losses._fields}
            return losses._replace(**{**rest, "mask_id": rest["mask_id"] + poisoned, "total": losses.total})

    trainer, model, optimizers, global_step = build(
        loss=Loss(fakes.DATASET_INFO), batches=with_nan_in(2), steps_per_loop=4, nonfinite=NonFiniteSteps(str(tmp_path))
    )
    path = tmp_path / "nonfinite-3.npz"
    with pytest.raises(NonFiniteLossError, match=f"mask_id became nan at step 3, on the images image8, .*{path}"):
        trainer.train(tf.constant(8))
    assert int(global_step) == 2
    variables = [*model.variables, *optimizers.slot_variables]
    assert all(np.isfinite(variable).all() for variable in variables)
    batch, offending = np.load(path), fakes.train_batch(range(8, 12))
    assert set(batch) == {"images", "image_ids", *(f"targets/{name}" for name in offending.targets._fields)}
    assert np.isnan(batch["images"]).any(axis=(1, 2, 3)).tolist() == [False, False, True, False]
    np.testing.assert_array_equal(batch["targets/semantic"], offending.targets.semantic)
    assert [image_id.decode() for image_id in batch["image_ids"]] == list(offending.image_ids)


def test_a_step_that_is_left_out_changes_nothing_and_too_many_stop():
    said = []
    trainer, model, optimizers, _ = build(
        batches=with_nan_in(3), steps_per_loop=4, nonfinite=NonFiniteSteps(allowed=2, log=said.append)
    )
    curves = trainer.train(tf.constant(8))  # Two cycles of the data with three good batches each, and two more.
    assert [line.split(", written")[0].split(", on")[0] for line in said] == [
        "pq_style_dice became nan at step 4",
        "pq_style_dice became nan at step 7",
    ]
    assert "2 of 2" in said[1]

    good = fakes.train_batches(BATCH_SIZE, count=3)
    reference, same_model, same_optimizers, _ = build(batches=good, steps_per_loop=4)
    assert curves["losses/total"] == pytest.approx(reference.train(tf.constant(8))["losses/total"], rel=1e-6)
    variables = zip(
        [*model.variables, *optimizers.slot_variables], [*same_model.variables, *same_optimizers.slot_variables]
    )
    for variable, same in variables:
        np.testing.assert_allclose(variable, same, rtol=1e-5, atol=1e-7, err_msg=variable.name)
    with pytest.raises(NonFiniteLossError, match=r"at step 10, .* after 2 such steps were skipped"):
        trainer.train(tf.constant(8))


class FrozenStatistics(fakes.FakeModel):
    """Its batch norms do not care for the size of a batch."""

    def call(self, images, training=False):
        return super().call(images, training=False)


def test_four_batches_of_two_teach_what_one_of_eight_does():
    # With plain descent the way of the weights is the gradient.
    options = {"batch_size": 8, "model_class": FrozenStatistics, "create": keras.optimizers.legacy.SGD}
    whole, model, *_ = build(batches=fakes.train_batches(8), **options)
    initial = [variable.numpy() for variable in model.trainable_variables]
    parts, same_model, _, global_step = build(batches=fakes.train_batches(2, count=16), accumulate_steps=4, **options)
    for steps in (1, 3):
        expected, curves = whole.train(tf.constant(steps)), parts.train(tf.constant(steps))
        for name in CURVES:
            assert curves[name] == pytest.approx(expected[name], rel=1e-4), name
    assert int(global_step) == 4
    for start, variable, same in zip(initial, model.trainable_variables, same_model.trainable_variables):
        np.testing.assert_allclose(same - start, variable - start, rtol=1e-4, atol=1e-6, err_msg=variable.name)


def test_a_nan_in_a_part_throws_the_whole_step_away():
    options = {"model_class": FrozenStatistics, "accumulate_steps": 2, "batch_size": 2 * BATCH_SIZE}
    # Of batches 0, 1, 2 the second is bad: 0 waits for it in vain, then come 2 and 0, then the bad one alone, ...
    trainer, model, *_ = build(batches=with_nan_in(1, count=3), nonfinite=NonFiniteSteps(allowed=9), **options)
    batches = [fakes.train_batch(range(i * BATCH_SIZE, (i + 1) * BATCH_SIZE)) for i in (2, 0)]
    stacked = tf.nest.map_structure(lambda *parts: np.stack(parts), *batches)
    reference, same_model, *_ = build(batches=tf.data.Dataset.from_tensor_slices(stacked).repeat(), **options)
    trainer.train(tf.constant(3))
    reference.train(tf.constant(3))
    for variable, same in zip(model.variables, same_model.variables):
        np.testing.assert_allclose(variable, same, rtol=1e-5, atol=1e-7, err_msg=variable.name)


def test_waiting_for_data_is_told():
    def slowed(seconds):
        def wait(batch):
            tf.numpy_function(lambda: time.sleep(seconds), [], [])
            return batch

        return fakes.train_batches(BATCH_SIZE).map(wait)

    shares = []
    for seconds in (0.0, 0.2):
        trainer, *_ = build(batches=slowed(seconds))
        trainer.on_progress = lambda steps, means: shares.append(means.get("wait_share"))
        curves = trainer.train(tf.constant(7))
        assert curves["input/wait_share"] == shares[-1]
    assert shares[0] is None  # It compiled.
    assert shares[3] < 0.3 and 0.7 < shares[-1] < 1


def test_asked_to_stop_it_ends_after_a_whole_step():
    trainer, _, _, global_step = build(steps_per_loop=4, accumulate_steps=2)
    requests = iter([False, False, True])
    trainer.stop_requested = lambda: next(requests)
    with pytest.raises(StopTraining):
        trainer.train(tf.constant(20))
    assert int(global_step) == 1 + 4 + 1


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
from tests.training.test_step import draws_of_replicas, train_averaged, train_with_a_nan_in_parts
strategy = create_strategy("mirrored")
assert strategy.num_replicas_in_sync == 2, strategy.num_replicas_in_sync
assert len(set(draws_of_replicas(strategy))) == 2
print(json.dumps([train_averaged(strategy), train_with_a_nan_in_parts(strategy)]))
"""


def contrastive_loss(samples: int) -> PanopticLoss:
    return PanopticLoss(fakes.DATASET_INFO, pixel_contrastive_weight=1.0, pixel_contrastive_samples=samples)


def draws_of_replicas(strategy) -> list[float]:
    """The contrastive loss of the same image in each replica."""
    trainer, model, *_ = build(strategy, loss=contrastive_loss(samples=20))
    batch = fakes.train_batch([0])
    outputs = model(tf.constant(batch.images))
    targets = tf.nest.map_structure(tf.constant, batch.targets)

    @tf.function(autograph=False)
    def draw():
        return strategy.run(lambda: contrastive_loss(samples=20)(outputs, targets, *trainer.draw_seed()))

    losses = strategy.experimental_local_results(draw().pixel_contrastive)
    return [float(loss[0]) for loss in losses]


def train_averaged(strategy):
    """The curves of five steps, and the spread of the EMA then. The contrastive loss samples all pixels."""
    trainer, model, *_ = build(strategy, ema_decay=0.5, loss=contrastive_loss(samples=81))
    curves = [trainer.train(tf.constant(1)) for _ in range(5)]
    with trainer.ema.in_model():
        # The bias before a batch norm has nothing but rounding errors for a gradient, and Adam makes steps of them.
        weights = [variable for variable in model.variables if variable is not model.stem.bias]
        return curves, [float(np.std(variable.numpy())) for variable in weights]


def train_with_a_nan_in_parts(strategy):
    """The curves of three steps of two batches each, of which one is bad and left out."""
    said = []
    trainer, *_ = build(
        strategy,
        batches=with_nan_in(3),
        accumulate_steps=2,
        batch_size=2 * BATCH_SIZE,
        nonfinite=NonFiniteSteps(allowed=9, log=said.append),
    )
    curves = [trainer.train(tf.constant(1)) for _ in range(3)]
    return curves, [line.split(" became")[0] + line.split(" at step")[1] for line in said]


def test_two_replicas_train_like_one():
    process = subprocess.run(
        [sys.executable, "-c", _TWO_REPLICAS], cwd=REPOSITORY, capture_output=True, text=True, timeout=180
    )
    assert process.returncode == 0, process.stderr
    two = json.loads(process.stdout.splitlines()[-1])
    one_device = tf.distribute.get_strategy()
    for (curves, rest), (expected, expected_rest) in zip(
        two, (train_averaged(one_device), train_with_a_nan_in_parts(one_device))
    ):
        for name in CURVES:
            np.testing.assert_allclose(
                [r[name] for r in curves], [r[name] for r in expected], rtol=2e-3, atol=1e-6, err_msg=name
            )
        if isinstance(rest[0], str):
            assert rest == expected_rest and "image12, image13, image14, image15" in rest[0]
        else:
            np.testing.assert_allclose(rest, expected_rest, rtol=2e-3, atol=1e-5)
