"""maxdl-check-data coco_panoptic finds each fault planted in a copy of real data, and none in the original data."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maxdl_tf import panoptic_ids
from maxdl_tf.data_gen.checks import coco
from maxdl_tf.data_gen.checks.findings import KINDS, Finding, ImageReport, Split
from maxdl_tf.data_gen.checks.images import holes
from maxdl_tf.data_gen.checks.report import pictures
from tests.data_gen.planted_faults import FAULTS, Copy
from tests.files import png_files
from tests.helpers import in_process, shared_path

SPLITS = {"coco_sample": ("train2017", "val2017"), "nuclei": ("train", "val")}


def check(folder: Path, splits, report: Path, *flags) -> tuple[int, dict]:
    """Exit status and JSON of a check of some splits."""
    paths = []
    for split in splits:
        paths += ["--image_dir", folder / split]
        paths += ["--annotation_file", folder / "annotations" / f"panoptic_{split}.json"]
    status = in_process(coco, *paths, "--json", report, "--processes=1", *flags)
    return status, json.loads(report.read_text()) if status != 2 else {}


@pytest.mark.parametrize("name", SPLITS)
def test_nothing_is_wrong_in_good_data(name, tmp_path):
    status, report = check(shared_path("data", name), SPLITS[name], tmp_path / "report.json")
    assert status == 0
    assert [finding for finding in report["findings"] if finding["severity"] != "note"] == []
    assert {finding["kind"] for finding in report["findings"]} <= {"hole"}


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(shared_path("data", "coco_sample"), tmp_path / "data")
    return Copy(tmp_path / "data")


def _check_planted(copy, names, tmp_path) -> None:
    for name in names:
        FAULTS[name](copy)
    copy.json_path.write_text(json.dumps(copy.content))
    status, report = check(copy.folder, SPLITS["coco_sample"], tmp_path / "report.json")
    found = {
        (finding["kind"], finding["file"], finding["segment"])
        for finding in report["findings"]
        # The original data has holes.
        if finding["kind"] != "hole" or (finding["kind"], finding["file"], finding["segment"]) in copy.planted
    }
    assert found == copy.planted
    assert status == int(any(KINDS[kind].severity == "error" for kind, *_ in copy.planted))


def test_25_planted_faults_and_no_others_are_found(copy, tmp_path):
    _check_planted(copy, list(FAULTS)[:25], tmp_path)
    assert len({kind for kind, *_ in copy.planted}) == 25


def test_the_other_planted_faults_and_no_others_are_found(copy, tmp_path):
    _check_planted(copy, list(FAULTS)[25:], tmp_path)


class Drawn:
    """Two images of 6 x 8 pixels: a dog, two cats and grass."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.content = {"images": [], "annotations": []}
        self.content["categories"] = [
            {"id": 7, "name": "dog", "isthing": 1},
            {"id": 9, "name": "cat", "isthing": 1},
            {"id": 30, "name": "grass", "isthing": 0},
        ]
        (folder / "val").mkdir()
        (folder / "annotations" / "panoptic_val").mkdir(parents=True)
        for number in (1, 2):
            random = np.random.default_rng(number)
            ids = np.repeat(np.repeat([[11, 12, 13, 0], [14, 14, 14, 14]], 3, axis=0), 2, axis=1)
            Image.fromarray(random.integers(0, 256, [6, 8, 3], np.uint8)).save(folder / "val" / f"{number}.png")
            png = folder / "annotations" / "panoptic_val" / f"{number}.png"
            Image.fromarray(panoptic_ids.id_to_color(ids)).save(png)
            segments = [
                {"id": segment_id, "category_id": category, "area": area, "iscrowd": 0}
                for segment_id, category, area in ((11, 7, 6), (12, 9, 6), (13, 9, 6), (14, 30, 24))
            ]
            self.content["images"].append({"id": number, "file_name": f"{number}.png", "height": 6, "width": 8})
            self.content["annotations"].append(
                {"image_id": number, "file_name": f"{number}.png", "segments_info": segments}
            )

    def check(self, *flags) -> tuple[int, set]:
        """Exit status, and (kind, file) of the findings."""
        (self.folder / "annotations" / "panoptic_val.json").write_text(json.dumps(self.content))
        status, report = check(self.folder, ["val"], self.folder / "report.json", *flags)
        return status, {(finding["kind"], finding["file"]) for finding in report["findings"]}


