"""The training command: what it refuses before it starts, and that being killed costs it nothing but time."""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maxdl_tf import class_table, config, trainer
from maxdl_tf.benchmarks import measure
from maxdl_tf.checkpoints.folder import checkpoint_paths
from maxdl_tf.data.examples import encode_panoptic_example
from maxdl_tf.errors import UserError
from maxdl_tf.files import folder_lock
from maxdl_tf.files.folder_lock import FolderLock
from maxdl_tf.tasks import run as task_run
from maxdl_tf.tasks.panoptic import PanopticTask
from maxdl_tf.training import distribution
from maxdl_tf.training.optimizers import PolySchedule
from tests.helpers import REPOSITORY, command_here, in_process
from tests.training import fakes
from tests.training.test_loop import scalars

STEPS = 300
STEPS_PER_CHECKPOINT = 10

# The real command with a network of three layers.
_WITH_FAKE_MODEL = """
from maxdl_tf import trainer
from maxdl_tf.tasks.panoptic import PanopticTask
from tests.training import fakes
PanopticTask.build_model = lambda task: fakes.FakeModel()
trainer.run()
"""

_ON_TWO_CPUS = (
    """
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
"""
    + _WITH_FAKE_MODEL
)


def write_shards(path: Path, count: int) -> None:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for seed in range(count):
            labels = fakes.label_map(seed)
            png = io.BytesIO()
            Image.fromarray(fakes.picture(labels).astype(np.uint8)).save(png, "PNG")
            writer.write(encode_panoptic_example(png.getvalue(), "png", labels, f"image{seed}"))


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    write_shards(folder / "train.tfrecord", 16)
    write_shards(folder / "val.tfrecord", 5)
    (folder / class_table.FILE_NAME).write_text(class_table.to_text(fakes.DATASET_INFO))
    path = folder / "rectangles.textproto"
    path.write_text(
        f"""
        model {{ variant: "tiny" postprocess {{ thing_area_limit: 4 stuff_area_limit: 4 }} }}
        train_dataset {{
          file_pattern: "{folder}/train.tfrecord" crop_size: {fakes.SIZE} batch_size: 4 cache: true
          augmentation {{ min_scale: 1.0 max_scale: 1.0 flip: false }}
        }}
        eval_dataset {{ file_pattern: "{folder}/val.tfrecord" crop_size: {fakes.SIZE} batch_size: 4 }}
        training {{
          seed: 3 steps: {STEPS} steps_per_checkpoint: {STEPS_PER_CHECKPOINT} steps_per_summary: 5 steps_per_loop: 5
          checkpoints_to_keep: 3
          optimizer {{ learning_rate: 1e-2 backbone_multiplier: 1.0 warmup_steps: 20 }}
        }}
        """
    )
    return path


def command(config_file, model_dir, *flags, fake_model=True, program=_WITH_FAKE_MODEL):
    program = ["-c", program] if fake_model else [str(REPOSITORY / "maxdl_tf" / "trainer.py")]
    return [sys.executable, *program, f"--config_file={config_file}", f"--model_dir={model_dir}", *flags]


def run(*arguments, **keywords):
    return subprocess.run(command(*arguments, **keywords), cwd=REPOSITORY, capture_output=True, text=True, timeout=600)


def assert_refused(process, pattern):
    assert process.returncode == 2, process.stderr
    # Only the last line is the complaint: TensorFlow may have been started before it.
    assert "Traceback" not in process.stderr
    assert re.search(pattern, process.stderr.splitlines()[-1]), process.stderr


