"""A backbone is pretrained on the classes of images by the commands, and a panoptic training starts from it."""

from __future__ import annotations

import io
import json
import os
import re

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maxdl_tf import class_table, config, evaluate, export_model, predict
from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.data.examples import encode_classified_example
from maxdl_tf.errors import UserError
from tests.helpers import REPOSITORY, command, in_process
from tests.training.test_loop import scalars

COLORS = ((220, 40, 40), (40, 200, 40), (40, 40, 210))
INFO = DatasetInfo("colors", tuple(SegmentClass(i, f"color {i}", False, (0, 0, 0), i) for i in (1, 2, 3)))
STEPS = 60


def write_shards(path, seeds) -> None:
    """Noisy images of one of three colors."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for seed in seeds:
            pixels = np.random.default_rng(seed).normal(COLORS[seed % 3], 30, (24, 20, 3))
            png = io.BytesIO()
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(png, "PNG")
            image_id = f"{seed % 3 + 1}/{seed}"
            writer.write(encode_classified_example(png.getvalue(), "png", (24, 20), seed % 3 + 1, "x", image_id))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder with experiment.textproto and model/, what maxdl-train said) of a small backbone on three colors."""
    folder = tmp_path_factory.mktemp("colors")
    write_shards(folder / "train.tfrecord", range(60))
    write_shards(folder / "val.tfrecord", range(100, 121))
    (folder / class_table.FILE_NAME).write_text(class_table.to_text(INFO))
    (folder / "experiment.textproto").write_text(
        f"""
        task: classification
        model {{ variant: "tiny" width {{ multiplier: 0.5 }} batch_norm_momentum: 0.9 sync_batch_norm: false }}
        train_dataset {{ file_pattern: "${{CONFIG_DIR}}/train.tfrecord" crop_size: 17 batch_size: 12 }}
        eval_dataset {{ file_pattern: "${{CONFIG_DIR}}/val.tfrecord" crop_size: 17 batch_size: 8 }}
        training {{
          seed: 3 steps: {STEPS} steps_per_summary: 10 optimizer {{ learning_rate: 1e-2 warmup_steps: 10 }}
        }}
        """
    )
    arguments = ("--config_file", folder / "experiment.textproto", "--model_dir", folder / "model")
    return folder, command("trainer", *arguments)


def test_colors_are_learned_and_measured(trained):
    folder, done = trained
    assert "loss 0.0" in done.stderr.splitlines()[-1]
    assert re.search(
        rf"step {STEPS}\naccuracy   top-1  top-5  images  \(top-1, top-5 in %\)\n +100\.0 +100\.0 +21\nloss \S+\n",
        done.stdout,
    )
    metrics = json.loads((folder / "model" / "metrics.json").read_text())
    assert 0 < metrics.pop("losses")["total"] < 0.7
    assert metrics == {"step": STEPS, "unit": "fraction", "top1": 1.0, "top5": 1.0, "num_images": 21}
    curves = scalars(folder / "model" / "train")
    assert set(curves["losses/total"]) == set(range(10, STEPS + 1, 10))
    assert {name for name in curves if name.split("/")[0] in ("losses", "accuracy", "matching")} == {
        "losses/total",
        "accuracy/top1",
        "accuracy/top5",
    }
    assert curves["accuracy/top1"][10] < curves["accuracy/top1"][STEPS]
    assert scalars(folder / "model" / "eval")["accuracy/top1"] == {STEPS: 1.0}


def test_maxdl_eval_measures_a_classifier_too(trained, tmp_path, capsys):
    folder, _ = trained
    arguments = ["--config_file", folder / "experiment.textproto", "--checkpoint", folder / "model"]
    pictures = ["--pictures", tmp_path / "pictures", "--picture_count=2"]
    assert in_process(evaluate, *arguments, *pictures, "--json", tmp_path / "metrics.json") == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    of_training = json.loads((folder / "model" / "metrics.json").read_text())
    assert metrics.pop("losses") == pytest.approx(of_training.pop("losses"), rel=1e-5) and metrics == of_training
    assert sorted(os.listdir(tmp_path / "pictures")) == ["100.png", "101.png"]
    assert "top-1" in capsys.readouterr().out


