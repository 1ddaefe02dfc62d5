"""The step compiled by XLA equals the other one and does not call the host."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.losses.assignment import tensorflow_assign
from maxdl_tf.losses.panoptic import PanopticLoss
from maxdl_tf.training.nonfinite import NonFiniteSteps
from tests.training import fakes
from tests.training.test_step import CURVES, build, with_nan_in

# All 81 pixels are sampled, so that the draw makes no difference.
LOSS = PanopticLoss(
    fakes.DATASET_INFO, pixel_contrastive_weight=1.0, pixel_contrastive_samples=81, assign=tensorflow_assign
)


def test_the_compiled_step_is_the_same_step():
    trainer, model, *_ = build(loss=LOSS)
    compiled, same_model, *_ = build(loss=LOSS, jit_compile=True)
    for _ in range(5):
        expected, curves = trainer.train(tf.constant(1)), compiled.train(tf.constant(1))
        for name in (*CURVES, "losses/pixel_contrastive"):
            assert curves[name] == pytest.approx(expected[name], rel=1e-4), name
    # The bias before a batch norm has nothing but rounding errors for a gradient, and Adam makes steps of them.
    for variable, same in zip(model.variables, same_model.variables):
        if variable is not model.stem.bias and variable is not model.norm.moving_mean:
            np.testing.assert_allclose(same, variable, rtol=1e-4, atol=1e-5, err_msg=variable.name)


def test_a_compiled_step_that_is_left_out_puts_the_statistics_back():
    trainer, model, *_ = build(
        loss=LOSS, batches=with_nan_in(3), jit_compile=True, steps_per_loop=4, nonfinite=NonFiniteSteps(allowed=2)
    )
    reference, same_model, *_ = build(loss=LOSS, batches=fakes.train_batches(4, count=3), steps_per_loop=4)
    curves, expected = trainer.train(tf.constant(8)), reference.train(tf.constant(8))
    assert curves["losses/total"] == pytest.approx(expected["losses/total"], rel=1e-4)
    np.testing.assert_allclose(model.norm.moving_variance, same_model.norm.moving_variance, rtol=1e-4)


def test_random_draws_of_a_compiled_step_repeat_with_the_seed_and_differ_between_steps():
    loss = PanopticLoss(
        fakes.DATASET_INFO, pixel_contrastive_weight=1.0, pixel_contrastive_samples=20, assign=tensorflow_assign
    )

    def draws(seed):
        """The loss of three samples of one batch; nothing is learned."""
        trainer, *_ = build(
            loss=loss, batches=fakes.train_batches(4, count=1), learning_rate=1e-30, jit_compile=True, seed=seed
        )
        return [trainer.train(tf.constant(1))["losses/pixel_contrastive"] for _ in range(3)]

    first = draws(seed=1)
    assert draws(seed=1) == first
    assert len(set(first)) == 3


def calls_out_of(trainer, batch) -> list[str]:
    """The instructions by which the compiled part of a step would reach the host, other programs or libraries."""
    arguments = [*tf.nest.map_structure(tf.constant, (batch.images, batch.targets)), *trainer.draw_seed()]
    hlo = trainer.differentiate.experimental_get_compiler_ir(*arguments)(stage="hlo")
    assert " while(" in hlo and " convolution(" in hlo  # The matcher, and the network.
    return re.findall(r"custom-call|infeed|outfeed|send|recv|callback", hlo)


def test_the_compiled_step_has_no_host_callback():
    trainer, *_ = build(loss=LOSS, jit_compile=True)
    assert calls_out_of(trainer, fakes.train_batch(range(4))) == []


def test_a_loss_that_asks_the_host_cannot_be_compiled():
    trainer, *_ = build(jit_compile=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match="PyFunc"):
        trainer.train(tf.constant(1))


@pytest.mark.slow
def test_the_compiled_step_of_a_real_network_is_the_same_step():
    task = smallest_task()
    batches = tf.data.Dataset.from_tensors(synthetic_batch_of(task)).repeat()
    totals = []
    for jit_compile in (False, True):
        task.experiment.training.jit_compile = jit_compile
        trainer = trainer_of(task, batches)
        totals.append([trainer.train(tf.constant(1))["losses/total"] for _ in range(3)])
    assert calls_out_of(trainer, next(iter(batches))) == []
    np.testing.assert_allclose(*totals, rtol=1e-4)
    assert totals[0][2] < totals[0][0]


def smallest_task():
    """A network with every kind of block, few of each, without drop path."""
    from google.protobuf import text_format

    from maxdl_tf.protos import experiment_pb2
    from maxdl_tf.tasks.panoptic import PanopticTask

    experiment = text_format.Parse(
        """
        model {
          variant: "tiny" num_slots: 8 mask_channels: 8 drop_path_keep: 1 decoder { stacks: 0 blocks: 1 }
          width { multiplier: 0.5 memory_channels: 16 transformer_width: 8 ffn_channels: 16 }
        }
        train_dataset { file_pattern: "none" crop_size: 33 batch_size: 2 max_things: 4 }
        training { steps: 100 optimizer { warmup_steps: 0 backbone_multiplier: 1 } }
        """,
        experiment_pb2.Experiment(),
    )
    task = PanopticTask(experiment, for_training=True)
    task.dataset_info = fakes.DATASET_INFO
    return task


def synthetic_batch_of(task):
    from maxdl_tf.benchmarks.synthetic import synthetic_batch

    dataset = task.experiment.train_dataset
    return synthetic_batch(
        task.dataset_info, crop_size=task.crop_size, batch_size=dataset.batch_size, max_things=dataset.max_things
    )


def trainer_of(task, batches):
    from maxdl_tf.tasks import run

    keras.utils.set_random_seed(1)
    return run.build_trainer(task, run.build_state(task, tf.distribute.get_strategy()), batches)
