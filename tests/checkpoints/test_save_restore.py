"""All of the model comes back, or an error says what does not; a half-written checkpoint is passed over."""

from __future__ import annotations

import os
import re
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.checkpoints import save_restore
from maxdl_tf.checkpoints.folder import checkpoint_paths, new_checkpoints, remove_leftovers
from maxdl_tf.checkpoints.keys import variables_by_key
from maxdl_tf.checkpoints.save_restore import (
    DAMAGE,
    CheckpointMismatch,
    Checkpoints,
    NonFiniteModelError,
    load_model_weights,
)
from maxdl_tf.errors import UserError
from maxdl_tf.training.optimizers import Optimizers, PolySchedule
from tests.training import fakes


class _Run:
    """Model, optimizers and step counter of a run, filled with numbers that depend on `seed`."""

    def __init__(self, directory, seed, *, keep=5, with_optimizers=True, **model_arguments):
        self.said: list[str] = []
        self.model = fakes.FakeModel(**model_arguments)
        self.step = tf.Variable(0, dtype=tf.int64)
        self.optimizers = Optimizers(self.model, PolySchedule(1e-3, steps=10), backbone_multiplier=0.1)
        self.checkpoints = Checkpoints(
            str(directory),
            model=self.model,
            global_step=self.step,
            optimizers=self.optimizers.by_name if with_optimizers else None,
            keep=keep,
            log=self.said.append,
        )
        random = np.random.default_rng(seed)
        for variable in (*self.model.variables, *self._slots()):
            variable.assign(random.normal(size=variable.shape))

    def _slots(self):
        return [v for v in self.optimizers.slot_variables if v.dtype.is_floating]

    def save(self, step):
        self.step.assign(step)
        return self.checkpoints.save()

    def values(self, slots=True):
        return [v.numpy() for v in (*self.model.variables, *(self._slots() if slots else ()))]


