"""Data in the layouts of Cityscapes and ADE20K go through all commands, with copy-paste."""

from __future__ import annotations

import json

import numpy as np
import pytest

from maxdl_tf import class_table
from tests.data_gen.conversion import save_map
from tests.helpers import command

SIZE = (64, 128)
COLORS = np.array([(0, 0, 0), (90, 90, 90), (120, 180, 230), (230, 40, 40), (40, 160, 60)])
VOID, GROUND, SKY, CAR, PERSON = range(5)

EXPERIMENT = """
# A network that is small enough for a test.
name: "drawn"
model {
  variant: "kmax_tiny"
  num_slots: 8
  postprocess { kind: mask_wise class_threshold: 0.1 thing_area_limit: 1 stuff_area_limit: 1 }
}
loss { instance_discrimination_weight: 0 pixel_contrastive_weight: 1 pixel_contrastive_samples: 256 }
train_dataset {
  file_pattern: "${DRAWN}/train-*.tfrecord"
  crop_size: [65, 129]
  batch_size: 2
  enlarge: false
  augmentation { min_scale: 0.5 max_scale: 2.0 color: true color_magnitude: 0.2 copy_paste {} }
}
eval_dataset { file_pattern: "${DRAWN}/val-*.tfrecord" crop_size: [65, 129] batch_size: 2 enlarge: false }
training {
  seed: 1
  steps: 4
  optimizer { learning_rate: 1e-3 warmup_steps: 1 weight_decay: 0.05 }
}
"""

# What kMaX-DeepLab does otherwise on Cityscapes.
CITYSCAPES = """
model { output_stride: 2 semantic_decoder: false }
loss { semantic_top_share: 0.2 pixel_contrastive_area_temperature: 0.6 }
train_dataset { small_instance_weight: 3.0 }
"""


def draw(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws two cars and a person: image, uint8 [h, w, 3], and int [h, w] maps of kinds and of instances from 1."""
    kinds = np.full(SIZE, GROUND)
    kinds[: SIZE[0] // 2] = SKY
    instances = np.zeros(SIZE, int)
    for place, (kind, instance) in enumerate(random.permutation([(CAR, 1), (CAR, 2), (PERSON, 1)])):
        top, left = random.integers(10, 30), 42 * place + random.integers(2, 12)
        region = slice(top, top + 24), slice(left, left + 26)
        kinds[region], instances[region] = kind, instance
    kinds[:, :2] = VOID
    image = COLORS[kinds] + random.normal(0, 8, [*SIZE, 3])
    return np.clip(image, 0, 255).astype(np.uint8), kinds, instances


def write_cityscapes(root, split, number, image, kinds, instances):
    label_id = np.array([0, 7, 23, 26, 24])[kinds]
    name = f"city/city_{number:06d}_000019"
    save_map(root / "leftImg8bit" / split / f"{name}_leftImg8bit.png", image)
    ids = np.where(instances > 0, label_id * 1000 + instances - 1, label_id)
    save_map(root / "gtFine" / split / f"{name}_gtFine_instanceIds.png", ids, np.uint16)


def write_ade20k(root, split, number, image, kinds, instances):
    folder = {"train": "training", "val": "validation"}[split]
    save_map(root / "images" / folder / f"ADE_{split}_{number:08d}.png", image)
    save_map(root / "annotations" / folder / f"ADE_{split}_{number:08d}.png", np.array([0, 4, 3, 21, 13])[kinds])
    things = np.array([0, 0, 0, 9, 4])[kinds]
    pixels = np.stack([things, instances, np.zeros_like(things)], axis=-1)
    save_map(root / "annotations_instance" / folder / f"ADE_{split}_{number:08d}.png", pixels)


@pytest.mark.slow
@pytest.mark.parametrize(
    "converter, write, things, options",
    [
        ("cityscapes", write_cityscapes, {"car": 2, "person": 1}, CITYSCAPES),
        ("ade20k", write_ade20k, {"class_21": 2, "class_13": 1}, ""),
    ],
)
def test_a_drawn_data_set_goes_through_all_commands(tmp_path, converter, write, things, options):
    random = np.random.default_rng(0)
    root, shards, model_dir = tmp_path / "raw", tmp_path / "tfrecords", tmp_path / "model"
    for split, count in (("train", 4), ("val", 2)):
        for number in range(count):
            write(root, split, number, *draw(random))
        command("data_gen.convert", converter, f"--{converter}_dir", root, "--split", split, "--output_dir", shards)
    table = class_table.load(str(shards / class_table.FILE_NAME))
    assert table.label_divisor == 1000

    config_file = tmp_path / "drawn.textproto"
    config_file.write_text(EXPERIMENT)
    command("trainer", "--config_file", config_file, "--override", options, "--model_dir", model_dir, DRAWN=shards)
    metrics = json.loads((model_dir / "metrics.json").read_text())
    assert metrics["step"] == 4 and metrics["num_images"] == 2
    counted = {row["name"]: row["tp"] + row["fn"] for row in metrics["classes"]}
    assert {name: counted[name] for name in things} == {name: 2 * number for name, number in things.items()}

    export_dir, predictions = tmp_path / "export", tmp_path / "predictions"
    command("export_model", "--checkpoint", model_dir, "--export_dir", export_dir, DRAWN=shards)
    (info,) = export_dir.rglob("export_info.json")
    assert json.loads(info.read_text())["postprocess"]["enlarge"] is False
    images = {"cityscapes": root / "leftImg8bit" / "val" / "city", "ade20k": root / "images" / "validation"}[converter]
    command("predict", "--model", export_dir, "--input", images, "--output", predictions)
    written = json.loads((predictions / "panoptic.json").read_text())
    assert len(written["annotations"]) == 2
    assert {category["name"] for category in written["categories"]} == {row.name for row in table.classes}
