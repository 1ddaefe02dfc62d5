"""Values of COCO fields: numbers may be text, anything else is refused with its place."""

from __future__ import annotations

import pytest

from maxdl_tf.data import coco_categories, coco_fields, coco_files
from maxdl_tf.data.coco_fields import CATEGORY, IMAGE, OBJECT, SEGMENT, read_all
from maxdl_tf.errors import UserError


@pytest.mark.parametrize("number", [7, 7.0, "7", " 7 ", "007", "+7"])
def test_integers_integral_floats_and_integer_text_are_numbers(number):
    (segment,) = read_all([{"id": number, "category_id": number, "area": number}], SEGMENT, "x.json")
    assert segment == {"id": 7, "category_id": 7, "area": 7}
    assert [type(segment[name]) for name in ("id", "category_id")] == [int, int]


@pytest.mark.parametrize(
    "number", [True, [7], {"a": 7}, "seven", "7.5", "\u0667", "1_0", "", 7.5, 2**31, -(2**31) - 1, 1e300, "9" * 5000]
)
def test_other_values_are_refused_with_file_entry_field_and_value(number):
    with pytest.raises(UserError) as error:
        read_all([{"id": 1, "category_id": 1}, {"id": 5, "category_id": number}], SEGMENT, "x.json: image 3")
    start = (
        f"x.json: image 3: segment 5 has category_id {coco_fields.shown(number)}; expected an integer from -2147483648"
    )
    assert str(error.value).startswith(start)


@pytest.mark.parametrize("value", [None, "absent"])
def test_required_fields(value):
    entry = {"id": 1, "file_name": "a.png", "height": 4, "width": value}
    if value == "absent":
        del entry["width"]
    with pytest.raises(UserError, match=r"^x: image 1 has (width null|no 'width'); expected an integer from 1 to"):
        read_all([entry], IMAGE, "x")
    with pytest.raises(UserError, match=r"^x: image number 1 has no 'id'; expected an integer or text"):
        read_all([{}], IMAGE, "x")
    with pytest.raises(UserError, match=r"^x: image number 2 is \[1\]; expected an object with id, file_name"):
        read_all([{**entry, "width": 1}, [1]], IMAGE, "x")


@pytest.mark.parametrize(
    "value, meant", [(0, False), ("0", False), (0.0, False), (False, False), (1, True), ("1", True)]
)
def test_flags(value, meant):
    assert read_all([{"id": 1, "category_id": 1, "iscrowd": value}], SEGMENT, "x")[0]["iscrowd"] is meant
    assert read_all([{"id": 1, "name": "a", "isthing": value}], CATEGORY, "x")[0]["isthing"] is meant


@pytest.mark.parametrize("value", [2, -1, "true", "no", 0.5, []])
def test_values_that_are_no_flag(value):
    with pytest.raises(UserError, match=r"segment 1 has iscrowd .*; expected 0 or 1"):
        read_all([{"id": 1, "category_id": 1, "iscrowd": value}], SEGMENT, "x")


@pytest.mark.parametrize("score", [float("nan"), float("inf"), "high", "0.5", True, []])
def test_scores_are_finite_numbers(score):
    with pytest.raises(UserError, match=r"segment 1 has score .*; expected a finite number"):
        read_all([{"id": 1, "category_id": 1, "score": score}], SEGMENT, "x")


@pytest.mark.parametrize(
    "name, meant",
    [("a.png", "a.png"), (r"images\a.png", "images/a.png"), ("\udcff.png", "\udcff.png")],
    ids=["plain", "Windows", "not UTF-8"],
)
def test_file_names(name, meant):
    assert read_all([{"id": 1, "file_name": name, "height": 1, "width": 1}], IMAGE, "x")[0]["file_name"] == meant


@pytest.mark.parametrize("name", ["", "a\0.png", "\ud800.png", 5, ["a.png"]])
def test_names_that_no_file_can_have(name):
    with pytest.raises(UserError, match=r"image 1 has file_name .*; expected the path of a file"):
        read_all([{"id": 1, "file_name": name, "height": 1, "width": 1}], IMAGE, "x")


@pytest.mark.parametrize("image_id, meant", [(5, 5), ("5", 5), (5.0, 5), ("0", 0), ("0005", "0005"), ("a", "a")])
def test_image_ids_are_numbers_or_names(image_id, meant):
    entry = {"id": 1, "image_id": image_id, "category_id": 0}
    assert read_all([entry], OBJECT, "x")[0]["image_id"] == meant


@pytest.mark.parametrize(
    "change, complaint",
    [
        (
            {"color": [999, 0, 0]},
            r"category 2 has color \[999, 0, 0\]; expected a list of three integers from 0 to 255",
        ),
        ({"color": [1, 2]}, "category 2 has color"),
        ({"color": "#ff0000"}, "category 2 has color '#ff0000'"),
        ({"name": ""}, "category 2 has name ''; expected text"),
        ({"name": "\ud800"}, r"category 2 has name '\\ud800'; expected text"),
        ({"id": 1}, "two categories have the id 1, 'sky' and 'dog'"),
        ({"id": "1"}, "two categories have the id 1, 'sky' and 'dog'"),
        ({"isthing": None}, "category 2 has no 'isthing'; add 1 for things and 0 for stuff"),
    ],
)
def test_categories(change, complaint):
    rows = [{"id": 1, "name": "sky", "isthing": "0"}, {"id": 2, "name": "dog", "isthing": 1, "color": ["1", 2.0, 3]}]
    info = coco_categories.table_of_categories(rows, "x", "two")
    assert info.stuff_ids == (1,) and info.by_id[2].color == (1, 2, 3)
    rows[1].update(change)
    with pytest.raises(UserError, match=complaint):
        coco_categories.table_of_categories(rows, "x", "two")


@pytest.mark.parametrize(
    "text, complaint",
    [
        ('{"images": [{"id": 1, "id": 2}]}', r"an object has the key 'id' twice: \{'id': 2\}; keep one of them"),
        ('{"images": [], "images": []}', "an object has the key 'images' twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"images": [1]}', "has no list 'images' of objects; expected a file like panoptic"),
        ('{"images": ', "is not a JSON file"),
        ("\xff", "is not a JSON file"),
    ],
)
def test_json_files(tmp_path, text, complaint):
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=f"x.json.* {complaint}"):
        coco_files.read_json(tmp_path / "x.json", ["images"], "panoptic_*.json")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_files_may_start_with_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "x.json").write_bytes('{"images": [{"id": "é"}]}'.encode(encoding))
    assert coco_files.read_json(tmp_path / "x.json", ["images"], "x") == {"images": [{"id": "é"}]}
