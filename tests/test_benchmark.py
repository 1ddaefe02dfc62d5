"""The output of maxdl-benchmark, and its errors."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from maxdl_tf.export import saved_model
from tests.helpers import REPOSITORY
from tests.inference.color_network import CROP_SIZE, INFO, ColorNetwork, postprocessor

CONFIG = "configs/shapes/max_deeplab_tiny_81.textproto"


def benchmark(*arguments: str) -> subprocess.CompletedProcess:
    """Runs the command without data and without the environment variables that name its folders."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_TFRECORDS")}
    return subprocess.run(
        [sys.executable, "-m", "maxdl_tf.benchmark", *arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def assert_utilization(figures, multiply_adds, seconds, dtype="float32"):
    """The speed of the model and its share of the machine's follow from multiply-adds and time."""
    speed = figures[f"gflops_{dtype}"]
    assert speed["convolution"] > 0 and speed["matrix_product"] > 0
    gflops = 2 * multiply_adds / seconds / 1e9
    assert figures["gflops_model"] == pytest.approx(gflops, rel=0.01)
    assert figures["utilization"] == pytest.approx(gflops / max(speed.values()), rel=0.01)


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
    assert_utilization(figures, 3 * 2 * figures["multiply_adds"], figures["seconds_per_step"])
    assert (figures["crop_size"], figures["batch_size"]) == ([33, 33], 2)
    assert set(figures["shares"]) == {"forward", "loss", "backward", "optimizer", "input"}
    assert all(share >= 0 for share in figures["shares"].values())
    assert 0 < figures["seconds_per_step"] < figures["first_step_seconds"]
    assert figures["estimated_peak_memory_bytes"] == pytest.approx(figures["peak_memory_bytes"], rel=0.3)
    assert figures["peak_memory_bytes"] > 1e8 and figures["tracing_seconds"] > 0 and figures["matching_seconds"] > 0


@pytest.mark.parametrize("compute", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_predictions_of_a_model_are_measured_part_by_part(tmp_path, compute):
    Image.new("RGB", (60, 40), (90, 120, 30)).save(tmp_path / "a.png")
    size = "eval_dataset { crop_size: 33 }"
    arguments = ("--mode", "predict", "--config_file", CONFIG, "--steps", "1", "--override", size)
    done = benchmark(*arguments, "--images", str(tmp_path), "--compute", compute)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["model"], figures["crop_size"], figures["images"]) == ("random weights", [33, 33], 1)
    assert figures["compute"] == compute
    assert list(figures["part_seconds"]) == ["decode", "preprocess", "forward", "postprocess", "encode"]
    assert all(seconds > 0 for seconds in figures["part_seconds"].values())
    assert 0 < figures["end_to_end_seconds"] < figures["first_prediction_seconds"]
    assert figures["peak_memory_bytes"] > 1e8
    for name in ("parameters", "multiply_adds"):
        assert 0 < figures[f"{name}_without_semantic"] < figures[name]
    assert_utilization(figures, figures["multiply_adds_without_semantic"], figures["part_seconds"]["forward"], compute)


def test_predictions_of_a_saved_model_are_measured_in_a_table(tmp_path):
    path = str(tmp_path / "colors")
    saved_model.export_saved_model(
        ColorNetwork(), postprocessor(), crop_size=CROP_SIZE, dataset_info=INFO, export_dir=path, origin={}
    )
    done = benchmark("--mode", "predict", "--model", path, "--steps", "1", "--table")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line]
    assert [line[0] for line in lines[:6]] == ["part", "decode", "network", "postprocess", "encode", "whole"]
    figures = dict(line for line in lines[6:] if len(line) == 2)
    assert figures["images"] == "4"
    assert float(figures["gflops_float32_convolution"]) > 0 and "utilization" not in figures
    assert figures["weights"] == str(4 * 3 + 4 * 3)  # The color network's colors and class logits.


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--config_file", CONFIG], "--mode is missing"),
        (["--mode", "guess", "--config_file", CONFIG], "--mode=guess"),
        (["--mode", "count"], "--config_file is missing; --mode count needs"),
        (["--mode", "count", "--config_file", CONFIG, "--images", "."], "--images is for --mode predict"),
        (["--mode", "count", "--config_file", CONFIG, "--compute", "auto"], "--compute is for --mode predict"),
        (["--mode", "predict"], "needs the --config_file of a model, or an export or a checkpoint as --model"),
        (["--mode", "predict", "--config_file", CONFIG, "--model", "no/such"], "no/such is neither"),
        (["--mode", "predict", "--config_file", CONFIG, "--images", "no/such"], "no file matches 'no/such'"),
        (["--mode", "count", "--config_file", "no/such.textproto"], "no/such.textproto: there is no such file"),
        (["--mode", "train", "--config_file", CONFIG, "--override", "task: classification"], "task: classification"),
        (
            [
                "--mode",
                "count",
                "--config_file",
                CONFIG,
                "--override",
                'eval_dataset { dataset_info: "" file_pattern: "x" }',
            ],
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
