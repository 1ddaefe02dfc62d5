"""The best weights of a training stay, whatever comes after them."""

from __future__ import annotations

import json

import pytest
import tensorflow as tf

from maxdl_tf.checkpoints.best import BestCheckpoint
from maxdl_tf.checkpoints.save_restore import load_model_weights


class Training:
    """A model of one weight, which equals the step."""

    def __init__(self, folder, measure="all images"):
        self.folder = folder
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.model = tf.Module()
        self.model.weight = tf.Variable(0.0)
        self.best = BestCheckpoint(
            str(folder), model=self.model, global_step=self.step, measure=measure, log=lambda line: None
        )

    def reach(self, step, score):
        self.step.assign(step)
        self.model.weight.assign(float(step))
        return self.best.offer(score)

    def kept(self):
        """The weight in the folder, found as commands find it."""
        model = tf.Module()
        model.weight = tf.Variable(-1.0)
        assert len(list(self.folder.glob("*.index"))) == 1
        load_model_weights(model, str(self.folder))
        return float(model.weight)


def test_worse_weights_do_not_replace_the_best(tmp_path):
    training = Training(tmp_path / "best")
    assert training.reach(10, 0.3) and training.reach(20, 0.5) and not training.reach(30, 0.4)
    assert training.kept() == 20
    assert json.loads((tmp_path / "best" / "score.json").read_text()) == {
        "step": 20,
        "score": 0.5,
        "measure": "all images",
    }


def test_of_equal_weights_the_last_are_kept(tmp_path):
    training = Training(tmp_path / "best")
    assert training.reach(10, 0.0) and training.reach(20, 0.0) and training.kept() == 20


def test_a_resumed_training_continues_the_comparison(tmp_path):
    Training(tmp_path / "best").reach(30, 0.5)
    resumed = Training(tmp_path / "best")  # From an earlier checkpoint.
    assert not resumed.reach(10, 0.4)
    assert resumed.reach(20, 0.6) and resumed.kept() == 20


def test_scores_that_were_measured_in_another_way_do_not_compare(tmp_path):
    Training(tmp_path / "best").reach(30, 0.9)
    assert Training(tmp_path / "best", measure="the first 10 images").reach(40, 0.5)


def test_a_new_training_starts_the_comparison_anew(tmp_path):
    Training(tmp_path / "best").reach(30, 0.9)
    new = Training(tmp_path / "best")
    new.best.forget()
    assert new.kept() == 30  # Until the first evaluation.
    assert new.reach(10, 0.1) and new.kept() == 10


@pytest.mark.parametrize("record", ["", "{", "[]", '{"step": 3}', '{"score": null}'])
def test_a_damaged_record_counts_for_nothing(tmp_path, record):
    training = Training(tmp_path / "best")
    training.reach(10, 0.9)
    (tmp_path / "best" / "score.json").write_text(record)
    assert training.reach(20, 0.1) and training.kept() == 20
