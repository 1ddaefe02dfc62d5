"""maxdl-check-data finds each fault that is planted in a copy of real data, and nothing in the data as they are."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maxdl_tf import panoptic_ids
from maxdl_tf.data_gen import check_coco_command, check_pictures, check_report
from maxdl_tf.data_gen.check_findings import KINDS, Finding, ImageReport, Split
from tests.helpers import shared_path
from tests.test_backbone_pretraining import in_process

SPLITS = {"coco_sample": ("train2017", "val2017"), "nuclei": ("train", "val")}


def check(folder: Path, splits, report: Path, *flags) -> tuple[int, dict]:
    """Exit status and JSON of a check of some splits."""
    paths = []
    for split in splits:
        paths += ["--image_dir", folder / split]
        paths += ["--annotation_file", folder / "annotations" / f"panoptic_{split}.json"]
    status = in_process(check_coco_command, *paths, "--json", report, "--processes=1", *flags)
    return status, json.loads(report.read_text()) if status != 2 else {}


@pytest.mark.parametrize("name", SPLITS)
def test_nothing_is_wrong_in_good_data(name, tmp_path):
    status, report = check(shared_path("data", name), SPLITS[name], tmp_path / "report.json")
    assert status == 0
    assert [finding for finding in report["findings"] if finding["severity"] != "note"] == []
    assert {finding["kind"] for finding in report["findings"]} <= {"hole"}


class Copy:
    """A copy of coco_sample to plant faults in; `planted` has the kind, file and segment of each."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.images, self.pngs = folder / "val2017", folder / "annotations" / "panoptic_val2017"
        self.json_path = folder / "annotations" / "panoptic_val2017.json"
        self.content = json.loads(self.json_path.read_text())
        self.annotation_of = {entry["image_id"]: entry for entry in self.content["annotations"]}
        self.is_thing = {entry["id"]: entry["isthing"] for entry in self.content["categories"]}
        self.unused = list(self.content["images"])
        self.planted: set[tuple[str, str, int | None]] = set()

    def take(self, suits=lambda image, segments: True) -> tuple[dict, dict]:
        """An image that has no fault yet, and its annotation."""
        for image in self.unused:
            annotation = self.annotation_of[image["id"]]
            if suits(image, annotation["segments_info"]):
                self.unused.remove(image)
                return image, annotation
        raise AssertionError("no image is left that suits")

    def plant(self, kind: str, file: str, segment: int | None = None) -> None:
        self.planted.add((kind, file, segment))

    def ids(self, annotation: dict) -> np.ndarray:
        with Image.open(self.pngs / annotation["file_name"]) as png:
            return panoptic_ids.color_to_id(np.asarray(png))

    def draw(self, annotation: dict, ids: np.ndarray) -> None:
        Image.fromarray(panoptic_ids.id_to_color(ids)).save(self.pngs / annotation["file_name"])

    def recompute(self, annotation: dict, ids: np.ndarray) -> None:
        """Draws the ids, and makes areas and boxes right."""
        self.draw(annotation, ids)
        for segment in annotation["segments_info"]:
            rows, columns = np.nonzero(ids == segment["id"])
            segment["area"] = len(rows)
            left, top = int(columns.min()), int(rows.min())
            segment["bbox"] = [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1]

    def image(self, entry: dict) -> Image.Image:
        with Image.open(self.images / entry["file_name"]) as image:
            image.load()
            return image.copy()


def image_file(kind, change):
    """A fault of an image's file, made by `change(copy, image entry, path)`."""

    def plant(copy):
        entry, _ = copy.take()
        change(copy, entry, copy.images / entry["file_name"])
        copy.plant(kind, entry["file_name"])

    return plant


def png_file(kind, change):
    """A fault of a PNG, made by `change(copy, annotation, path)`."""

    def plant(copy):
        _, annotation = copy.take()
        change(copy, annotation, copy.pngs / annotation["file_name"])
        copy.plant(kind, annotation["file_name"])

    return plant