def test_commands_that_need_a_panoptic_model_say_so_in_one_line(trained, tmp_path, capsys):
    folder, _ = trained
    config_file = ["--config_file", folder / "experiment.textproto"]
    Image.new("RGB", (20, 20)).save(tmp_path / "photo.png")
    out = tmp_path / "out"
    for module, arguments in (
        (export_model, ["--checkpoint", folder / "model", "--export_dir", out]),
        (predict, ["--model", folder / "model", "--input", tmp_path / "photo.png", "--output", out]),
    ):
        assert in_process(module, *config_file, *arguments) == 2
        error = capsys.readouterr().err
        assert "experiment 'experiment' has task: classification, but this needs task: panoptic" in error
        assert error.count("\n") == 1 and not out.exists()


def test_a_table_of_numbers_goes_without_a_file(trained, tmp_path):
    folder, _ = trained
    path = str(folder / "experiment.textproto")
    experiment = config.load_experiment(path, ["train_dataset { num_classes: 1000 }"])
    info = class_table.of_dataset(experiment.train_dataset)
    assert info.class_order == tuple(range(1, 1001)) and info.by_id[1000].name == "1000" and not info.thing_ids
    for overrides, complaint in (
        (["train_dataset { num_classes: 0 }"], "num_classes 0: must lie between 1 and 65535"),
        (["train_dataset { num_classes: 3 dataset_info: 'x' }"], "there is also a dataset_info"),
        (["task: panoptic eval_dataset { num_classes: 3 }"], "it is for task: classification"),
    ):
        with pytest.raises(UserError, match=complaint):
            config.load_experiment(path, overrides)


@pytest.mark.slow
def test_a_panoptic_training_on_shapes_starts_from_a_backbone_and_learns_faster(tmp_path):
    """docs/backbone_pretraining.md, smaller."""
    draw = ("data_gen.convert", "shapes", "--height=81", "--width=81", "--min_size=0.3")
    for split, count in (("train", 1500), ("val", 150)):
        folders = ("--class_folders", tmp_path / "folders" / split)
        command(*draw, "--max_things=1", "--split", split, "--count", count, "--output_dir", tmp_path / "one", *folders)
        images = ("--image_dir", tmp_path / "folders" / split)
        command("data_gen.convert", "image_folders", *images, "--split", split, "--output_dir", tmp_path / "classes")
    command(*draw, "--max_things=3", "--count=600", "--output_dir", tmp_path / "shapes")

    configs = REPOSITORY / "configs" / "shapes"
    pretrained = tmp_path / "backbone"
    command(
        "trainer",
        *("--config_file", configs / "backbone_tiny_81.textproto", "--model_dir", pretrained),
        "--override=training { steps: 1200 }",
        SHAPE_CLASSES_TFRECORDS=tmp_path / "classes",
    )
    assert json.loads((pretrained / "metrics.json").read_text())["top1"] > 0.5  # A guess is right in a third.

    losses = {}
    for name, start in (("scratch", ""), ("pretrained", f'initial_checkpoint: "{pretrained}"')):
        done = command(
            "trainer",
            *("--config_file", configs / "max_deeplab_tiny_81.textproto", "--mode=train"),
            *("--model_dir", tmp_path / name),
            f"--override=training {{ steps: 200 steps_per_summary: 10 {start} }} train_dataset {{ batch_size: 8 }}",
            SHAPES_TFRECORDS=tmp_path / "shapes",
        )
        curve = scalars(tmp_path / name / "train")["losses/total"]
        losses[name] = np.mean([curve[step] for step in range(160, 201, 10)])

    # What came from the backbone is all that it has but its classifier.
    variables = {name.partition("/.ATTRIBUTES")[0] for name, _ in tf.train.list_variables(str(pretrained))}
    backbone = {
        name
        for name in variables
        if name.startswith("model/") and not name.startswith("model/classifier/") and "/.OPTIMIZER_SLOT" not in name
    }
    assert {name.split("/")[1] for name in backbone} == {"backbone"}
    assert f"{pretrained}/ckpt-1200: {len(backbone)} variables are loaded" in done.stderr
    assert "  model/backbone/stages/stage5/blocks/block1/" in done.stderr
    assert "classifier" not in done.stderr and "transformers" not in done.stderr
    assert losses["pretrained"] < losses["scratch"], losses
