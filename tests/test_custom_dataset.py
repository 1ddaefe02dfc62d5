"""From a folder of pictures and a folder of label PNGs to a served model, with commands only."""

import json

import numpy as np
import pytest
from PIL import Image

from maxdl_tf import class_table, panoptic_ids
from tests.helpers import REPOSITORY, command

CONFIG_FILE = REPOSITORY / "configs" / "custom" / "max_deeplab_tiny_257.textproto"
SMALL = "train_dataset { crop_size: 65 batch_size: 4 } eval_dataset { crop_size: 65 } model { num_slots: 8 }"
COLORS = {1: (90, 90, 90), 2: (230, 40, 40), 3: (40, 60, 230)}  # Colors of the classes: ground, disks and squares.


def draw(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws two disks and a square side by side on the ground; returns image and class * 256 + instance."""
    label = np.full([72, 96], 1 * 256)
    y, x = np.mgrid[:72, :96]
    for place, (class_id, instance) in enumerate(random.permutation([(2, 1), (2, 2), (3, 1)])):
        center_y, center_x, radius = random.uniform(18, 54), 16 + 32 * place, random.uniform(9, 14)
        offsets = np.stack([abs(y - center_y), abs(x - center_x)])
        distance = np.hypot(*offsets) if class_id == 2 else offsets.max(axis=0)
        label[distance < radius] = class_id * 256 + instance
    label[:, :2] = 0  # Void: not annotated.
    image = np.array([(0, 0, 0), *COLORS.values()])[label // 256] + random.normal(0, 8, [72, 96, 3])
    return np.clip(image, 0, 255).astype(np.uint8), label.astype(np.uint16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("custom")
    random = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 4)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            image, label = draw(random)
            Image.fromarray(image).save(folder / "images" / split / f"{number}.jpg", quality=95)
            Image.fromarray(label).save(folder / "labels" / split / f"{number}.png")
    return folder


def test_pictures_and_label_pngs_become_a_served_model(folder):
    shards, model_dir, export_dir = folder / "tfrecords", folder / "run", folder / "export"
    for split in ("train", "val"):
        paths = ("--image_dir", folder / "images" / split, "--label_dir", folder / "labels" / split)
        command("data_gen.convert", "label_pngs", *paths, "--split", split, "--output_dir", shards)

    table = class_table.load(str(shards / "dataset_info.textproto"))
    assert [(row.id, row.name, row.is_thing) for row in table.classes] == [
        (1, "class_1", False),
        (2, "class_2", True),
        (3, "class_3", True),
    ]

    flags = ("--config_file", CONFIG_FILE, "--override", SMALL)
    steps = "training { steps: 300 steps_per_checkpoint: 300 }"
    command("trainer", *flags, "--override", steps, "--model_dir", model_dir, TFRECORDS=shards)
    command("export_model", *flags, "--checkpoint", model_dir, "--export_dir", export_dir, TFRECORDS=shards)
    predictions = folder / "predictions"
    command("predict", "--model", export_dir, "--input", folder / "images" / "val", "--output", predictions)

    written = json.loads((predictions / "panoptic.json").read_text())
    assert [category["name"] for category in written["categories"]] == ["class_1", "class_2", "class_3"]
    hits, pixels = np.zeros([2, 4])
    for annotation in written["annotations"]:
        segment_ids = panoptic_ids.color_to_id(
            np.asarray(Image.open(predictions / "panoptic" / annotation["file_name"]))
        )
        truth = np.asarray(Image.open(folder / "labels" / "val" / annotation["file_name"])) // 256
        classes = np.zeros_like(truth)
        for segment in annotation["segments_info"]:
            classes[segment_ids == segment["id"]] = segment["category_id"]
        hits += np.bincount(truth[classes == truth], minlength=4)
        pixels += np.bincount(truth.ravel(), minlength=4)
    # In 300 steps, the network learns to separate the colors. 80 % of all pixels are ground.
    share = hits[1:] / pixels[1:]
    assert all(share > 0.5), share
