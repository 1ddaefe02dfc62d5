"""When the outer loop saves and evaluates, and what it leaves in model_dir."""

from __future__ import annotations

import json
import os
import shutil

import orbit
import pytest
import tensorflow as tf

from maxdl_tf.checkpoints.folder import checkpoint_paths
from maxdl_tf.checkpoints.save_restore import Checkpoints
from maxdl_tf.evaluation.quality import PanopticQuality
from maxdl_tf.files.folder_lock import FolderLock
from maxdl_tf.training import loop
from maxdl_tf.training.loop import Plan
from tests.training import fakes


def stops(plan, step=0):
    found = []
    while step < plan.steps:
        step = plan.next_stop(step)
        found.append(step)
    return found


def test_stops_are_at_multiples_wherever_a_run_begins():
    plan = Plan(steps=100, per_checkpoint=40, per_summary=30, per_evaluation=50)
    assert stops(plan) == [40, 50, 80, 100]
    assert stops(plan, step=47) == [50, 80, 100]
    assert [step for step in stops(plan) if plan.evaluates_at(step)] == [50, 100]
    assert [plan.next_summary(step) for step in (0, 30, 40, 50, 95)] == [30, 40, 50, 60, 100]


def test_without_an_interval_evaluation_is_at_the_end():
    plan = Plan(steps=100, per_checkpoint=1000, per_summary=1000)
    assert stops(plan) == [100] and plan.evaluates_at(100) and not plan.evaluates_at(50)


class _Trainer(orbit.AbstractTrainer):
    """Counts."""

    batch_size = 2
    loss_terms = ("total", "semantic")

    def __init__(self, global_step):
        super().__init__()
        self.global_step = global_step
        self.calls: list[int] = []

    xla_compiles = False

    def estimate_memory(self):
        return None

    def train(self, num_steps):
        self.global_step.assign_add(int(num_steps))
        self.calls.append(int(num_steps))
        means = {"total": 0.5, "semantic": 0.5}
        self.on_progress(int(num_steps), means)
        return {"losses/total": means["total"]}


class _Evaluator(orbit.AbstractEvaluator):
    """Finds that all is right."""

    image_count = None

    def __init__(self):
        super().__init__()
        self.steps: list[int] = []

    def evaluate(self, num_steps):
        metric = PanopticQuality(fakes.DATASET_INFO)
        metric.update(fakes.label_map(0), fakes.label_map(0))
        self.result = metric.result()
        self.on_progress(1)
        return {"pq/all": self.result.all.pq}


@pytest.fixture
def run(tmp_path):
    global_step = orbit.utils.create_global_step()
    module = tf.Module()
    module.weight = tf.Variable(1.0)
    checkpoints = Checkpoints(str(tmp_path), model=module, global_step=global_step, log=lambda line: None)
    return loop.Loop(global_step=global_step, model_dir=str(tmp_path), checkpoints=checkpoints), _Trainer(global_step)


def scalars(directory):
    """{tag: {step: value}} of TensorBoard's files in a directory."""
    found: dict[str, dict[int, float]] = {}
    for path in sorted(directory.glob("events.out.tfevents.*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.tensor.dtype in (tf.float32, tf.float64):
                    found.setdefault(value.tag, {})[event.step] = float(tf.make_ndarray(value.tensor))
    return found


def test_a_run_leaves_checkpoints_curves_and_metrics(run, tmp_path, capfd):
    the_loop, trainer = run
    evaluator = _Evaluator()
    the_loop.train(trainer, Plan(steps=10, per_checkpoint=4, per_summary=3, per_evaluation=5), evaluator)

    assert trainer.calls == [3, 1, 1, 1, 2, 1, 1]  # Up to 3, 4, 5, 6, 8, 9, 10.
    assert {p.name for p in tmp_path.glob("ckpt-*.index")} == {f"ckpt-{s}.index" for s in (4, 5, 8, 10)}
    assert set(scalars(tmp_path / "train")["losses/total"]) == {3, 4, 5, 6, 8, 9, 10}
    assert scalars(tmp_path / "eval")["pq/all"] == {5: 1.0, 10: 1.0}
    assert {p.name for p in (tmp_path / "eval").glob("*.json")} == {"metrics-5.json", "metrics-10.json"}
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["step"] == 10 and metrics["all"]["pq"] == 1.0

    out, err = capfd.readouterr()
    assert out.count("step 10\n") == 1 and "things" in out
    assert "output" not in out + err  # Orbit's own lines.
    assert "training  10/10 steps" in err and "loss 0.5" in err


def test_a_finished_training_is_only_evaluated(run, tmp_path, capfd):
    the_loop, trainer = run
    plan = Plan(steps=4, per_checkpoint=4, per_summary=4)
    the_loop.train(trainer, plan)
    assert not (tmp_path / "metrics.json").exists()
    the_loop.train(trainer, plan, _Evaluator())
    assert trainer.calls == [4]
    assert json.loads((tmp_path / "metrics.json").read_text())["step"] == 4


def test_continuous_evaluation_ends_at_the_last_step(run, tmp_path, capfd):
    the_loop, trainer = run
    the_loop.train(trainer, Plan(steps=4, per_checkpoint=4, per_summary=4))
    the_loop.evaluate_continuously(_Evaluator(), steps=4, timeout_seconds=1)
    assert json.loads((tmp_path / "metrics.json").read_text())["step"] == 4


def test_continuous_evaluation_gives_up_waiting(run, tmp_path, capfd):
    the_loop, _ = run
    the_loop.evaluate_continuously(_Evaluator(), steps=4, timeout_seconds=0.1)
    assert "no new checkpoint for 0.1 s" in capfd.readouterr().err


@pytest.mark.parametrize("moment", ["before the curves", "while saving"])
def test_a_model_dir_that_is_removed_while_training_is_created_again(tmp_path, capfd, moment):
    """The next checkpoint is saved, and the curves go on."""
    folder = tmp_path / "model"
    global_step = orbit.utils.create_global_step()
    module = tf.Module()
    module.weight = tf.Variable(1.0)
    checkpoints = Checkpoints(str(folder), model=module, global_step=global_step, log=lambda line: None)
    trainer = _Trainer(global_step)
    train = trainer.train

    def train_and_remove(num_steps):
        curves = train(num_steps)
        if int(global_step) == 4 and moment == "before the curves":
            shutil.rmtree(folder)
        return curves

    trainer.train = train_and_remove
    write = checkpoints._root.write

    def write_and_remove(prefix):
        if int(global_step) == 4 and moment == "while saving" and (folder / "ckpt-2.index").exists():
            shutil.rmtree(folder)
            raise tf.errors.NotFoundError(None, None, f"{prefix}_temp; No such file or directory")
        return write(prefix)

    checkpoints._root.write = write_and_remove
    with FolderLock(str(folder), "--model_dir model") as lock:

        def keep():
            if lock.is_held:
                return False
            lock.renew()
            return True

        the_loop = loop.Loop(global_step=global_step, model_dir=str(folder), checkpoints=checkpoints, keep_folder=keep)
        the_loop.train(trainer, Plan(steps=8, per_checkpoint=2, per_summary=2))
    assert [os.path.basename(path) for path in checkpoint_paths(str(folder))] == ["ckpt-8", "ckpt-6", "ckpt-4"]
    assert set(scalars(folder / "train")["losses/total"]) == ({4, 6, 8} if moment == "before the curves" else {6, 8})
