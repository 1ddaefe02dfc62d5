"""Writes perturbed truths of a real data set as predictions in COCO's format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from maxdl_tf.panoptic_ids import id_to_color
from tests.evaluation import pairs


def write_results(folder: Path, name: str, results) -> Path:
    """Writes (image id, PNG name, ids, segments) of each image and returns the path of the JSON file."""
    (folder / name).mkdir(parents=True)
    annotations = []
    for image_id, png, ids, segments in results:
        Image.fromarray(id_to_color(ids)).save(folder / name / png, compress_level=1)
        annotations.append({"image_id": image_id, "file_name": png, "segments_info": segments})
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"annotations": annotations}))
    return path


def write_perturbed(folder: Path, data_set: str, split: str, count: int | None = None, seed: int = 0) -> Path:
    """Writes perturbed truths of the first images of a split."""
    info, images = pairs.real_truth(data_set, split)
    rng = np.random.default_rng(seed)
    categories = [row.source_id for row in info.classes]
    results = []
    for ids, segments, annotation in images[:count]:
        changed, listed = pairs.perturbed(rng, ids, segments, categories)
        results.append((annotation["image_id"], annotation["file_name"], changed, listed))
    return write_results(folder, "results", results)