@pytest.fixture
def drawn(tmp_path):
    return Drawn(tmp_path)


def test_good_drawings(drawn):
    assert drawn.check() == (0, set())
    assert drawn.check("--num_slots=4", "--label_divisor=3") == (0, set())


def test_more_segments_than_slots_are_a_warning(drawn):
    drawn.content["annotations"][0]["segments_info"][1]["iscrowd"] = 1  # Crowds need no slot.
    assert drawn.check("--num_slots=3") == (0, {("too-many-segments", "2.png")})


def test_more_instances_than_the_label_divisor_allows_are_an_error(drawn):
    assert drawn.check("--label_divisor=2") == (1, {("too-many-instances", "1.png"), ("too-many-instances", "2.png")})


@pytest.mark.parametrize(
    "change, found",
    [
        (lambda c: c["images"][0].pop("height"), {("image-incomplete", "1.png")}),
        (lambda c: c["annotations"][0].pop("segments_info"), {("annotation-incomplete", "1.png")}),
        (lambda c: c["annotations"][0].update(segments_info=None), {("annotation-incomplete", "1.png")}),
        (
            lambda c: c["annotations"][0].pop("image_id"),
            {("annotation-incomplete", "1.png"), ("image-not-annotated", "1.png")},
        ),
        (
            lambda c: c["annotations"][0]["segments_info"][0].pop("category_id"),
            {("segment-incomplete", "1.png"), ("segment-not-listed", "1.png")},
        ),
        (
            lambda c: c["images"][0].update(file_name="/dev/zero"),
            {("image-missing", "/dev/zero"), ("image-not-listed", "1.png")},
        ),
        (lambda c: c["categories"][0].pop("isthing"), {("category-incomplete", "panoptic_val.json")}),
        (
            lambda c: c["annotations"][1].update(file_name="1.png"),
            {("png-shared", "1.png"), ("png-not-listed", "2.png")},
        ),
    ],
)
def test_incomplete_entries_are_errors_and_the_rest_is_checked(drawn, change, found):
    change(drawn.content)
    assert drawn.check() == (1, found)


def test_images_that_differ_only_in_their_extension(drawn):
    (drawn.folder / "val" / "2.png").rename(drawn.folder / "val" / "1.jpg")
    drawn.content["images"][1]["file_name"] = "1.jpg"
    assert drawn.check() == (0, {("image-name-shared", "1.jpg")})


def test_few_ids_of_a_lossy_png_are_named(drawn):
    png = drawn.folder / "annotations" / "panoptic_val" / "1.png"
    noise = np.random.default_rng(0).integers(1, 2**24, [6, 8])
    Image.fromarray(panoptic_ids.id_to_color(noise)).save(png)
    (drawn.folder / "annotations" / "panoptic_val.json").write_text(json.dumps(drawn.content))
    _, report = check(drawn.folder, ["val"], drawn.folder / "report.json")
    named = [finding for finding in report["findings"] if finding["kind"] == "segment-not-listed"]
    assert len(named) == 20 and re.search("47 other ids: was the PNG scaled", named[0]["what"])


def test_statistics_of_the_summary(drawn):
    drawn.content["annotations"][0]["segments_info"][1]["iscrowd"] = 1
    drawn.content["categories"].append({"id": 31, "name": "sky", "isthing": 0})
    drawn.check()
    (split,) = json.loads((drawn.folder / "report.json").read_text())["splits"]
    assert split["images"] == 2 and split["crowds"] == 1 and split["absent"] == ["sky"]
    assert split["void"] == pytest.approx(12 / 96) and split["modes"] == {"RGB": 2}
    assert split["segments_per_image"]["least"] == 3 and split["segments_per_image"]["most"] == 4
    assert split["segments_per_image"]["histogram"] == {"0": 0, "1": 0, "2": 0, "3": 1, "4": 1}
    assert split["sizes"]["width"] == {"least": 8, "median": 8.0, "most": 8}
    rows = {row["name"]: (row["images"], row["segments"], row["crowds"], row["pixels"]) for row in split["classes"]}
    assert rows == {"grass": (2, 2, 0, 48), "cat": (2, 3, 1, 24), "dog": (2, 2, 0, 12), "sky": (0, 0, 0, 0)}


