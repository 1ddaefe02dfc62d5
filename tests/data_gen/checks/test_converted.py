"""maxdl-check-data reads label PNGs and instances as their converters do."""

from __future__ import annotations

import json

import numpy as np
import pytest

from maxdl_tf.class_table import FILE_NAME
from maxdl_tf.data_gen.checks import coco, coco_instances, label_pngs
from tests.data_gen.conversion import run_convert, save_image, save_map
from tests.helpers import in_process

LABEL = np.repeat(np.repeat([[0, 257, 258], [768, 768, 513]], 4, axis=0), 4, axis=1)


@pytest.fixture
def fruit(tmp_path):
    """Three images and label PNGs."""
    for name in "abc":
        save_image(tmp_path / "images" / f"{name}.png", *LABEL.shape, seed=ord(name))
        save_map(tmp_path / "labels" / f"{name}.png", LABEL, np.uint16)
    return tmp_path


def _flags(folder, *more):
    return [f"--image_dir={folder / 'images'}", f"--label_dir={folder / 'labels'}", "--processes=1", *more]


def _check(module, flags, folder) -> tuple[int, dict, set]:
    """Exit status, summary, and (kind, file name) of the findings."""
    report = folder / "report.json"
    status = in_process(module, *flags, "--json", report, "--html", folder / "page.html")
    if status == 2:
        return status, {}, set()
    content = json.loads(report.read_text())
    found = {(entry["kind"], entry["file"].rpartition("/")[2]) for entry in content["findings"]}
    return status, content["splits"][0], found


def test_label_pngs_have_the_segments_of_the_converter(fruit, capsys):
    status, summary, found = _check(label_pngs, _flags(fruit), fruit)
    assert (status, found, summary["images"], summary["split"]) == (0, set(), 3, "labels")
    assert "3 classes: class_1 (thing), class_2 (thing), class_3 (stuff)" in capsys.readouterr().out
    rows = {row["name"]: (row["is_thing"], row["segments"], row["pixels"]) for row in summary["classes"]}
    assert rows == {"class_1": (True, 6, 96), "class_2": (True, 3, 48), "class_3": (False, 3, 96)}
    assert summary["void"] == pytest.approx(1 / 6)
    assert (fruit / "page.html").read_text().count("<img") == 3


def test_all_that_the_converter_refuses_is_found(fruit):
    save_map(fruit / "labels" / "a.png", [[257]], np.uint16)
    (fruit / "images" / "b.png").write_bytes(b"text")
    (fruit / "labels" / "c.png").unlink()
    save_image(fruit / "images" / "d.png", *LABEL.shape)
    save_map(fruit / "labels" / "d.png", LABEL, np.uint16)
    status, summary, found = _check(label_pngs, _flags(fruit), fruit)
    assert found == {("not-convertible", "a.png"), ("image-undecodable", "b.png"), ("not-convertible", "c.png")}
    assert status == 1 and {row["name"]: row["images"] for row in summary["classes"]}["class_1"] == 1


def test_a_later_split_is_checked_with_the_class_table_of_the_first(fruit):
    assert run_convert("label_pngs", *_flags(fruit), f"--output_dir={fruit / 'out'}") == 0
    for name in "abc":
        save_map(fruit / "labels" / f"{name}.png", np.where(LABEL == 513, 1024, LABEL), np.uint16)
    assert _check(label_pngs, _flags(fruit), fruit)[0] == 0
    table = f"--dataset_info={fruit / 'out' / FILE_NAME}"
    status, _, found = _check(label_pngs, _flags(fruit, table), fruit)
    assert status == 1 and found == {("not-convertible", f"{name}.png") for name in "abc"}


def test_flags_of_the_output_are_unknown(fruit, capsys):
    for flag in ("output_dir", "dataset_name", "overwrite"):
        assert in_process(label_pngs, *_flags(fruit, f"--{flag}=x")) == 2
        assert f"Unknown command line flag '{flag}'" in capsys.readouterr().err


def test_instances_have_the_segments_of_the_converter(tmp_path):
    for name in "ab":
        save_image(tmp_path / "images" / f"{name}.png", 8, 10, seed=ord(name))
    content = {
        "images": [{"id": n, "file_name": f"{'ab'[n]}.png", "height": 8, "width": 10} for n in (0, 1)],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 1, "segmentation": [[0, 0, 8, 0, 8, 8, 0, 8]]},
            {"id": 2, "image_id": 0, "category_id": 1, "segmentation": [[2, 2, 4, 2, 4, 4, 2, 4]]},
            {"id": 3, "image_id": 1, "category_id": 1, "segmentation": [[2, 2, 4, 2]]},
        ],
        "categories": [{"id": 0, "name": "ground"}, {"id": 1, "name": "cup"}],
    }
    (tmp_path / "instances_val.json").write_text(json.dumps(content))
    flags = [f"--image_dir={tmp_path / 'images'}", f"--annotation_file={tmp_path / 'instances_val.json'}"]
    flags += ["--processes=1", "--background=ground"]
    status, summary, found = _check(coco_instances, flags, tmp_path)
    assert status == 1 and found == {("not-convertible", "b.png")}
    rows = {row["name"]: (row["is_thing"], row["segments"], row["pixels"]) for row in summary["classes"]}
    assert rows == {"cup": (True, 2, 64), "ground": (False, 1, 16)}  # The smaller cup lies on the larger one.
    assert (tmp_path / "page.html").read_text().count("<img") == 2  # A sample, and the faulty image alone.
    assert summary["split"] == "instances_val"


def test_instances_are_not_read_as_panoptic_segments(tmp_path, capsys):
    content = {"images": [], "annotations": [{"id": 1, "image_id": 1, "segmentation": []}], "categories": []}
    (tmp_path / "instances_val.json").write_text(json.dumps(content))
    flags = [f"--image_dir={tmp_path}", f"--annotation_file={tmp_path / 'instances_val.json'}"]
    assert in_process(coco, *flags, f"--panoptic_dir={tmp_path}") == 2
    assert "instances_val.json holds objects (polygons or RLEs)" in capsys.readouterr().err
    assert in_process(coco, *flags) == 2  # Without the folder of PNGs, which nobody has for instances.
    assert "run maxdl-check-data coco_instances" in capsys.readouterr().err
