"""Pairs of truth and prediction as in COCO files: maps of ids and lists of segments."""

from __future__ import annotations

import json

import numpy as np

from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.data.coco_categories import table_of_categories
from maxdl_tf.data.coco_files import read_panoptic_png
from maxdl_tf.evaluation.segment_map import different_ids
from tests.helpers import shared_path

# Things 1, 2, 3, stuff 4, 5; category ids are ten times the class ids.
INFO = DatasetInfo(
    "few", tuple(SegmentClass(i, f"class {i}", i <= 3, (50 * i, 9, 200 - 20 * i), 10 * i) for i in range(1, 6)), 1000
)
CLASS_OF_CATEGORY = {row.source_id: row.id for row in INFO.classes}


def segments_of(ids, category_of, crowds=(), scores=None):
    """`segments_info` of the ids that occur in a map."""
    return [
        {
            "id": segment_id,
            "category_id": category_of[segment_id],
            "iscrowd": int(segment_id in crowds),
            **({"score": scores[segment_id]} if scores else {}),
        }
        for segment_id in different_ids(ids).tolist()
        if segment_id
    ]


def random_pair(rng, size=(18, 24)):
    """Draws a truth with void and crowds, sometimes several of a category, and a prediction that may resemble it.

    Returns:
      true ids, true segments, ids, segments.
    """
    cells = rng.integers(2, 7, 2)
    few = rng.integers(2, 9)
    category_of = {i: int(10 * rng.integers(1, 6)) for i in range(1, 40)}

    def draw(first):
        coarse = rng.integers(first, first + few, cells)
        coarse[rng.random(coarse.shape) < rng.choice([0, 0.15, 0.5])] = 0
        rows = np.sort(rng.integers(0, cells[0], size[0]))
        return coarse[rows][:, np.sort(rng.integers(0, cells[1], size[1]))].astype(np.int32)

    truth = draw(1)
    if rng.random() < 0.7:
        noise = draw(20)
        changed = rng.random(truth.shape) < rng.choice([0.02, 0.2, 0.45])
        prediction = np.where(changed, noise, np.roll(truth, rng.integers(-2, 3, 2), axis=(0, 1)))
    else:
        prediction = draw(20)
    case = rng.integers(0, 60)
    if case == 0:
        truth[:] = 0
    elif case == 1:
        prediction[:] = 0
    elif case == 2:
        # IoU of exactly a half, and half of a prediction on void.
        truth[:], prediction[:] = 1, 2
        truth[:, 12:] = 0
        truth[:9, 12:], prediction[:9, :12], prediction[9:, :12] = 3, 1, 4
        category_of.update({2: category_of[3], 4: category_of[3]})
    crowds = {i for i in np.unique(truth).tolist() if i and category_of[i] <= 30 and rng.random() < 0.25}
    true_segments = segments_of(truth, category_of, crowds)
    rng.shuffle(true_segments)
    renamed = {i: category_of[i] if rng.random() < 0.85 else int(10 * rng.integers(1, 6)) for i in category_of}
    segments = segments_of(prediction, renamed, scores={i: float(rng.random()) for i in renamed})
    return truth, true_segments, prediction, segments


def real_truth(data_set, split):
    """The class table of a real data set and (ids, segments, annotation) of each image."""
    annotations = shared_path("data", data_set, "annotations")
    path = annotations / f"panoptic_{split}.json"
    content = json.loads(path.read_text())
    images = [
        (read_panoptic_png(annotations / f"panoptic_{split}" / found["file_name"]), found["segments_info"], found)
        for found in content["annotations"]
    ]
    return table_of_categories(content["categories"], path, data_set), images


def perturbed(rng, ids, segments, categories):
    """Makes a prediction from a truth: shifted, thinned, merged, relabeled, partly void, with scores."""
    ids = np.roll(ids, rng.integers(-4, 5, 2), axis=(0, 1))
    category_of = {segment["id"]: segment["category_id"] for segment in segments}
    known = list(category_of)
    if rng.random() < 0.5:  # Thinned by a pixel or two.
        for _ in range(rng.integers(1, 3)):
            inner = np.ones(ids.shape, bool)
            for axis in (0, 1):
                for shift in (-1, 1):
                    inner &= np.roll(ids, shift, axis) == ids
            ids = np.where(inner, ids, 0)
    for first, second in rng.choice(known, (rng.integers(0, 3), 2)).tolist():
        ids = np.where(ids == second, first, ids)
    for segment_id in rng.choice(known, rng.integers(0, 4)).tolist():
        category_of[segment_id] = int(rng.choice(categories))
    if rng.random() < 0.4:
        ids = np.where(ids == rng.choice(known), 0, ids)
    scores = {segment_id: float(rng.uniform(0.2, 1)) for segment_id in category_of}
    return ids, segments_of(ids, category_of, scores=scores)