def segment(kind, change, suits=lambda segment, is_thing: True):
    """A fault of the first segment that suits, made by `change(copy, annotation, segment)`."""

    def plant(copy):
        def has_one(image, segments):
            known_void = sum(s["area"] for s in segments) < image["height"] * image["width"] - 10
            return known_void and any(suits(s, copy.is_thing[s["category_id"]]) for s in segments)

        _, annotation = copy.take(has_one)
        chosen = next(s for s in annotation["segments_info"] if suits(s, copy.is_thing[s["category_id"]]))
        segment_id = change(copy, annotation, chosen)
        copy.plant(kind, annotation["file_name"], chosen["id"] if segment_id is None else segment_id)

    return plant


def _truncate(copy, entry, path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _rotate_exif(copy, entry, path):
    image, exif = copy.image(entry), Image.Exif()
    exif[0x0112] = 6
    image.save(path, "JPEG", exif=exif, quality=95)


def _widen_png(copy, annotation, path):
    copy.draw(annotation, np.pad(copy.ids(annotation), [[0, 1], [0, 0]]))


def _erase(copy, annotation, chosen):
    ids = copy.ids(annotation)
    ids[ids == chosen["id"]] = 0
    copy.draw(annotation, ids)


def _split_in_two(copy, annotation, chosen):
    ids, new_id = copy.ids(annotation), 4242
    middle = int(np.median(np.nonzero(ids == chosen["id"])[1]))
    right = (ids == chosen["id"]) & (np.arange(ids.shape[1]) > middle)
    ids[right] = new_id
    annotation["segments_info"].append({**chosen, "id": new_id})
    copy.recompute(annotation, ids)
    return new_id


def _interior(ids: np.ndarray, segment_id: int) -> tuple[int, int]:
    """A pixel all of whose neighbors are of its segment."""
    mask = ids == segment_id
    inner = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return tuple(np.argwhere(inner)[0] + 1)


def _hole(copy, annotation, chosen):
    ids = copy.ids(annotation)
    ids[_interior(ids, chosen["id"])] = 0
    copy.recompute(annotation, ids)


def _speck(copy, annotation, chosen):
    ids = copy.ids(annotation)
    ids[_interior(ids, chosen["id"])] = 4243
    annotation["segments_info"].append({**chosen, "id": 4243})
    copy.recompute(annotation, ids)
    return 4243


def _add(**changes):
    """Lists a segment once more, with changes."""

    def change(copy, annotation, chosen):
        annotation["segments_info"].append({**chosen, **changes})
        return changes.get("id")

    return change


def _set(**changes):
    return lambda copy, annotation, chosen: chosen.update(changes)


def _all_void(copy, annotation, path):
    annotation["segments_info"].clear()
    copy.draw(annotation, np.zeros_like(copy.ids(annotation)))


def _overlap(copy):
    image, annotation = copy.take()
    for chosen in annotation["segments_info"][:2]:
        chosen["area"] = image["height"] * image["width"] - 1
        copy.plant("area", annotation["file_name"], chosen["id"])
    copy.plant("overlap", annotation["file_name"])


def _leak(copy):
    sizes = {}
    for name in sorted((copy.folder / "train2017").iterdir()):
        with Image.open(name) as image:
            sizes.setdefault((image.height, image.width), name)
    entry, _ = copy.take(lambda image, segments: (image["height"], image["width"]) in sizes)
    with Image.open(sizes[entry["height"], entry["width"]]) as image:
        image.save(copy.images / entry["file_name"], "PNG")  # Other bytes of the same pixels.
    copy.plant("leak", entry["file_name"])


def _repeated_image(copy):
    def size(image):
        return image["height"], image["width"]

    sizes = [size(image) for image in copy.unused]
    entry, _ = copy.take(lambda image, segments: sizes.count(size(image)) > 1)
    other, _ = copy.take(lambda image, segments: size(image) == size(entry))
    shutil.copy(copy.images / entry["file_name"], copy.images / other["file_name"])
    copy.plant("image-repeated", other["file_name"])


def _not_annotated(copy):
    entry, annotation = copy.take()
    copy.content["annotations"].remove(annotation)
    copy.plant("image-not-annotated", entry["file_name"])
    copy.plant("png-not-listed", annotation["file_name"])


def _without_image(copy):
    entry, annotation = copy.take()
    copy.content["images"].remove(entry)
    copy.plant("annotation-without-image", annotation["file_name"])
    copy.plant("image-not-listed", entry["file_name"])


def _annotated_twice(copy):
    _, annotation = copy.take()
    copy.content["annotations"].append(annotation)
    copy.plant("annotation-repeated", annotation["file_name"])


def _listed_twice(copy):
    entry, _ = copy.take()
    copy.content["images"].append({**entry, "id": 987654321})
    copy.plant("image-listed-twice", entry["file_name"])
    copy.plant("image-not-annotated", entry["file_name"])
    copy.plant("image-repeated", entry["file_name"])


def _id_repeated(copy):
    entry, _ = copy.take()
    copy.content["images"].append({**entry, "file_name": "other.jpg"})
    copy.plant("image-id-repeated", "other.jpg")


def _categories(copy):
    table = copy.content["categories"]
    table.append({**table[3], "name": "again"})
    table[0] = {**table[0], "name": table[1]["name"]}
    copy.plant("category-repeated", copy.json_path.name)
    copy.plant("category-name-repeated", copy.json_path.name)
    copy.plant("categories-differ", copy.json_path.name)


FAULTS = {
    "image is missing": image_file("image-missing", lambda copy, entry, path: path.unlink()),
    "image is truncated": image_file("image-undecodable", _truncate),
    "image is a GIF": image_file("image-format", lambda copy, entry, path: copy.image(entry).save(path, "GIF")),
    "image is rotated by EXIF": image_file("image-rotated", _rotate_exif),
    "image is CMYK": image_file("image-cmyk", lambda c, entry, path: c.image(entry).convert("CMYK").save(path, "JPEG")),
    "image is gray": image_file("image-gray", lambda c, entry, path: c.image(entry).convert("L").save(path, "JPEG")),
    "image has another size": image_file(
        "image-size", lambda copy, entry, path: copy.image(entry).crop((0, 0, 90, 80)).save(path, "JPEG")
    ),
    "PNG is missing": png_file("png-missing", lambda copy, annotation, path: path.unlink()),
    "PNG is truncated": png_file("png-undecodable", _truncate),
    "PNG is gray": png_file(
        "png-mode", lambda c, annotation, path: Image.fromarray(c.ids(annotation).astype(np.uint8)).save(path)
    ),
    "PNG has another size": png_file("png-size", _widen_png),
    "all is void": png_file("all-void", _all_void),
    "segment is not listed": segment("segment-not-listed", lambda c, a, chosen: a["segments_info"].remove(chosen)),
    "segment is not drawn": segment("segment-not-drawn", _erase),
    "segment is listed twice": segment("segment-repeated", _add()),
    "segment has id 0": segment("segment-id", _add(id=0)),
    "category is unknown": segment("category-unknown", _set(category_id=999)),
    "area is off by one": segment("area", lambda c, a, chosen: chosen.update(area=chosen["area"] + 1)),
    "box is off": segment("box", lambda c, a, chosen: chosen["bbox"].__setitem__(2, chosen["bbox"][2] + 1)),
    "stuff is split": segment("stuff-split", _split_in_two, lambda s, is_thing: not is_thing and s["area"] > 500),
    "crowd of stuff": segment("crowd-of-stuff", _set(iscrowd=1), lambda s, is_thing: not is_thing),
    "crowd value": segment("crowd-value", _set(iscrowd=2), lambda s, is_thing: is_thing and not s["iscrowd"]),
    "hole": segment("hole", _hole, lambda s, is_thing: s["area"] > 2000),
    "speck": segment("segment-tiny", _speck, lambda s, is_thing: is_thing and s["area"] > 2000),
    "areas overlap": _overlap,
    "leak": _leak,
    "image is repeated": _repeated_image,
    "image is not annotated": _not_annotated,
    "annotation has no image": _without_image,
    "image is annotated twice": _annotated_twice,
    "image is listed twice": _listed_twice,
    "id of two images": _id_repeated,
    "categories": _categories,
    "image is no image": image_file("image-undecodable", lambda copy, entry, path: path.write_text("text")),
    "segment has too large an id": segment("segment-id", _add(id=2**24)),
}


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
        # Holes are in the data as they are.
        if finding["kind"] != "hole" or (finding["kind"], finding["file"], finding["segment"]) in copy.planted
    }
    assert found == copy.planted
    assert status == int(any(KINDS[kind].severity == "error" for kind, *_ in copy.planted))