def kill_after_step(config_file, model_dir, step, delay):
    """Starts the training and kills it some time after the checkpoint of a step; gives what it said."""
    with open(model_dir.parent / "stderr", "w+") as said:
        process = subprocess.Popen(
            command(config_file, model_dir, "--mode=train"), cwd=REPOSITORY, stdout=said, stderr=said
        )
        try:
            deadline = time.monotonic() + 600
            while not any(int(path.rsplit("-", 1)[1]) >= step for path in checkpoint_paths(str(model_dir))):
                assert process.poll() is None and time.monotonic() < deadline, (model_dir.parent / "stderr").read_text()
                time.sleep(0.005)
            time.sleep(delay)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert process.returncode == -signal.SIGKILL, "the training ended before it was killed"
        said.seek(0)
        return said.read()


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param([(100, 150)], id="once"),
        pytest.param([(20, 70), (100, 150), (180, 230)], id="three times", marks=pytest.mark.slow),
    ],
)
def test_a_training_that_is_killed_ends_as_if_it_had_not_been(config_file, tmp_path, kills):
    model_dir = tmp_path / "model"
    draw = random.Random(20)
    starts = [0]
    for low, high in kills:
        kill_after_step(config_file, model_dir, draw.randrange(low, high), draw.uniform(0, 0.05))
        starts.append(int(checkpoint_paths(str(model_dir))[0].rsplit("-", 1)[1]))
    last = run(config_file, model_dir, "--mode=train_and_eval")
    assert last.returncode == 0, last.stderr
    assert re.search(
        rf"restored all \d+ variables of the model and \d+ of the optimizers .*step {starts[-1]}\n", last.stderr
    )

    runs = json.loads((model_dir / "run_info.json").read_text())
    assert [entry["from_step"] for entry in runs] == starts and runs[0]["tensorflow"] == tf.__version__

    # It ends at the same step, with no more checkpoints than were asked for.
    assert [os.path.basename(p) for p in checkpoint_paths(str(model_dir))] == ["ckpt-300", "ckpt-290", "ckpt-280"]
    assert not [p for p in model_dir.iterdir() if "temp" in p.name]
    metrics = json.loads((model_dir / "metrics.json").read_text())
    assert metrics["step"] == STEPS and metrics["unit"] == "fraction"
    # The loss of the evaluation set stands beside its quality, by the tag that it has in training.
    assert scalars(model_dir / "eval")["losses/total"] == {STEPS: pytest.approx(metrics["losses"]["total"])}
    assert f"\nloss {metrics['losses']['total']:.4g} (" in last.stdout

    assert {path.name for path in (model_dir / "best").iterdir()} == {
        *("checkpoint", f"ckpt-{STEPS}.index", f"ckpt-{STEPS}.data-00000-of-00001"),
        *("score.json", "experiment.textproto", "dataset_info.textproto"),
    }

    # The curves have no gap, the learning rate is the schedule's, and no restart threw the loss back.
    curves = scalars(model_dir / "train")
    assert set(curves["losses/total"]) == set(range(5, STEPS + 1, 5))
    schedule = PolySchedule(1e-2, steps=STEPS, warmup_steps=20, power=0.9)
    for step, rate in curves["optimizer/learning_rate"].items():
        assert rate == pytest.approx(float(schedule(step - 1)), rel=1e-4), step
    losses = curves["losses/total"]
    for start in starts[1:]:
        before = np.mean([losses[step] for step in range(start - 15, start + 1, 5)])
        after = np.mean([losses[step] for step in range(start + 5, start + 21, 5)])
        assert after < before + 0.25 * (losses[5] - before), (start, before, after, losses[5])
    assert losses[STEPS] < 0.5 * losses[5]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_training_that_is_asked_to_stop_saves_its_step(config_file, tmp_path, number, status):
    endless = "--override=training { steps: 1000000 }"
    process = subprocess.Popen(
        command(config_file, tmp_path / "model", "--mode=train", endless),
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 600
        while not checkpoint_paths(str(tmp_path / "model")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        said = process.communicate(timeout=600)[1]
    finally:
        process.kill()
    assert process.returncode == status, said
    assert "Traceback" not in said
    assert re.search(
        r"compiling the training step, usually about 0:\d\d\ntraining; compiling and the first step took 0:\d\d\n", said
    ), said
    step = int(re.search(r"stopped; step (\d+) is saved\n", said).group(1))
    assert os.path.basename(checkpoint_paths(str(tmp_path / "model"))[0]) == f"ckpt-{step}"


@pytest.fixture
def run_here(config_file, monkeypatch):
    """As `run`, in this process."""
    monkeypatch.setattr(PanopticTask, "build_model", lambda task: fakes.FakeModel())

    def run_here(model_dir, *flags):
        return command_here(trainer, f"--config_file={config_file}", f"--model_dir={model_dir}", *flags)

    return run_here


def test_parts_averages_and_clipping_together_are_resumed(run_here, tmp_path):
    options = "accumulate_steps: 2 ema_decay: 0.9 optimizer { gradient_clip_norm: 1.0 warmup_steps: 5 }"
    for steps in (10, 20):
        process = run_here(tmp_path / "model", f"--override=training {{ steps: {steps} {options} }}")
        assert process.returncode == 0, process.stderr
    assert "step 10\n" in process.stderr and re.search(r"20/20 steps.*waiting for input \d+%\n", process.stderr)
    variables = dict(tf.train.list_variables(str(tmp_path / "model" / "ckpt-20")))
    copies = [name for name in variables if name.startswith("trained_weights/")]
    assert len(copies) == sum(name.startswith("model/") and "OPTIMIZER_SLOT" not in name for name in variables)
    # What is evaluated at the end is the model of the checkpoint.
    measured = run_here(tmp_path / "model", "--mode=eval", f"--override=training {{ {options} }}")
    assert measured.stdout.splitlines()[-8:] == process.stdout.splitlines()[-8:]


@pytest.mark.slow
def test_two_replicas_train_evaluate_and_resume(config_file, tmp_path):
    for steps in (10, 20):
        flags = ("--strategy=mirrored", f"--override=training {{ steps: {steps} optimizer {{ warmup_steps: 5 }} }}")
        process = run(config_file, tmp_path / "model", *flags, program=_ON_TWO_CPUS)
        assert process.returncode == 0, process.stderr
        assert "MirroredStrategy on 2 CPUs" in process.stderr
        assert json.loads((tmp_path / "model" / "metrics.json").read_text())["num_images"] == 5
    assert "step 10\n" in process.stderr and "training  20/20 steps" in process.stderr


def test_a_frozen_backbone_with_random_weights_is_a_warning(run_here, tmp_path):
    frozen = "training { steps: %d freeze: backbone optimizer { warmup_steps: 0 } }"
    first, again = (run_here(tmp_path / "model", "--mode=train", f"--override={frozen % steps}") for steps in (1, 2))
    assert "warning: training.freeze keeps random weights in the backbone" in first.stderr
    assert "step 1\n" in again.stderr and "warning" not in again.stderr


def test_the_change_that_keeps_a_run_from_going_on_is_named(run_here, tmp_path):
    options = "training { steps: 1 ema_decay: %g optimizer { warmup_steps: 0 } }"
    assert run_here(tmp_path / "model", "--mode=train", f"--override={options % 0.5}").returncode == 0
    again = run_here(tmp_path / "model", "--mode=train", f"--override={options % 0}")
    assert again.returncode == 2
    assert "changes since the last start: training.ema_decay 0 instead of 0.5\n" in again.stderr
    assert "does not fit this experiment" in again.stderr and "learning rate" not in again.stderr


def test_scores_compare_when_only_the_times_of_evaluations_change(config_file):
    changes = ("", "steps_between_evaluations: 7 timeout_seconds: 8", "max_images: 2")
    first, times, images = (
        task_run._measure(config.load_experiment(str(config_file), [f"evaluation {{ {change} }}"]))
        for change in changes
    )
    assert first == times != images


def test_a_batch_that_cannot_be_parted_is_refused(run_here, tmp_path):
    process = run_here(tmp_path / "model", "--override=training { accumulate_steps: 3 }")
    assert_refused(process, r"batch_size 4 is not a multiple of the 1 replicas times training.accumulate_steps 3")


def test_a_step_that_cannot_be_compiled_is_refused(config_file, tmp_path):
    flags = ("--strategy=mirrored", "--override=training { jit_compile: true } model { sync_batch_norm: true }")
    process = run(config_file, tmp_path / "model", *flags, program=_ON_TWO_CPUS)
    assert_refused(process, r"jit_compile does not work with model.sync_batch_norm on 2 replicas")


def start_two_workers(config_file, folder, steps):
    """Starts them; what each says goes to folder/worker-INDEX."""
    with socket.socket() as one, socket.socket() as other:
        for listener in (one, other):
            listener.bind(("localhost", 0))
        workers = [f"localhost:{listener.getsockname()[1]}" for listener in (one, other)]
    processes = []
    for index in range(2):
        cluster = json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})
        with open(folder / f"worker-{index}", "w") as said:
            processes.append(
                subprocess.Popen(
                    command(config_file, folder / "model", "--mode=train", f"--override=training {{ steps: {steps} }}"),
                    cwd=REPOSITORY,
                    env={**os.environ, "TF_CONFIG": cluster},
                    stderr=said,
                )
            )
    return processes


