"""maxdl-train and maxdl-eval skip damaged records and list them, or stop and name the first."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maxdl_tf import class_table, evaluate, trainer
from maxdl_tf.data.examples import encode_panoptic_example
from maxdl_tf.tasks.panoptic import PanopticTask
from tests.data import damaged_files
from tests.data.data_servers import data_servers
from tests.helpers import in_process
from tests.training import fakes

SKIP = "on_damaged_record: SKIP"
STEPS = 6


def _record(seed: int, image: bytes | None = None) -> bytes:
    labels = fakes.label_map(seed)
    if image is None:
        file = io.BytesIO()
        Image.fromarray(fakes.picture(labels).astype(np.uint8)).save(file, "PNG")
        image = file.getvalue()
    return encode_panoptic_example(image, "png", labels, f"image{seed}")


def _write(path, records) -> None:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two shards of 6 images each, three of them damaged, and an experiment with a network of three layers."""
    for shard in range(2):
        _write(tmp_path / f"train-{shard}.tfrecord", [_record(6 * shard + number) for number in range(6)])
    damaged_files.flip_data(tmp_path / "train-0.tfrecord", 1)
    damaged_files.flip_length(tmp_path / "train-1.tfrecord", 2)
    damaged_files.cut_off(tmp_path / "train-1.tfrecord")
    (tmp_path / class_table.FILE_NAME).write_text(class_table.to_text(fakes.DATASET_INFO))
    dataset = f'{{ file_pattern: "{tmp_path}/train-*.tfrecord" crop_size: {fakes.SIZE} batch_size: 4 }}'
    (tmp_path / "experiment.textproto").write_text(
        f"""
        model {{ variant: "tiny" }}
        train_dataset {dataset} eval_dataset {dataset}
        training {{ seed: 3 steps: {STEPS} steps_per_loop: 2 steps_per_summary: 2 optimizer {{ warmup_steps: 0 }} }}
        """
    )
    monkeypatch.setattr(PanopticTask, "build_model", lambda *arguments, **options: fakes.FakeModel())
    return tmp_path


def _train(folder, *overrides) -> int:
    flags = [f"--override={override}" for override in overrides]
    return in_process(
        trainer, "--config_file", folder / "experiment.textproto", "--model_dir", folder / "model", *flags
    )


def _evaluate(folder, *overrides) -> int:
    flags = [f"--override={override}" for override in overrides]
    output = ["--untrained", "--json", folder / "metrics.json"]
    return in_process(evaluate, "--config_file", folder / "experiment.textproto", *output, *flags)


def _assert_stopped(status: int, said: str, pattern: str) -> None:
    assert status == 2, said
    assert "Traceback" not in said and re.search(pattern, said.splitlines()[-1]), said


def test_training_lists_skipped_records_and_completes(folder, capfd):
    assert _train(folder, f"train_dataset {{ {SKIP} }} eval_dataset {{ {SKIP} }}") == 0
    said, result = capfd.readouterr()[::-1]
    assert f"{STEPS}/{STEPS} steps" in said and result.startswith(f"step {STEPS}\n")
    assert said.count("skipping 3 damaged records") == 2  # Once for training, once for the evaluation.
    for place in (
        r"train-0\.tfrecord: record 1 at",
        r"train-1\.tfrecord: record 2 at",
        r"train-1\.tfrecord: record 5 at",
    ):
        assert len(re.findall(place, said)) == 2, said


def test_evaluation_counts_the_intact_images(folder, capfd):
    assert _evaluate(folder, f"eval_dataset {{ {SKIP} }}") == 0
    assert "skipping 3 damaged records" in capfd.readouterr().err
    assert json.loads((folder / "metrics.json").read_text())["num_images"] == 9


@pytest.mark.parametrize("run", [_train, _evaluate])
def test_the_first_damaged_record_stops_the_run_and_is_named(folder, capfd, run):
    status = run(folder)
    _assert_stopped(
        status,
        capfd.readouterr().err,
        r"^command: .*train-0\.tfrecord: record 1 at byte \d+: the data .* 2 more are damaged; .*: SKIP",
    )


@pytest.mark.parametrize("run", [_train, _evaluate])
@pytest.mark.parametrize(
    "fault, words",
    [
        (b"no picture", "record 3 at byte"),
        (b"", "record 3 at byte"),
        ("other class", "record 3 at byte .*image40.*class table of rectangles lacks.*9"),
    ],
)
def test_an_unusable_record_stops_the_run_and_is_named(folder, capfd, run, fault, words):
    for path in folder.glob("*.tfrecord"):
        path.unlink()
    bad = _record(40, fault) if isinstance(fault, bytes) else _with_class_9()
    _write(folder / "train-0.tfrecord", [*map(_record, range(3)), bad, *map(_record, range(4, 8))])
    _assert_stopped(run(folder), capfd.readouterr().err, rf"train-0\.tfrecord: {words}.*maxdl-check-data")


def _with_class_9() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (fakes.SIZE, fakes.SIZE)).save(file, "PNG")
    return encode_panoptic_example(file.getvalue(), "png", np.full((fakes.SIZE, fakes.SIZE), 9 * 256), "image40")


def test_options_that_exclude_a_data_service_are_refused(folder, capfd):
    for flag, cache, words in (
        ("host:5000", "false", "wanted grpc://host:port"),
        ("grpc://host:5000", "true", "cache does not work with --data_service"),
    ):
        status = in_process(
            trainer,
            *("--config_file", folder / "experiment.textproto", "--model_dir", folder / "model"),
            *("--data_service", flag, f"--override=train_dataset {{ cache: {cache} }}"),
        )
        _assert_stopped(status, capfd.readouterr().err, words)


def test_training_on_batches_of_a_data_service(folder, capfd):
    servers = data_servers(1)
    status = in_process(
        trainer,
        *("--config_file", folder / "experiment.textproto", "--model_dir", folder / "model", "--mode=train"),
        *("--data_service", servers[0].target, f"--override=train_dataset {{ {SKIP} }}"),
    )
    said = capfd.readouterr().err
    assert status == 0 and f"{STEPS}/{STEPS} steps" in said, said


def test_shards_on_any_path_that_tensorflow_reads(folder, capfd):
    for name in ("train-0.tfrecord", "train-1.tfrecord", class_table.FILE_NAME):
        tf.io.gfile.copy(str(folder / name), f"ram://shards/{name}", overwrite=True)
    assert _evaluate(folder, f'eval_dataset {{ file_pattern: "ram://shards/train-*.tfrecord" {SKIP} }}') == 0
    assert "ram://shards/train-1.tfrecord: record 5 at" in capfd.readouterr().err
    assert json.loads((folder / "metrics.json").read_text())["num_images"] == 9