def test_the_terminal_shows_place_and_fix(drawn, capsys):
    drawn.content["annotations"][0]["segments_info"][0]["area"] = 5
    assert drawn.check()[0] == 1
    said = capsys.readouterr().out
    assert "error    area: 1\n    val: 1.png segment 11: 5 in the JSON file, 6 in the PNG\n    fix: recompute" in said
    assert said.endswith("\n2 images: 1 error, 0 warnings and 0 notes\n")


def test_the_page_shows_the_faulty_image_with_its_segment_in_red(drawn):
    drawn.content["annotations"][0]["segments_info"][0]["area"] = 5
    page = drawn.folder / "report.html"
    drawn.check("--html", str(page))
    text = page.read_text()
    assert text.count("<img") == 2 and "val: 1.png: area: 5 in the JSON file, 6 in the PNG" in text
    assert ">val: 2.png </figcaption>" in text or ">val: 2.png</figcaption>" in text  # A sample without errors.
    ((picture, _),) = pictures(
        [_split_with_fault()], lambda split, source: (np.zeros([4, 4, 3], np.uint8), np.array([[3, 3, 5, 5]] * 4)), 9
    )
    right = picture[:, -4:]  # Beside the image; the border between the segments is white.
    assert right[0, 0, 0] > 180 and right[0, 0, 1] == 0
    assert tuple(right[0, 1]) == (255, 255, 255) and right[0, 3, 0] < right[0, 3].max()


def _split_with_fault() -> Split:
    image = ImageReport("a", [Finding("area", "val", "a.png", "off", 3)], source="a")
    return Split("val", {}, images=[image, ImageReport("b", [Finding("hole", "val", "b.png", "one", 3)], source="b")])


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda drawn: (drawn / "annotations" / "panoptic_val.json").write_text("{"), "is not a JSON file"),
        (
            lambda drawn: (drawn / "annotations" / "panoptic_val.json").write_text("[]"),
            "holds a JSON list, not an object; expected a file like panoptic_",
        ),
        (lambda drawn: (drawn / "annotations" / "panoptic_val.json").write_text('{"images": []}'), "no list 'annot"),
        (lambda drawn: (drawn / "annotations" / "panoptic_val.json").unlink(), "there is no such file"),
        (lambda drawn: (drawn / "val").rename(drawn / "other"), "--image_dir=.*is not a folder"),
    ],
)
def test_unreadable_input_gives_one_line_and_status_2(drawn, capsys, change, words):
    drawn.check()
    capsys.readouterr()
    change(drawn.folder)
    assert check(drawn.folder, ["val"], drawn.folder / "report.json") == (2, {})
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and re.search(words, said[0])


def test_holes():
    ids = np.ones([7, 9], int)
    ids[:, 5:] = 2
    ids[2:4, 2] = 0  # In segment 1.
    ids[5, 1] = 0  # Another one.
    ids[1, 4:6] = 0  # Between the two.
    ids[6, 8] = 0  # At the border.
    assert holes(ids, 0) == [(1, "2 holes of void, 3 pixels")]
    assert holes(np.ones([3, 3], int), 0) == holes(np.zeros([3, 3], int), 0) == []


def test_images_and_pngs_in_one_folder(drawn):
    for folder in (drawn.folder / "val", drawn.folder / "annotations" / "panoptic_val"):
        for path in sorted(folder.iterdir()):
            path.rename(drawn.folder / (path.name if folder.name == "val" else f"ids_{path.name}"))
    for annotation in drawn.content["annotations"]:
        annotation["file_name"] = f"ids_{annotation['file_name']}"
    (drawn.folder / "annotations" / "panoptic_val.json").write_text(json.dumps(drawn.content))
    flags = [f"--image_dir={drawn.folder}", f"--panoptic_dir={drawn.folder}", "--json", drawn.folder / "report.json"]
    flags.append(f"--annotation_file={drawn.folder / 'annotations' / 'panoptic_val.json'}")
    assert in_process(coco, *flags, "--processes=1") == 0
    assert json.loads((drawn.folder / "report.json").read_text())["findings"] == []


def test_a_png_of_16_bits_is_not_read_as_void(drawn):
    path = drawn.folder / "annotations" / "panoptic_val" / "1.png"
    path.write_bytes(png_files.png(np.full([6, 8, 3], 11, np.uint16)))
    assert drawn.check() == (1, {("png-mode", "1.png")})
