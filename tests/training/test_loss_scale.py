"""The loss scale of float16: what overflows is left out and lowers it, what does not raises it, and it is kept."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.checkpoints.save_restore import Checkpoints
from maxdl_tf.keras_api import computing_in
from maxdl_tf.losses.panoptic import PanopticLoss
from maxdl_tf.training.loss_scale import LossScale
from maxdl_tf.training.nonfinite import NonFiniteLossError
from tests.training import fakes
from tests.training.test_step import BATCH_SIZE, build, with_nan_in


class Float16Model(fakes.FakeModel):
    def __init__(self):
        with computing_in("mixed_float16"):
            super().__init__()


def build_float16(initial=2.0**15, *, growth_steps=2000, **options):
    """A trainer with its model, its loss scale and the rest; all of its batches are one."""
    batches = options.pop("batches", fakes.train_batches(BATCH_SIZE, count=1))
    loss_scale = LossScale(initial, growth_steps=growth_steps)
    options = {"batch_size": BATCH_SIZE * options.get("accumulate_steps", 1), **options}
    trainer, model, optimizers, step = build(
        model_class=Float16Model, batches=batches, loss_scale=loss_scale, **options
    )
    return trainer, model, loss_scale, optimizers, step


def test_it_doubles_after_many_steps_and_halves_at_once_down_to_one():
    loss_scale = LossScale(4.0, growth_steps=3)
    seen = []
    for overflows in (False, False, True, False, False, False, True, True, True, True, True):
        if overflows:
            loss_scale.shrink_if(tf.constant(True))
        else:
            loss_scale.shrink_if(tf.constant(False))
            loss_scale.count_step()
        seen.append(float(loss_scale.scale))
    assert seen == [4, 4, 2, 2, 2, 4, 2, 1, 1, 1, 1]
    assert not loss_scale.can_shrink()
    for _ in range(3 * 40):
        loss_scale.count_step()
    assert float(loss_scale.scale) == 2.0**24


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_a_step_that_overflows_changes_nothing_but_the_scale(accumulate_steps):
    trainer, model, loss_scale, _, step = build_float16(2.0**30, accumulate_steps=accumulate_steps)
    curves = trainer.train(tf.constant(1))
    scale = curves["optimizer/loss_scale"]
    assert scale == float(loss_scale.scale) < 2.0**30
    assert int(step) == 1 == int(loss_scale.good_steps)

    reference, same_model, same_scale, *_ = build_float16(scale, accumulate_steps=accumulate_steps)
    expected = reference.train(tf.constant(1))
    assert float(same_scale.scale) == scale, "nothing overflows at the scale that was found"
    assert curves["losses/total"] == expected["losses/total"]
    assert curves["optimizer/gradient_norm"] == expected["optimizer/gradient_norm"]
    for variable, same in zip(model.variables, same_model.variables):
        np.testing.assert_array_equal(variable, same, err_msg=variable.name)


def test_gradients_do_not_depend_on_the_scale_while_nothing_overflows():
    norms = []
    for scale in (2.0**4, 2.0**8):
        trainer, *_ = build_float16(scale)
        norms.append(trainer.train(tf.constant(1))["optimizer/gradient_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-2)
    in_float32, *_ = build(batches=fakes.train_batches(BATCH_SIZE, count=1))
    assert norms[1] == pytest.approx(in_float32.train(tf.constant(1))["optimizer/gradient_norm"], rel=1e-2)


def test_small_gradients_are_lost_without_it():
    class Small(PanopticLoss):
        def __call__(self, outputs, targets):
            losses = super().__call__(outputs, targets)
            return losses._replace(total=losses.total * 1e-7)

    norms = {}
    for scale in (1.0, 2.0**24):
        trainer, *_ = build_float16(scale, loss=Small(fakes.DATASET_INFO))
        norms[scale] = trainer.train(tf.constant(1))["optimizer/gradient_norm"]
    in_float32, *_ = build(batches=fakes.train_batches(BATCH_SIZE, count=1), loss=Small(fakes.DATASET_INFO))
    expected = in_float32.train(tf.constant(1))["optimizer/gradient_norm"]
    assert norms[2.0**24] == pytest.approx(expected, rel=1e-2)
    assert norms[1.0] < 0.9 * expected


def test_an_infinite_gradient_at_every_scale_stops():
    class Loss(PanopticLoss):
        def __call__(self, outputs, targets):
            losses = super().__call__(outputs, targets)
            logits = tf.reduce_sum(tf.cast(outputs.mask_logits, tf.float32), axis=(1, 2, 3))
            zero = tf.abs(logits - tf.stop_gradient(logits))
            return losses._replace(total=losses.total + tf.sqrt(zero))  # The slope of the root is infinite there.

    trainer, _, loss_scale, _, step = build_float16(loss=Loss(fakes.DATASET_INFO))
    with pytest.raises(NonFiniteLossError, match="gradient_norm"):
        trainer.train(tf.constant(4))
    assert int(step) == 0 and float(loss_scale.scale) == 1.0


def test_a_loss_that_is_not_finite_is_not_the_fault_of_the_scale():
    trainer, _, loss_scale, *_ = build_float16(batches=with_nan_in(1))
    with pytest.raises(NonFiniteLossError, match="at step 2"):
        trainer.train(tf.constant(4))
    assert float(loss_scale.scale) == 2.0**15 and int(loss_scale.good_steps) == 1


def test_a_run_that_goes_on_has_the_scale_that_it_had(tmp_path):
    trainer, model, loss_scale, optimizers, step = build_float16(2.0**4, growth_steps=3)
    trainer.train(tf.constant(5))
    assert (float(loss_scale.scale), int(loss_scale.good_steps)) == (2.0**5, 2)
    Checkpoints(str(tmp_path), model=model, global_step=step, optimizers=optimizers.by_name).save()
    expected = trainer.train(tf.constant(1))["losses/total"]

    trainer, model, loss_scale, optimizers, step = build_float16(2.0**10, growth_steps=3, seed=2)
    Checkpoints(str(tmp_path), model=model, global_step=step, optimizers=optimizers.by_name).restore_latest()
    assert (float(loss_scale.scale), int(loss_scale.good_steps)) == (2.0**5, 2)
    assert trainer.train(tf.constant(1))["losses/total"] == pytest.approx(expected, rel=1e-3)
    assert float(loss_scale.scale) == 2.0**6