def test_25_planted_faults_are_found_by_name_and_nothing_else(copy, tmp_path):
    _check_planted(copy, list(FAULTS)[:25], tmp_path)
    assert len({kind for kind, *_ in copy.planted}) == 25


def test_the_other_faults_are_found_by_name_and_nothing_else(copy, tmp_path):
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
        """Exit status, and (kind, file) of what was found."""
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
    drawn.content["annotations"][0]["segments_info"][1]["iscrowd"] = 1  # Takes no slot.
    assert drawn.check("--num_slots=3") == (0, {("too-many-segments", "2.png")})


def test_more_instances_than_the_label_divisor_has_room_for_are_an_error(drawn):
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
        (lambda c: c["categories"][0].pop("isthing"), {("category-incomplete", "panoptic_val.json")}),
        (
            lambda c: c["annotations"][1].update(file_name="1.png"),
            {("png-shared", "1.png"), ("png-not-listed", "2.png")},
        ),
    ],
)
def test_what_lacks_something_is_an_error_and_the_rest_is_checked(drawn, change, found):
    change(drawn.content)
    assert drawn.check() == (1, found)


def test_images_that_differ_in_their_extension_only(drawn):
    (drawn.folder / "val" / "2.png").rename(drawn.folder / "val" / "1.jpg")
    drawn.content["images"][1]["file_name"] = "1.jpg"
    assert drawn.check() == (0, {("image-name-shared", "1.jpg")})


