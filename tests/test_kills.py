"""Commands killed at random moments: nothing half-written passes for whole, and the same command then succeeds."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maxdl_tf import class_table, panoptic_ids
from maxdl_tf.data import shards
from maxdl_tf.errors import UserError
from tests.helpers import REPOSITORY, command

KILLS = 4  # Of each of the five commands.
IMAGES = 12
CONFIG_FILE = REPOSITORY / "configs" / "shapes" / "max_deeplab_tiny_81.textproto"
SMALL = (
    "model { num_slots: 8 decoder { stacks: 0 blocks: 1 } width { multiplier: 0.5 } } "
    "train_dataset { batch_size: 2 } eval_dataset { batch_size: 2 } "
    "training { steps: 6 steps_per_checkpoint: 1 checkpoints_to_keep: 2 optimizer { warmup_steps: 0 } }"
)
EXPERIMENT = ("--config_file", CONFIG_FILE, "--override", SMALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Output of every command, uninterrupted; the tests read it and write elsewhere."""
    folder = tmp_path_factory.mktemp("whole")
    for arguments in (
        conversion(folder, "train"),
        conversion(folder, "val"),
        training(folder, folder),
        export(folder, folder),
    ):
        command(*arguments, SHAPES_TFRECORDS=folder / "shards")
    return folder


def conversion(output: Path, split: str) -> list:
    size = ("--height=81", "--width=81", "--max_things=3", "--min_size=0.3")
    images = ("--image_dir", output / "images") if split == "val" else ()
    return [
        *("data_gen.convert", "shapes", "--output_dir", output / "shards", "--split", split, "--count", IMAGES),
        *("--num_shards=6", "--overwrite", "--processes=2", *size, *images),
    ]


def training(whole: Path, output: Path) -> list:
    return ["trainer", *EXPERIMENT, "--model_dir", output / "model", "--mode=train"]


def export(whole: Path, output: Path) -> list:
    return ["export_model", *EXPERIMENT, "--checkpoint", whole / "model", "--export_dir", output / "export"]


def prediction(whole: Path, output: Path) -> list:
    return [
        "predict",
        "--model",
        whole / "export",
        "--input",
        whole / "images",
        "--output",
        output / "predictions",
        "--overwrite",
    ]


def evaluation(whole: Path, output: Path) -> list:
    return ["evaluate", *EXPERIMENT, "--checkpoint", whole / "model", "--json", output / "metrics.json"]


# --- what may be there after a kill, and must be there at the end ---


def check_conversion(output: Path, is_complete: bool) -> None:
    try:
        found = shards.find_shards(str(output / "shards" / "train-*"))
    except UserError:
        assert not is_complete
        return
    assert sum(1 for _ in tf.data.TFRecordDataset(found)) == IMAGES
    assert class_table.load(str(output / "shards" / class_table.FILE_NAME)).classes


def check_training(output: Path, is_complete: bool) -> None:
    indexes = list((output / "model").glob("ckpt-*.index"))
    steps = sorted(int(path.stem.rpartition("-")[2]) for path in indexes)
    for step in steps:
        reader = tf.train.load_checkpoint(str(output / "model" / f"ckpt-{step}"))
        values = [reader.get_tensor(name) for name, shape in reader.get_variable_to_shape_map().items() if shape]
        assert all(np.isfinite(value).all() for value in values if value.dtype == np.float32)
    if is_complete:
        assert steps == [5, 6] and len(list((output / "model").glob("ckpt-*.data-*"))) == 2


def check_export(output: Path, is_complete: bool) -> None:
    exported = output / "export"
    assert exported.exists() or not is_complete
    if exported.exists():
        image = tf.io.read_file(str(next((output / "one").iterdir())))
        found = tf.saved_model.load(str(exported)).signatures["serving_default"](tf.stack([image]))
        assert found["panoptic_map"].shape[1:] == (81, 81)


def check_prediction(output: Path, is_complete: bool) -> None:
    listed = output / "predictions" / "panoptic.json"
    assert listed.exists() or not is_complete
    if listed.exists():
        annotations = json.loads(listed.read_text())["annotations"]
        assert len(annotations) == IMAGES
        for annotation in annotations:
            with Image.open(output / "predictions" / "panoptic" / annotation["file_name"]) as picture:
                ids = panoptic_ids.color_to_id(np.asarray(picture))
            assert set(np.unique(ids)) - {0} == {segment["id"] for segment in annotation["segments_info"]}


def check_evaluation(output: Path, is_complete: bool) -> None:
    path = output / "metrics.json"
    assert path.exists() or not is_complete
    if path.exists():
        assert json.loads(path.read_text())["num_images"] == IMAGES


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, check",
    [
        (lambda whole, output: conversion(output, "train"), check_conversion),
        (training, check_training),
        (export, check_export),
        (prediction, check_prediction),
        (evaluation, check_evaluation),
    ],
    ids=["convert", "train", "export", "predict", "eval"],
)
def test_a_killed_command_leaves_nothing_half_and_succeeds_when_run_again(
    folder, tmp_path, monkeypatch, arguments: Callable, check: Callable
):
    monkeypatch.setenv("SHAPES_TFRECORDS", str(folder / "shards"))
    (tmp_path / "one").mkdir()
    shutil.copy(next((folder / "images").iterdir()), tmp_path / "one")
    module, *rest = arguments(folder, tmp_path)
    line = [sys.executable, "-m", f"maxdl_tf.{module}", *map(str, rest)]
    seconds = time_of(line)
    check(tmp_path, is_complete=True)
    generator = random.Random(0)
    for _ in range(KILLS):
        for path in tmp_path.iterdir():
            if path.name != "one":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        # Before the first tenth, Python only imports.
        kill_after(line, seconds * generator.uniform(0.1, 1.0))
        check(tmp_path, is_complete=False)
        if (tmp_path / "export").exists():
            continue  # It is whole, and an export does not replace another.
        finish(line)
        check(tmp_path, is_complete=True)
        hidden = list(tmp_path.rglob(".*"))
        assert not hidden, f"left over: {hidden}"


def time_of(line: list[str]) -> float:
    start = time.monotonic()
    finish(line)
    return time.monotonic() - start


def finish(line: list[str]) -> None:
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def kill_after(line: list[str], seconds: float) -> None:
    """Kills a command, and nothing that it started, some time after its start."""
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
