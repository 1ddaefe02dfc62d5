"""What maxdl-benchmark prints, and what it says of bad input."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers import REPOSITORY

CONFIG = "configs/shapes/max_deeplab_tiny_81.textproto"


def benchmark(*arguments: str) -> subprocess.CompletedProcess:
    """Runs the command where there is neither data nor a variable that says where it is."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_TFRECORDS")}
    return subprocess.run(
        [sys.executable, "-m", "maxdl_tf.benchmark", *arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_counts():
    done = benchmark("--mode", "count", "--config_file", CONFIG, "--override", "eval_dataset { crop_size: 97 }")
    assert (done.returncode, done.stderr) == (0, "")
    count = json.loads(done.stdout)
    assert (count["experiment"], count["crop_size"]) == ("max_deeplab_tiny_81", [97, 97])
    for name in ("parameters", "multiply_adds"):
        assert 0 < count[f"{name}_without_semantic"] < count[name]


def test_training_is_measured_without_data():
    size = "train_dataset { batch_size: 2 crop_size: 33 } training { accumulate_steps: 2 }"
    done = benchmark("--mode", "train", "--config_file", CONFIG, "--steps", "1", "--override", size)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["crop_size"], figures["batch_size"]) == ([33, 33], 2)
    assert set(figures["shares"]) == {"forward", "loss", "backward", "optimizer", "input"}
    assert all(share >= 0 for share in figures["shares"].values())
    assert 0 < figures["seconds_per_step"] < figures["first_step_seconds"]
    assert figures["estimated_peak_memory_bytes"] == pytest.approx(figures["peak_memory_bytes"], rel=0.3)
    assert figures["peak_memory_bytes"] > 1e8 and figures["tracing_seconds"] > 0 and figures["matching_seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--config_file", CONFIG], "--mode is missing"),
        (["--mode", "guess", "--config_file", CONFIG], "--mode=guess"),
        (["--mode", "count", "--config_file", "no/such.textproto"], "cannot read no/such.textproto"),
        (["--mode", "train", "--config_file", CONFIG, "--override", "task: classification"], "task: classification"),
        (
            ["--mode", "count", "--config_file", CONFIG, "--override", 'eval_dataset { dataset_info: "" }'],
            "no class table",
        ),
        (
            ["--mode", "count", "--config_file", CONFIG, "--override", "model { decoder { pretrained_stacks: 1 } }"],
            "pretrained_stacks 1: must be from 0 to stacks, which is 0",
        ),
    ],
)
def test_bad_input_is_told_in_one_line(arguments, complaint):
    done = benchmark(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert complaint in done.stderr and len(done.stderr.splitlines()) == 1