def test_a_png_stored_with_loss_has_few_of_its_ids_named(drawn):
    png = drawn.folder / "annotations" / "panoptic_val" / "1.png"
    noise = np.random.default_rng(0).integers(1, 2**24, [6, 8])
    Image.fromarray(panoptic_ids.id_to_color(noise)).save(png)
    (drawn.folder / "annotations" / "panoptic_val.json").write_text(json.dumps(drawn.content))
    _, report = check(drawn.folder, ["val"], drawn.folder / "report.json")
    named = [finding for finding in report["findings"] if finding["kind"] == "segment-not-listed"]
    assert len(named) == 20 and re.search("47 other ids: was the PNG scaled", named[0]["what"])


def test_figures_of_the_summary(drawn):
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


def test_the_terminal_says_where_and_what_to_do(drawn, capsys):
    drawn.content["annotations"][0]["segments_info"][0]["area"] = 5
    assert drawn.check()[0] == 1
    said = capsys.readouterr().out
    assert "error    area: 1\n    val: 1.png segment 11: 5 in the JSON, 6 in the PNG\n    to do: recompute" in said
    assert said.endswith("\n2 images: 1 error, 0 warnings and 0 notes\n")


def test_the_page_shows_the_faulty_image_with_its_segment_in_red(drawn):
    drawn.content["annotations"][0]["segments_info"][0]["area"] = 5
    page = drawn.folder / "report.html"
    drawn.check("--html", str(page))
    text = page.read_text()
    assert text.count("<img") == 1 and "val: 1.png: area: 5 in the JSON, 6 in the PNG" in text
    ((picture, _),) = check_report.pictures(
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
        (lambda drawn: (drawn / "annotations" / "panoptic_val.json").write_text("[]"), "wanted an object"),
        (lambda drawn: (drawn / "annotations" / "panoptic_val.json").write_text('{"images": []}'), "no list 'annot"),
        (lambda drawn: (drawn / "annotations" / "panoptic_val.json").unlink(), "there is no such file"),
        (lambda drawn: (drawn / "val").rename(drawn / "other"), "--image_dir=.*is not a folder"),
    ],
)
def test_what_cannot_be_checked_is_one_line_and_status_2(drawn, capsys, change, words):
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
    assert check_pictures.holes(ids, 0) == [(1, "2 holes of void inside of it, 3 pixels")]
    assert check_pictures.holes(np.ones([3, 3], int), 0) == check_pictures.holes(np.zeros([3, 3], int), 0) == []
