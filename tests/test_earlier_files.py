"""Checkpoints and exports of earlier versions load, and give the label maps that they gave then.

tests/golden/earlier_files.tar.xz was written by the version of 2026-11-25 on TensorFlow 2.15: a model_dir with one
checkpoint (weights, EMA, both optimizers) and the export of it. earlier_maps.npz has images, label maps and scores that
version predicted.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maxdl_tf import panoptic_ids, predict, trainer
from maxdl_tf.data_gen import shapes
from tests.helpers import in_process, own_golden


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(Path(__file__).parent / "golden" / "earlier_files.tar.xz") as archive:
        archive.extractall(folder)
    maps = own_golden("earlier_maps")
    (folder / "images").mkdir()
    for number in range(4):
        Image.fromarray(maps[f"{number}/image"]).save(folder / "images" / f"{number}.png")
    return folder


@pytest.mark.parametrize("source", ["export", "checkpoint"])
def test_label_maps_are_as_before(earlier, tmp_path, monkeypatch, source):
    monkeypatch.setenv("SHAPES_TFRECORDS", "nowhere")
    model = ["--model", earlier / "export"]
    if source == "checkpoint":
        model = ["--model", earlier / "run", "--config_file", earlier / "run" / "experiment.textproto"]
    assert in_process(predict, *model, "--input", earlier / "images", "--output", tmp_path / "predictions") == 0
    maps = own_golden("earlier_maps")
    annotations = json.loads((tmp_path / "predictions" / "panoptic.json").read_text())["annotations"]
    assert len(annotations) == 4
    for annotation in annotations:
        number = annotation["image_id"]
        with Image.open(tmp_path / "predictions" / "panoptic" / annotation["file_name"]) as picture:
            label_map = panoptic_ids.color_to_id(np.asarray(picture))
        np.testing.assert_array_equal(label_map, maps[f"{number}/{source}/label_map"])
        scores = [segment["score"] for segment in annotation["segments_info"]]
        np.testing.assert_allclose(scores, maps[f"{number}/{source}/scores"], rtol=1e-4)


def test_training_resumes(earlier, tmp_path, monkeypatch, capsys):
    """Optimizers and EMA are restored too: strictly, so a changed key would be an error."""
    drawn = ["--count=8", "--height=65", "--width=65", "--split=train", "--output_dir", tmp_path / "shapes"]
    assert in_process(shapes, *drawn) == 0
    monkeypatch.setenv("SHAPES_TFRECORDS", str(tmp_path / "shapes"))
    config_file = earlier / "run" / "experiment.textproto"
    flags = ["--config_file", config_file, "--model_dir", earlier / "run", "--mode", "train"]
    assert in_process(trainer, *flags, "--override", "training { steps: 401 }") == 0
    assert "variables of the model and" in capsys.readouterr().err
    assert (earlier / "run" / "ckpt-401.index").exists()
