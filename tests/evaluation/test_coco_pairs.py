"""Predictions are paired with their truth; errors name what does not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from maxdl_tf.errors import UserError
from maxdl_tf.evaluation import coco_pairs
from maxdl_tf.panoptic_ids import id_to_color
from tests.evaluation.write_predictions import write_results

CATEGORIES = [
    {"id": 10, "name": "cat", "isthing": 1, "color": [200, 10, 10]},
    {"id": 40, "name": "sky", "isthing": 0, "color": [10, 10, 200]},
]
IDS = np.int32([[70000, 70000, 5], [5, 5, 5]])
SEGMENTS = [
    {"id": 70000, "category_id": 10, "iscrowd": 0, "area": 2, "score": 0.5},
    {"id": 5, "category_id": 40, "iscrowd": 0, "area": 4, "score": 0.5},
]


@pytest.fixture
def files(tmp_path):
    """Truth of two images, 1 and 2, and the same as predictions."""
    results = [(number, f"{number:012d}.png", IDS, SEGMENTS) for number in (1, 2)]
    path = write_results(tmp_path / "truth", "panoptic_val", results)
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "height": 2, "width": 3} for n in (1, 2)]
    content = {**json.loads(path.read_text()), "images": images, "categories": CATEGORIES}
    path.write_text(json.dumps(content))
    write_results(tmp_path / "predicted", "results", results)
    return tmp_path


def open_pairs(files, predictions="predicted"):
    found = coco_pairs.find_predictions(str(files / predictions))
    return coco_pairs.open_pairs(found, str(files / "truth" / "panoptic_val.json"))


def compare_all(files, predictions="predicted", **options):
    return coco_pairs.compare_pairs(open_pairs(files, predictions), **options)


def change_results(files, change):
    path = files / "predicted" / "results.json"
    content = json.loads(path.read_text())
    change(content["annotations"])
    path.write_text(json.dumps(content))


def test_a_perfect_prediction(files):
    pairs = open_pairs(files)
    assert [row.name for row in pairs.dataset_info.classes] == ["cat", "sky"] and pairs.warnings == []
    done = []
    comparisons = compare_all(files, with_masks=True, on_progress=done.append)
    assert [found.quality() for found in comparisons] == [1.0, 1.0] and done == [1, 1]
    (thing,) = comparisons[0].things.truth
    assert (thing.segment.id, thing.segment.class_id) == (70000, 1)


@pytest.mark.parametrize("layout", ["results.json", "folder", "maxdl-predict", "PNGs beside the JSON"])
def test_layouts(files, layout):
    folder = files / "predicted"
    if layout == "maxdl-predict":
        (folder / "results").rename(folder / "panoptic")
        (folder / "results.json").rename(folder / "panoptic.json")
        (folder / "instances.json").write_text("[]")
    elif layout == "PNGs beside the JSON":
        for png in (folder / "results").iterdir():
            png.rename(folder / png.name)
        (folder / "results").rmdir()
    path = "predicted/results.json" if layout == "results.json" else "predicted"
    assert [found.quality() for found in compare_all(files, path)] == [1.0, 1.0]


def test_ids_that_are_names_of_files(files):
    """maxdl-predict takes names of files as ids if a name is not a number."""
    change_results(files, lambda rows: [row.update(image_id=f"{row['image_id']:012d}") for row in rows])
    assert [found.image_id for found in compare_all(files)] == [1, 2]


def test_images_without_prediction_are_named(files):
    change_results(files, lambda rows: rows.pop())
    with pytest.raises(UserError, match=r"results.json has no prediction of 1 of 2 images: 2 \(000000000002.jpg\)"):
        open_pairs(files)


def test_predictions_of_other_images_are_counted(files):
    change_results(files, lambda rows: rows.append({**rows[0], "image_id": 77}))
    assert open_pairs(files).warnings == [
        "1 predictions, such as 77, are skipped; the annotations do not have their images"
    ]
    assert len(compare_all(files)) == 2


FAULTS = [
    (lambda rows: rows[1].update(file_name="../x.png"), r"../x.png' leads out of the folder"),
    (lambda rows: rows[1].update(file_name="x.png"), r"results/x.png: there is no such file"),
    (lambda rows: rows[1].update(file_name="../x.png"), r"file name '../x.png' leads out of the folder .*results;"),
    (lambda rows: rows[1]["segments_info"].pop(), r"000000000002.png: segment 5 is in the PNG but not in the JSON"),
    (
        lambda rows: rows[0]["segments_info"].append({"id": 9, "category_id": 10}),
        r"segment 9 is in the JSON's segments_info but not in the PNG",
    ),
    (
        lambda rows: rows[0]["segments_info"].append({"id": 0, "category_id": 10}),
        "lists id 0, which stands for void",
    ),
    (
        lambda rows: rows[0]["segments_info"].append(rows[0]["segments_info"][0]),
        "lists a segment id twice",
    ),
    (lambda rows: rows[0]["segments_info"][0].update(category_id=3), "segment 70000 has category 3, which"),
    (
        lambda rows: rows[0]["segments_info"][0].pop("category_id"),
        "results.json: image 1: segment 70000 has no 'category_id'; expected an integer",
    ),
    (lambda rows: rows.append(rows[0]), "image 1 has more than one annotation"),
    (lambda rows: rows[1].update(image_id="1"), "image 1 has more than one annotation"),
    (lambda rows: rows[0].pop("segments_info"), "annotation of image 1 has no 'segments_info'; expected a list"),
]


@pytest.mark.parametrize(("change", "complaint"), FAULTS)
def test_faults_of_predictions(files, change, complaint):
    change_results(files, change)
    with pytest.raises(UserError, match=complaint):
        compare_all(files)


def test_a_png_of_another_size(files):
    png = files / "predicted" / "results" / "000000000001.png"
    Image.fromarray(id_to_color(np.full((4, 3), 5))).save(png)
    with pytest.raises(UserError, match=r"001.png: 4 x 3 .* but the JSON file states 2 x 3"):
        compare_all(files)


def test_mask_ap_needs_scores(files):
    change_results(files, lambda rows: rows[1]["segments_info"][0].pop("score"))
    assert len(compare_all(files)) == 2
    with pytest.raises(UserError, match=r"image 2: a predicted segment has no score, which mask AP needs"):
        compare_all(files, with_masks=True)


def test_missing_predictions(files):
    (files / "empty").mkdir()
    (files / "lonely.json").write_text("{}")
    for path, complaint in (
        ("nowhere", "no such file or folder"),
        ("empty", "0 JSON files in the folder"),
        ("lonely.json", "no folder .*lonely with the PNGs"),
    ):
        with pytest.raises(UserError, match=complaint):
            open_pairs(files, path)


def test_processes_change_nothing(files, monkeypatch):
    monkeypatch.setattr(coco_pairs, "_IMAGES_PER_PROCESS", 1)
    for one, two in zip(compare_all(files), compare_all(files, num_processes=2)):
        assert one.image_id == two.image_id
        np.testing.assert_array_equal(one.counts, two.counts)
