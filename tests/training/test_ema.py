"""Averages of the weights: what they are, that a checkpoint's model is them, and that training goes on without them."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from maxdl_tf.checkpoints.save_restore import Checkpoints, load_model_weights
from tests.training import fakes
from tests.training.test_step import build, losses_of

DECAY = 0.5


def values(model):
    return [variable.numpy() for variable in model.variables]


def build_averaged(**options):
    trainer, model, optimizers, global_step = build(ema_decay=DECAY, **options)
    ema = trainer.ema
    return trainer, model, optimizers, global_step, ema


def test_the_ema_forgets_older_weights_by_half():
    trainer, model, *_, ema = build_averaged()
    expected = values(model)
    for step in range(12):
        trainer.train(tf.constant(1))
        decay = min(DECAY, (1 + step) / (10 + step))
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, values(model))]
    trained = values(model)
    with ema.in_model():
        for value, wanted in zip(values(model), expected):
            np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6)
        assert any((value != own).any() for value, own in zip(values(model), trained))
    for value, own in zip(values(model), trained):
        np.testing.assert_array_equal(value, own)


def test_a_checkpoint_has_the_ema_as_its_model_and_training_goes_on_from_the_weights(tmp_path):
    def new_checkpoints(model, optimizers, global_step, ema):
        return Checkpoints(str(tmp_path), model=model, global_step=global_step, optimizers=optimizers.by_name, ema=ema)

    trainer, *parts = build_averaged()
    losses_of(trainer, 4)
    new_checkpoints(*parts).save()
    model, ema = parts[0], parts[-1]
    with ema.in_model():
        averaged = values(model)
    unbroken = losses_of(trainer, 4)

    # Who evaluates, exports or fine-tunes gets the ema.
    other = fakes.FakeModel()
    load_model_weights(other, str(tmp_path))
    for value, wanted in zip(values(other), averaged):
        np.testing.assert_array_equal(value, wanted)

    trainer, *parts = build_averaged(seed=2)
    new_checkpoints(*parts).restore_latest()
    with parts[-1].in_model():
        for value, wanted in zip(values(parts[0]), averaged):
            np.testing.assert_array_equal(value, wanted)
    np.testing.assert_allclose(losses_of(trainer, 4), unbroken, rtol=1e-6)


def test_the_ema_begins_anew_from_loaded_weights():
    _, model, *_, ema = build_averaged()
    for variable in model.variables:
        variable.assign(tf.fill(variable.shape, 7.0))
    ema.restart()
    with ema.in_model():
        assert all((value == 7.0).all() for value in values(model))


def test_the_copies_are_as_many_as_the_model_has_variables(tmp_path):
    *_, ema = build_averaged()
    assert len(ema.variables) == len(fakes.FakeModel().variables)
    assert {variable.shape for variable in ema.variables} == {v.shape for v in fakes.FakeModel().variables}