def end_of_two_workers(processes, folder):
    """(exit statuses, what both said)."""
    for process in processes:
        process.wait(timeout=600)
    return [p.returncode for p in processes], [(folder / f"worker-{index}").read_text() for index in range(2)]


def signal_after_first_checkpoint(processes, folder, index, number):
    deadline = time.monotonic() + 600
    while not checkpoint_paths(str(folder / "model")):
        assert all(p.poll() is None for p in processes) and time.monotonic() < deadline
        time.sleep(0.01)
    processes[index].send_signal(number)


@pytest.mark.slow
def test_two_workers_train_and_one_of_them_writes(config_file, tmp_path):
    processes = start_two_workers(config_file, tmp_path, steps=20)
    statuses, (chief, other) = end_of_two_workers(processes, tmp_path)
    assert statuses == [0, 0], chief + other
    assert "training  20/20 steps" in chief and "steps" not in other
    assert [os.path.basename(p) for p in checkpoint_paths(str(tmp_path / "model"))] == ["ckpt-20", "ckpt-10"]
    assert len(list((tmp_path / "model" / "train").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_worker_is_killed_the_other_says_so_and_both_go_on_when_started_again(config_file, tmp_path, killed):
    processes = start_two_workers(config_file, tmp_path, steps=60)
    signal_after_first_checkpoint(processes, tmp_path, killed, signal.SIGKILL)
    statuses, said = end_of_two_workers(processes, tmp_path)
    assert statuses[killed] == -signal.SIGKILL and statuses[1 - killed] == 75, said
    assert re.search(r"maxdl-train: another worker is gone \(.*\); its output .* start all", said[1 - killed])
    assert "Traceback" not in said[1 - killed]
    saved = int(checkpoint_paths(str(tmp_path / "model"))[0].rsplit("-", 1)[1])

    statuses, (chief, other) = end_of_two_workers(start_two_workers(config_file, tmp_path, steps=60), tmp_path)
    assert statuses == [0, 0], chief + other
    assert f"step {saved}\n" in chief and "training  60/60 steps" in chief
    assert os.path.basename(checkpoint_paths(str(tmp_path / "model"))[0]) == "ckpt-60"


@pytest.mark.slow
def test_both_workers_stop_after_the_same_step_when_one_is_asked_to(config_file, tmp_path):
    processes = start_two_workers(config_file, tmp_path, steps=1000)
    signal_after_first_checkpoint(processes, tmp_path, 1, signal.SIGTERM)
    statuses, (chief, other) = end_of_two_workers(processes, tmp_path)
    assert statuses == [143, 143], chief + other
    step = re.search(r"stopped; step (\d+) is saved\n", chief).group(1)
    assert os.path.basename(checkpoint_paths(str(tmp_path / "model"))[0]) == f"ckpt-{step}"


@pytest.mark.parametrize("below", ["", "runs/first"])
def test_a_file_in_the_way_of_model_dir(config_file, tmp_path, below):
    (tmp_path / "file").write_text("x")
    process = run(config_file, tmp_path / "file" / below, fake_model=False)
    assert_refused(process, r"^trainer\.py: .*file.* because it is a file; remove it, or choose another path$")
    assert len(process.stderr.splitlines()) == 1


def test_a_disk_that_is_full_or_too_small_for_the_checkpoints(config_file, run_here, small_disk):
    process = run_here(small_disk / "model")
    assert_refused(process, r"KB free; 5 checkpoints of .* KB and 20 MB of curves will be written; make room")
    assert not os.listdir(small_disk / "model")
    (small_disk / "filler").write_bytes(b"x" * 200 * 1024)
    process = run(config_file, small_disk / "model", fake_model=False)
    assert_refused(process, "No space left on device; make room")
    assert len(process.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (
            ["--override=train_dataset { file_pattern: '/nowhere/*.tfrecord' }"],
            "'/nowhere/.*' matches no file",
        ),
        (["--override=training { ema_decay: 2 }"], "training.ema_decay 2.*must lie between 0 and 1"),
        (["--mode=eval"], "model_dir .*model does not exist; train first"),
        (["--mode=test"], "mode.*train_and_eval.*see .* --help"),
    ],
)
def test_what_is_refused_before_tensorflow_starts(config_file, tmp_path, flags, complaint):
    process = run(config_file, tmp_path / "model", *flags, fake_model=False)
    assert_refused(process, complaint)
    assert len(process.stderr.splitlines()) == 1
    assert not (tmp_path / "model").exists()


@pytest.fixture
def train(run_here, tmp_path):
    """Trains in this process; returns the lines on stderr."""

    def train(*flags):
        done = run_here(tmp_path / "model", "--mode=train", *flags)
        assert done.returncode == 0
        return done.stderr.splitlines()

    return train


def test_threads_of_an_operation_are_set_before_a_device_is_used(config_file, tmp_path, monkeypatch, capsys):
    done = []

    def create_strategy(*arguments):
        done.append("devices")
        raise UserError("no device")

    monkeypatch.setattr(distribution, "set_intra_op_threads", done.append)
    monkeypatch.setattr(distribution, "create_strategy", create_strategy)
    override = "--override=training { intra_op_threads: 1 }"
    assert in_process(trainer, f"--config_file={config_file}", f"--model_dir={tmp_path / 'model'}", override) == 2
    with pytest.raises(UserError, match="no device"):
        measure.train(config.load_experiment(str(config_file), [override.partition("=")[2]]), steps=1)
    assert done == [1, "devices", 1, "devices"]


def test_a_model_dir_that_another_training_uses_is_refused(train, config_file, tmp_path, capsys):
    folder = tmp_path / "model"
    with FolderLock(str(folder), "the other"):
        arguments = (f"--config_file={config_file}", f"--model_dir={folder}", "--mode=train")
        assert in_process(trainer, *arguments) == 2
        message = f"--model_dir {folder} is in use by process {os.getpid()} on {socket.gethostname()}; wait"
        assert message in capsys.readouterr().err
        assert os.listdir(folder) == [folder_lock.FILE]


@pytest.mark.parametrize("name", ["run [v2]", "run\\2"])
def test_a_model_dir_that_tensorflow_takes_as_a_pattern_is_refused(train, config_file, tmp_path, capsys, name):
    arguments = (f"--config_file={config_file}", f"--model_dir={tmp_path / name}", "--mode=train")
    assert in_process(trainer, *arguments) == 2
    assert "TensorFlow cannot restore weights from a path with" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_a_run_that_goes_on_reports_what_changed(train, tmp_path, config_file, monkeypatch):
    monkeypatch.setenv("MAXDL_SECRET", str(config_file.parent))
    data = "--override=train_dataset { file_pattern: '${MAXDL_SECRET}/train.tfrecord' }"
    short = "--override=training { steps: 2 optimizer { warmup_steps: 0 } }"
    slots = "--override=model { num_slots: 3 }"
    first = train(data, short, slots)
    # Each image has two boxes, floor and wall.
    assert any(
        re.match(r"warning: image image\d+ has 4 segments, but model.num_slots is 3, so ", line) for line in first
    )
    written = (tmp_path / "model" / "experiment.textproto").read_text()
    assert "${MAXDL_SECRET}/train.tfrecord" in written and f"{config_file.parent}/train" not in written

    again = train(data, short)
    assert "changes since the last start: model.num_slots unset instead of 3" in again
    assert any(line.startswith("step 2 of 2 is reached, nothing is trained; ") for line in again)

    longer = train(data, short, "--override=training { steps: 4 }")
    assert "changes since the last start: training.steps 4 instead of 2" in longer
    assert "the learning rate continues at 0.00536; without the changes it would be 0" in longer
    assert not [line for line in longer if "warning" in line]
    assert checkpoint_paths(str(tmp_path / "model"))[0].endswith("ckpt-4")
