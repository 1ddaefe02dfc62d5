"""configs/datasets/*.textproto agree with the data sets that they describe."""

from __future__ import annotations

import json

import pytest

from maxdl_tf import class_table
from maxdl_tf.data import coco_categories
from maxdl_tf.data_gen import ade20k, class_names
from maxdl_tf.data_gen.class_names import ClassName
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


def test_ade20k_has_100_things_and_50_stuff_classes_as_the_converter_makes_them():
    info = class_table.load(str(TABLES / "ade20k.textproto"))
    assert (len(info.thing_ids), len(info.stuff_ids)) == (100, 50)
    is_thing = {row.id: row.is_thing for row in info.classes}
    names = {row.id: ClassName(row.name) for row in info.classes}
    assert info == class_names.named_table(is_thing, names, "ade20k", ade20k.LABEL_DIVISOR, "ADEChallengeData2016")
    # Both ends of the lists of the two challenges: things keep the order of the classes.
    rows = [info.by_id[class_id].name for class_id in info.thing_ids]
    assert (rows[0], rows[3], rows[84], rows[99]) == ("bed", "person", "screen", "flag")
    assert (info.by_id[1].name, info.by_id[150].name, info.by_id[3].is_thing) == ("wall", "flag", False)


@pytest.mark.parametrize("path", sorted(TABLES.glob("*.textproto")), ids=lambda path: path.stem)
def test_every_table_introduces_itself(path):
    assert path.read_text().startswith("# ")
    assert class_table.load(str(path)).name == path.stem
