"""From annotations to a served panoptic map, by the commands that a person types."""

import json
import os
import re
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from maxdl_tf import demo, panoptic_ids
from tests.helpers import REPOSITORY, command, in_process, shared_path


def test_demo_goes_through_every_command(tmp_path):
    """The demo with two steps of training: its measurements mean nothing then, but they are made."""
    output = tmp_path / "demo"
    done = command(
        "demo",
        *("--output_dir", output, "--train_images=16", "--val_images=2"),
        *("--override", "training { steps: 2 optimizer { warmup_steps: 1 } }"),
        *("--override", "train_dataset { batch_size: 2 } eval_dataset { batch_size: 2 }"),
    )
    assert re.fullmatch(
        rf"demo: PQ \d+\.\d  overlays {output}/predictions  "
        rf"saved_model {output}/saved_model  metrics {output}/metrics.json",
        done.stdout.splitlines()[-1],
    )
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["step"] == 2 and metrics["num_images"] == 2
    images = sorted(path.stem for path in (output / "images").iterdir())
    assert images == ["shapes_val_000000", "shapes_val_000001"]
    assert sorted(path.stem for path in (output / "pictures").iterdir()) == images

    (annotation_file,) = (output / "predictions").glob("*.json")
    for annotation in json.loads(annotation_file.read_text())["annotations"]:
        (png,) = (output / "predictions").rglob(f"*/{annotation['file_name']}")
        with Image.open(png) as picture:
            ids = panoptic_ids.color_to_id(np.asarray(picture))
        assert ids.shape == (81, 81)
        assert set(np.unique(ids)) - {0} == {segment["id"] for segment in annotation["segments_info"]}


@pytest.mark.parametrize("foreign", [None, "notes.txt", ".maxdl_demo"])
def test_a_demo_deletes_only_a_demo(tmp_path, capsys, foreign):
    """With a folder `shapes` from elsewhere, another file in a demo, and a demo of an earlier version alone."""
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "train").write_text("x")
    if foreign != ".maxdl_demo":
        (tmp_path / (foreign or "model")).write_text("x")
    if foreign:
        (tmp_path / ".maxdl_demo").touch()
    if foreign == ".maxdl_demo":
        (tmp_path / "untrained.json").touch()
    before = sorted(os.listdir(tmp_path))
    with mock.patch.object(demo, "_demonstrate") as demonstrate:
        status = in_process(demo, "--output_dir", tmp_path)
    if foreign == ".maxdl_demo":
        assert status == 0 and demonstrate.called and os.listdir(tmp_path) == [".maxdl_demo"]
    else:
        assert status == 2 and not demonstrate.called and sorted(os.listdir(tmp_path)) == before
        assert f"holds something other than a demo, such as {foreign or 'model'}" in capsys.readouterr().err


@pytest.mark.slow
def test_four_coco_images_are_learned_by_heart(tmp_path):
    """configs/coco/overfit_4_images.textproto, as its header says."""
    coco = shared_path("data", "coco_sample")
    command(
        "data_gen.convert",
        "coco_panoptic",
        *("--image_dir", coco / "train2017"),
        *("--annotation_file", coco / "annotations" / "panoptic_train2017.json"),
        *("--only", ",".join(f"{number:012d}.jpg" for number in (72, 73, 309, 508))),
        *("--output_dir", tmp_path / "coco_4"),
    )
    config_file = REPOSITORY / "configs" / "coco" / "overfit_4_images.textproto"
    model_dir = tmp_path / "model"
    command("trainer", "--config_file", config_file, "--model_dir", model_dir, COCO_TFRECORDS=tmp_path / "coco_4")
    metrics = json.loads((model_dir / "metrics.json").read_text())
    assert metrics["num_images"] == 4
    assert metrics["all"]["pq"] >= 0.8
    assert metrics["things"]["num_classes"] >= 4 and metrics["stuff"]["num_classes"] >= 4
