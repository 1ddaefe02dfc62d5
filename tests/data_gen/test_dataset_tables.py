"""configs/datasets/*.textproto agree with the data sets that they describe."""

from __future__ import annotations

import json

import pytest

from maxdl_tf import class_table
from maxdl_tf.data import coco_categories
from tests.helpers import REPOSITORY, shared_path

TABLES = REPOSITORY / "configs" / "datasets"


@pytest.mark.parametrize(
    "table, annotations",
    [
        ("coco_panoptic", "coco_sample/annotations/panoptic_train2017.json"),
        ("coco_panoptic", "coco_sample/annotations/panoptic_val2017.json"),
        ("nuclei", "nuclei/annotations/panoptic_val.json"),
    ],
)
def test_equals_the_category_list_of_the_data(table, annotations):
    path = shared_path("data", *annotations.split("/"))
    made = coco_categories.table_of_categories(json.loads(path.read_text())["categories"], path, table)
    assert class_table.load(str(TABLES / f"{table}.textproto")) == made


def test_coco_has_80_things_and_53_stuff_classes_numbered_as_in_the_reference():
    info = class_table.load(str(TABLES / "coco_panoptic.textproto"))
    assert info.thing_ids == tuple(range(1, 81))
    assert info.stuff_ids == tuple(range(81, 134))
    assert (info.by_id[1].name, info.by_id[80].source_id, info.by_id[133].source_id) == ("person", 90, 200)
    assert (info.label_divisor, info.ignore_label) == (256, 0)


@pytest.mark.parametrize("path", sorted(TABLES.glob("*.textproto")), ids=lambda path: path.stem)
def test_every_table_introduces_itself(path):
    assert path.read_text().startswith("# ")
    assert class_table.load(str(path)).name == path.stem