def assert_equal_values(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        np.testing.assert_array_equal(one, other)


def test_model_slots_and_step_come_back(tmp_path):
    old, new = _Run(tmp_path, seed=1), _Run(tmp_path, seed=2)
    path = old.save(7)
    assert os.path.basename(path) == "ckpt-7"
    restored = new.checkpoints.restore_latest()
    assert_equal_values(new.values(), old.values())
    assert int(new.step) == restored.step == 7
    assert restored.model_variables == len(old.model.variables)
    assert new.said == [restored.report()] and str(len(old.model.variables)) in new.said[0]


def test_the_keys_that_are_compared_are_those_in_the_file(tmp_path):
    run = _Run(tmp_path, seed=1)
    in_file = set(tf.train.load_checkpoint(run.save(1)).get_variable_to_shape_map())
    ours = set(variables_by_key(run.checkpoints._root))
    assert in_file - ours == {"_CHECKPOINTABLE_OBJECT_GRAPH"} and ours <= in_file


def test_the_size_is_known_before_it_is_written(tmp_path):
    run = _Run(tmp_path, seed=1)
    expected = run.checkpoints.size
    run.save(1)
    assert 0.5 * expected < sum(path.stat().st_size for path in tmp_path.glob("ckpt-1.*")) < expected


def test_evaluation_and_initial_weights_leave_the_optimizers_in_the_file(tmp_path):
    old = _Run(tmp_path, seed=1)
    path = old.save(3)
    evaluation = _Run(tmp_path, seed=2, with_optimizers=False)
    assert evaluation.checkpoints.restore_latest().optimizer_variables == 0
    assert_equal_values(evaluation.values(slots=False), old.values(slots=False))
    for name in (path, str(tmp_path)):
        model = fakes.FakeModel()
        assert load_model_weights(model, name).path == path
        assert_equal_values([v.numpy() for v in model.variables], old.values(slots=False))


def test_another_shape_is_named_and_nothing_is_changed(tmp_path):
    _Run(tmp_path, seed=1).save(3)
    wider = _Run(tmp_path, seed=2, slots=fakes.SLOTS + 1, with_optimizers=False)
    before = wider.values()
    with pytest.raises(CheckpointMismatch, match=r"model/masks/kernel \(3, 3, 16, 6\) instead of \(3, 3, 16, 7\)"):
        wider.checkpoints.restore_latest()
    assert_equal_values(wider.values(), before)


@pytest.mark.parametrize(("extra_in_file", "complaint"), [(True, "in it but unknown here"), (False, "missing from it")])
def test_a_variable_too_many_or_too_few_is_named(tmp_path, extra_in_file, complaint):
    old, new = (_Run(tmp_path, seed, with_optimizers=False) for seed in (1, 2))
    (old if extra_in_file else new).model.extra = tf.Variable([1.0], name="extra")
    old.save(3)
    with pytest.raises(CheckpointMismatch, match=f"1 variables are {complaint}: model/extra;"):
        new.checkpoints.restore_latest()


@pytest.mark.parametrize("damage", ["no data", "half the data", "a wrong byte", "half the index", "empty index"])
def test_an_incomplete_checkpoint_is_passed_over(tmp_path, damage):
    old = _Run(tmp_path, seed=1)
    old.save(3)
    values = old.values()
    old.model.variables[0].assign_add(tf.ones_like(old.model.variables[0]))
    path = old.save(6)
    data, index = Path(path + ".data-00000-of-00001"), Path(path + ".index")
    if damage == "no data":
        data.unlink()
    elif damage == "half the data":
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    elif damage == "a wrong byte":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 255
        data.write_bytes(content)
    else:
        index.write_bytes(index.read_bytes()[: index.stat().st_size // 2] if damage == "half the index" else b"")

    new = _Run(tmp_path, seed=2)
    # Damage is found first: TensorFlow would warn of each variable of the file that it did not reach.
    with mock.patch.object(new.checkpoints._root, "restore") as start, pytest.raises(DAMAGE):
        new.checkpoints.restore(path)
    assert not start.called
    assert new.checkpoints.restore_latest().step == 3
    assert_equal_values(new.values(), values)
    assert "ckpt-6 is incomplete" in new.said[0] and "ckpt-3" in new.said[1]


def test_only_damaged_checkpoints_are_an_error_and_none_at_all_is_not(tmp_path):
    run = _Run(tmp_path, seed=1)
    assert run.checkpoints.restore_latest() is None
    Path(run.save(3) + ".data-00000-of-00001").unlink()
    with pytest.raises(UserError, match="none of the 1 checkpoints"):
        _Run(tmp_path, seed=2).checkpoints.restore_latest()
    with pytest.raises(UserError, match="no checkpoint in"):
        load_model_weights(fakes.FakeModel(), str(tmp_path / ".."))
    with pytest.raises(UserError, match="cannot read the checkpoint"):
        load_model_weights(fakes.FakeModel(), str(tmp_path / "ckpt-4"))


def test_old_checkpoints_go_and_a_restarted_run_counts_them_too(tmp_path):
    run = _Run(tmp_path, seed=1, keep=2)
    for step in (1, 2, 3):
        run.save(step)
    assert [os.path.basename(p) for p in checkpoint_paths(str(tmp_path))] == ["ckpt-3", "ckpt-2"]
    run = _Run(tmp_path, seed=1, keep=2)
    for step in (4, 10):
        run.save(step)
    assert [os.path.basename(p) for p in checkpoint_paths(str(tmp_path))] == ["ckpt-10", "ckpt-4"]


def test_the_list_of_tensorflow_neither_deletes_nor_restores(tmp_path):
    for folder in ("model", "other"):
        _Run(tmp_path / folder, seed=1).save(5)
    (tmp_path / "model" / "checkpoint").write_text(
        'model_checkpoint_path: "../other/ckpt-5"\n'
        'all_model_checkpoint_paths: "../other/ckpt-5"\nall_model_checkpoint_paths: "ckpt-4"\n'
        "all_model_checkpoint_timestamps: 1\nall_model_checkpoint_timestamps: 2\n"
    )
    run = _Run(tmp_path / "model", seed=2, keep=1)
    assert next(new_checkpoints(str(tmp_path / "model"), 1)) == str(tmp_path / "model" / "ckpt-5")
    run.save(6)
    assert checkpoint_paths(str(tmp_path / "model")) == [str(tmp_path / "model" / "ckpt-6")]
    assert len(os.listdir(tmp_path / "other")) == 3
    assert tf.train.latest_checkpoint(str(tmp_path / "model")) == str(tmp_path / "model" / "ckpt-6")


def test_a_checkpoint_of_a_higher_step_does_not_cost_the_new_one(tmp_path):
    run = _Run(tmp_path, seed=1, keep=1)
    damaged = Path(run.save(9) + ".data-00000-of-00001")
    damaged.write_bytes(b"")
    for step in (3, 4):
        run.save(step)
    assert [os.path.basename(path) for path in checkpoint_paths(str(tmp_path))] == ["ckpt-9", "ckpt-4"]
    assert _Run(tmp_path, seed=2).checkpoints.restore_latest().step == 4


@pytest.mark.parametrize("folder", ["run [v2]", "a*b", "what?", "a]b", "a\\b", "{a,b}", "50%"])
def test_folders_whose_names_look_like_patterns(tmp_path, folder):
    """Either all works, or the folder is refused before anything is written."""
    try:
        run = _Run(tmp_path / folder, seed=1, keep=2)
    except UserError as error:
        assert "TensorFlow cannot restore weights" in str(error)
        assert os.listdir(tmp_path) == [] and ("[" in folder or "\\" in folder)
        return
    for step in (1, 2, 3):
        run.save(step)
    remove_leftovers(str(tmp_path / folder))
    assert len(list((tmp_path / folder).iterdir())) == 5  # Two files of each checkpoint, and their list.
    assert _Run(tmp_path / folder, seed=2).checkpoints.restore_latest().step == 3


def test_weights_below_a_bracket_are_refused(tmp_path):
    folder = tmp_path / "run"
    path = _Run(folder, seed=1).save(1)
    folder.rename(tmp_path / "run [1]")
    for path in (str(tmp_path / "run [1]"), str(tmp_path / "run [1]" / "ckpt-1")):
        with pytest.raises(UserError, match=r"TensorFlow cannot restore weights from a path with \[, .* make a link"):
            load_model_weights(fakes.FakeModel(), path)
    folder.symlink_to("run [1]")
    assert load_model_weights(fakes.FakeModel(), str(folder)).step == 1


def test_leftovers_of_a_killed_save_go_and_nothing_else(tmp_path):
    run = _Run(tmp_path, seed=1)
    run.save(3)
    (tmp_path / "ckpt-6_temp").mkdir()
    (tmp_path / f".{'0f' * 16}.partial").write_bytes(b"x")
    (tmp_path / "ckpt-3.data-of-mine").write_text("keep me")
    (tmp_path / "ckpt-6_temp" / "part-00000-of-00001.index").write_bytes(b"x")
    (tmp_path / "ckpt-6.data-00000-of-00001").write_bytes(b"x")
    (tmp_path / "ckpt-notes.txt").write_text("keep me")
    before = {"checkpoint", "ckpt-3.index", "ckpt-3.data-00000-of-00001", "ckpt-notes.txt", "ckpt-3.data-of-mine"}
    remove_leftovers(str(tmp_path))
    assert set(os.listdir(tmp_path)) == before
    assert _Run(tmp_path, seed=2).checkpoints.restore_latest().step == 3


@pytest.mark.parametrize("spoil", ["model", "slots"])
def test_a_model_that_is_not_finite_is_not_saved(tmp_path, spoil):
    run = _Run(tmp_path, seed=1)
    run.save(1)
    before = sorted(path.name for path in tmp_path.iterdir())
    variable = {"model": run.model.variables, "slots": run._slots()}[spoil][0]
    variable.assign(tf.fill(variable.shape, np.inf if spoil == "model" else np.nan))
    with pytest.raises(
        NonFiniteModelError, match=r"^step 2 is not saved in .*: 1 of \d+ variables, such as model/.*, are not"
    ):
        run.save(2)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_checkpoint_that_is_not_finite_is_skipped(tmp_path, monkeypatch):
    old, new = _Run(tmp_path, seed=1), _Run(tmp_path, seed=2)
    old.save(1)
    values = old.values()
    old.model.variables[0].assign(tf.fill(old.model.variables[0].shape, np.nan))
    with monkeypatch.context() as patch:  # As earlier versions saved.
        patch.setattr(save_restore, "_is_finite", lambda variable: True)
        path = old.save(2)
    assert new.checkpoints.restore_latest().step == 1
    assert_equal_values(new.values(), values)
    assert re.match(rf"skipping checkpoint {path}: 1 of \d+ variables, such as model/.*, are not finite", new.said[0])
    with pytest.raises(NonFiniteModelError, match="take an earlier one"):
        load_model_weights(new.model, path)
