"""COCO files with a changed value are converted, checked and measured rightly, or refused with a UserError."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from maxdl_tf import panoptic_ids
from maxdl_tf.data import coco_categories, coco_files
from maxdl_tf.data_gen import coco_instances, coco_panoptic
from maxdl_tf.data_gen.checks import coco as coco_check
from maxdl_tf.errors import UserError
from maxdl_tf.evaluation import coco_pairs
from tests.helpers import in_process

IDS = np.repeat([[1, 2, 3, 0]], 4, axis=0)
VALUES = [
    None, True, 0, -1, 1.5, 2.0, "2", "text", "", [], [[]], {}, {"id": 1}, 2**31, 2**70, 1e400, float("nan"), "\ud800",
    "\udcff.png", "a\0b", "../../etc/passwd", "9" * 5000, [[[[[[1]]]]]], "\x1b[31m",
]  # fmt: skip


def panoptic_content():
    segments = [{"id": i, "category_id": 1 + i % 2, "iscrowd": 0, "area": 4, "score": 0.5} for i in (1, 2, 3)]
    return {
        "images": [{"id": 7, "file_name": "a.png", "height": 4, "width": 4}],
        "annotations": [{"image_id": 7, "file_name": "a.png", "segments_info": segments}],
        "categories": [
            {"id": 1, "name": "sky", "isthing": 0},
            {"id": 2, "name": "dog", "isthing": 1, "color": [1, 2, 3]},
        ],
    }


def instances_content():
    polygon, rle = [[0, 0, 2, 0, 2, 2]], {"size": [4, 4], "counts": [3, 5, 8]}
    things = [{"id": i, "image_id": 7, "category_id": 1, "iscrowd": 0} for i in (1, 2, 3)]
    for thing, segmentation in zip(things, (polygon, rle, {"size": [4, 4], "counts": "0533"})):
        thing["segmentation"] = segmentation
    return {**panoptic_content(), "annotations": things, "categories": [{"id": 1, "name": "dog"}]}


@pytest.fixture
def folder(tmp_path):
    for name in ("images", "panoptic", "predicted/panoptic"):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(panoptic_ids.id_to_color(IDS)).save(tmp_path / name / "a.png")
    (tmp_path / "truth.json").write_text(json.dumps(panoptic_content()))
    return tmp_path


def paths(value, path=()):
    """The path of each value in a JSON value, except for the whole."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from paths(inner, (*path, key))


def mutations(content):
    """(description, changed content): each value is replaced by each of VALUES, repeated if in a list, and removed."""
    for path in paths(content):
        for value in [*VALUES, "removed", "repeated"]:
            changed = copy.deepcopy(content)
            inner = changed
            for key in path[:-1]:
                inner = inner[key]
            if value == "removed":
                del inner[path[-1]]
            elif value != "repeated":
                inner[path[-1]] = copy.deepcopy(value)
            elif isinstance(inner, list):
                inner.append(copy.deepcopy(inner[path[-1]]))
            yield f"{path} {value!r:.40}", changed


def convert_panoptic(folder):
    images, categories = coco_files.load_annotations(folder / "x.json")
    info = coco_categories.table_of_categories(categories, folder / "x.json", "x")
    annotator = coco_panoptic.Annotator(str(folder / "images"), str(folder / "panoptic"), "x.json", info)
    for image in images:
        annotated = annotator.annotate(image)
        assert annotated.label.shape == (4, 4) and annotated.encode("png")
        classes = {(row.id, row.is_thing) for row in info.classes}
        assert {(label // 256, label % 256 > 0) for label in np.unique(annotated.label)} <= {(0, False), *classes}


def convert_instances(folder):
    images, categories = coco_files.load_instances(folder / "x.json")
    table = coco_instances.build_table(categories, {}, None, folder / "x.json")
    info = coco_categories.table_of_categories(table.categories, folder / "x.json", "x")
    annotator = coco_instances.Annotator(str(folder / "images"), "x.json", info)
    for image in images:
        annotated = annotator.annotate(image)
        assert annotated.label.shape == (4, 4) and annotated.encode("png")


def measure(folder):
    (folder / "predicted" / "panoptic.json").write_bytes((folder / "x.json").read_bytes())
    files = coco_pairs.find_predictions(str(folder / "predicted"))
    pairs = coco_pairs.open_pairs(files, str(folder / "truth.json"), str(folder / "panoptic"))
    for comparison in coco_pairs.compare_pairs(pairs, with_masks=True):
        assert 0 <= comparison.quality() <= 1
    coco_pairs.submit_files(files, str(folder / "submission"), "x")
    shutil.rmtree(folder / "submission")


@pytest.mark.parametrize(
    "content, read",
    [(panoptic_content(), convert_panoptic), (instances_content(), convert_instances), (panoptic_content(), measure)],
    ids=["coco_panoptic", "coco_instances", "predictions"],
)
def test_only_user_errors_or_results(folder, content, read):
    (folder / "x.json").write_text(json.dumps(content))
    read(folder)
    refused = total = 0
    for description, changed in mutations(content):
        (folder / "x.json").write_text(json.dumps(changed))
        total += 1
        try:
            read(folder)
        except UserError:
            refused += 1
        except Exception as error:
            raise AssertionError(description) from error
    assert total > 500 and 0.5 * total < refused < 0.95 * total


def test_checks_report_all_faults(folder):
    flags = ["--image_dir", folder / "images", "--annotation_file", folder / "x.json", "--processes=1"]
    flags += ["--panoptic_dir", folder / "panoptic"]
    statuses = []
    for description, changed in mutations(panoptic_content()):
        (folder / "x.json").write_text(json.dumps(changed))
        try:
            statuses.append(in_process(coco_check, *flags))
        except Exception as error:
            raise AssertionError(description) from error
    assert set(statuses) == {0, 1, 2} and statuses.count(1) > statuses.count(2)
