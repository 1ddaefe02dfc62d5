"""COCO instances: polygons and RLEs become label maps, overlaps as asked for, stuff from wherever it comes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tests.data_gen.conversion import complaint, read_converted, run_convert, save_image, save_map

HEIGHT, WIDTH = 6, 8
CATEGORIES = [{"id": 3, "name": "dog", "supercategory": "animal"}, {"id": 5, "name": "cup", "supercategory": "kitchen"}]


def _box_mask(top, left, bottom, right):
    mask = np.zeros([HEIGHT, WIDTH], np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def _polygon(top, left, bottom, right):
    return [[left, top, right, top, right, bottom, left, bottom]]


def _rle(mask):
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def _uncompressed_rle(mask):
    """Alternating runs of 0 and 1, column by column, starting with 0."""
    runs, value = [0], 0
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return {"size": list(mask.shape), "counts": runs}


LARGE, SMALL, LATER = (0, 0, 4, 6), (2, 4, 4, 7), (3, 0, 6, 5)  # 24, 6 and 15 pixels.


class Dataset:
    def __init__(self, folder):
        self.folder = folder
        self.content = {
            "images": [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
            "annotations": [
                self.thing(11, 3, _polygon(*LARGE)),
                self.thing(12, 5, _rle(_box_mask(*SMALL))),
                self.thing(13, 3, _uncompressed_rle(_box_mask(*LATER))),
            ],
            "categories": CATEGORIES,
        }
        self.picture = save_image(folder / "images" / "a.png", HEIGHT, WIDTH)

    @staticmethod
    def thing(number, category, segmentation, crowd=0, image=1):
        return {
            "id": number, "image_id": image, "category_id": category, "iscrowd": crowd,
            "segmentation": segmentation, "bbox": [0, 0, 1, 1], "area": 1.0,
        }  # fmt: skip

    def convert(self, *flags):
        (self.folder / "instances.json").write_text(json.dumps(self.content))
        return run_convert(
            "coco_instances",
            f"--image_dir={self.folder / 'images'}",
            f"--annotation_file={self.folder / 'instances.json'}",
            f"--output_dir={self.folder / 'out'}",
            *flags,
        )

    def label(self, *flags, folder="out"):
        assert self.convert(*flags) == 0
        return read_converted(self.folder / folder).labels["a"]


@pytest.fixture
def dataset(tmp_path):
    return Dataset(tmp_path)


def _painted(*boxes_and_labels):
    """The boxes painted one over the other."""
    label = np.zeros([HEIGHT, WIDTH], np.int32)
    for box, value in boxes_and_labels:
        label[_box_mask(*box) > 0] = value
    return label


DOG_1, DOG_2, CUP = 257, 258, 513
OVERLAPS = {
    "smaller_on_top": _painted((LARGE, DOG_1), (LATER, DOG_2), (SMALL, CUP)),
    "larger_on_top": _painted((SMALL, CUP), (LATER, DOG_2), (LARGE, DOG_1)),
    "later_on_top": _painted((LARGE, DOG_1), (SMALL, CUP), (LATER, DOG_2)),
}


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_overlap_selects_the_object(dataset, overlap):
    np.testing.assert_array_equal(dataset.label(f"--overlap={overlap}"), OVERLAPS[overlap])


def test_overlaps_may_be_void(dataset):
    count = sum(_box_mask(*box) for box in (LARGE, SMALL, LATER))
    expected = np.where(count > 1, 0, OVERLAPS["later_on_top"])
    np.testing.assert_array_equal(dataset.label("--overlap=void"), expected)


def test_smaller_on_top_is_the_default_and_the_table_is_the_category_list(dataset):
    np.testing.assert_array_equal(dataset.label(), OVERLAPS["smaller_on_top"])
    converted = read_converted(dataset.folder / "out")
    assert converted.semantics() == [("dog", True, 3), ("cup", True, 5)]
    np.testing.assert_array_equal(converted.images["a"], dataset.picture)


def test_hidden_objects_get_no_number(dataset):
    dataset.content["annotations"] = [
        dataset.thing(1, 3, _polygon(0, 0, 2, 2)),
        dataset.thing(2, 3, _polygon(0, 0, 2, 2)),
        dataset.thing(3, 3, _polygon(3, 0, 5, 2)),
    ]
    np.testing.assert_array_equal(dataset.label(), _painted(((0, 0, 2, 2), 257), ((3, 0, 5, 2), 258)))


@pytest.mark.parametrize("fault", ["all are crowds", "coordinates from 0 to 1", "none"])
def test_a_split_without_objects_is_warned_of(dataset, capsys, fault):
    """CVAT writes masks as crowds, and some tools write coordinates as parts of the size."""
    for thing in dataset.content["annotations"] if fault != "none" else ():
        if fault == "all are crowds":
            thing["iscrowd"] = 1
        else:
            thing["segmentation"] = [[0.1, 0.1, 0.4, 0.1, 0.4, 0.4]]
    dataset.label("--background=ground")
    warnings = capsys.readouterr().out.count("warning: no image has an instance of a thing class")
    assert warnings == (fault != "none")


@pytest.mark.parametrize("flag, crowd", [("--treat_crowd_as_ignore", 0), ("--notreat_crowd_as_ignore", 256)])
def test_crowds_lie_below_other_objects(dataset, flag, crowd):
    dataset.content["annotations"][1]["iscrowd"] = 1
    dataset.content["annotations"][1]["category_id"] = 3
    expected = _painted((SMALL, crowd), (LARGE, DOG_1), (LATER, DOG_2))
    np.testing.assert_array_equal(dataset.label(flag), expected)


def test_categories_from_0_and_numbers_as_text(dataset):
    """Both splits of such an export are converted, with the labels that plain numbers give."""
    plain = dataset.label(f"--output_dir={dataset.folder / 'plain'}", folder="plain")
    dataset.content["categories"] = [{"id": "0", "name": "dog"}, {"id": 1.0, "name": "cup", "isthing": "1"}]
    dataset.content["images"][0].update(height=str(HEIGHT), width=float(WIDTH), id="1", file_name="images\\a.png")
    for thing in dataset.content["annotations"]:
        thing.update(category_id={3: "0", 5: "1"}[thing["category_id"]], iscrowd="0")
    for split in ("train", "val"):
        assert dataset.convert(f"--split={split}", f"--image_dir={dataset.folder}") == 0
        converted = read_converted(dataset.folder / "out", split)
        np.testing.assert_array_equal(converted.labels["images/a"], plain)
        assert converted.semantics() == [("dog", True, 0), ("cup", True, 1)]


def test_background_is_a_class_of_stuff(dataset):
    label = dataset.label("--background=table")
    np.testing.assert_array_equal(label, np.where(OVERLAPS["smaller_on_top"] == 0, 768, OVERLAPS["smaller_on_top"]))
    assert read_converted(dataset.folder / "out").semantics()[2] == ("table", False, 6)


@pytest.mark.parametrize("number", [0, 1])
def test_background_may_be_a_category(dataset, number):
    dataset.content["categories"] = [{"id": number, "name": "table"}, *CATEGORIES]
    label = dataset.label("--background=table")
    assert read_converted(dataset.folder / "out").semantics()[0] == ("table", False, number)
    np.testing.assert_array_equal(label == 256, OVERLAPS["smaller_on_top"] == 0)


def test_a_category_is_not_void(dataset, capsys):
    dataset.content["categories"] = [{"id": 0, "name": "table", "isthing": 0}, *CATEGORIES]
    save_map(dataset.folder / "semantic" / "a.png", np.zeros([HEIGHT, WIDTH]))
    flags = [f"--semantic_dir={dataset.folder / 'semantic'}"]
    assert dataset.convert(*flags) == 2
    assert "class 0 is 'table', but 0 is also in --void_values; pass --void_values=255 if" in complaint(capsys)
    np.testing.assert_array_equal(dataset.label(*flags, "--void_values=255") == 256, OVERLAPS["smaller_on_top"] == 0)


@pytest.mark.parametrize(
    "names", ["92: sky\n93: grass\n", '[{"id": 92, "name": "sky", "isthing": "0"}, {"id": "93", "name": "grass"}]']
)
def test_stuff_comes_from_semantic_pngs(dataset, names):
    semantic = np.full([HEIGHT, WIDTH], 92)
    semantic[3:] = 93
    semantic[:, 7] = [0, 255, 3, 3, 93, 93]  # Void, void, a dog without an object (a crowd).
    save_map(dataset.folder / "semantic" / "a.png", semantic)
    file = dataset.folder / ("stuff.json" if names.startswith("[") else "stuff.txt")
    file.write_text(names)
    behind = np.full([HEIGHT, WIDTH], 3 * 256)
    behind[3:] = 4 * 256
    behind[:4, 7] = [0, 0, 256, 256]
    flags = [f"--semantic_dir={dataset.folder / 'semantic'}", f"--stuff_categories={file}", "--notreat_crowd_as_ignore"]
    label = dataset.label(*flags)
    np.testing.assert_array_equal(label, np.where(OVERLAPS["smaller_on_top"] == 0, behind, OVERLAPS["smaller_on_top"]))
    assert read_converted(dataset.folder / "out").semantics()[2:] == [("sky", False, 92), ("grass", False, 93)]


def test_images_without_objects_are_dropped_if_the_rest_is_void(dataset, capsys):
    dataset.content["images"].append({"id": 2, "file_name": "b.png", "height": HEIGHT, "width": WIDTH})
    save_image(dataset.folder / "images" / "b.png", HEIGHT, WIDTH)
    assert dataset.convert() == 0
    assert "dropping 1 images without an object" in capsys.readouterr().out
    assert set(read_converted(dataset.folder / "out").labels) == {"a"}
    assert dataset.convert("--background=table", "--split=val") == 2  # The class table differs from that of train.
    assert dataset.convert("--background=table", f"--output_dir={dataset.folder / 'other'}") == 0
    labels = read_converted(dataset.folder / "other").labels
    np.testing.assert_array_equal(labels["b"], np.full([HEIGHT, WIDTH], 768))


def _annotation(**values):
    return lambda content: content["annotations"][1].update(values)


@pytest.mark.parametrize(
    "change, flags, message",
    [
        (_annotation(category_id=9), [], "instances.json, a.png: annotation 12: unknown category 9"),
        (_annotation(id=11), [], "annotation 11: its id occurs twice"),
        (_annotation(segmentation=[]), [], "annotation 12: no segmentation; draw the outline of the object"),
        (_annotation(segmentation=None), [], "annotation 12: no segmentation"),
        (
            _annotation(segmentation=[[1, 2, 3, 4]]),
            [],
            "the polygon [1, 2, 3, 4] has 4 numbers; a polygon needs at least",
        ),
        (_annotation(segmentation={"size": [8, 6], "counts": "0"}), [], "annotation 12: the RLE has the size [8, 6]"),
        (_annotation(segmentation={"size": [6, 8], "counts": [4, 5]}), [], "the RLE counts 9 pixels; expected 48"),
        (_annotation(segmentation={"x": 1}), [], "annotation 12: the RLE has no 'size'"),
        (_annotation(image_id=4), [], "annotations refer to images that the file does not list: 4"),
        (lambda content: content["annotations"][1].pop("segmentation"), [], "annotation 12: no segmentation"),
        (lambda content: content["images"][0].update(width=7), [], "a.png: 6 x 8 (height x width), but its entry"),
        (
            lambda content: content["images"][0].update(file_name="/dev/zero"),
            [],
            "file name '/dev/zero' leads out of the",
        ),
        (lambda content: content.pop("images"), [], "has no list 'images'"),
        (
            lambda content: content["images"].append(content["images"][0]),
            [],
            "two images have the id 1, a.png and a.png",
        ),
        (lambda content: None, ["--background=x", "--semantic_dir=y"], "pass one of them"),
        (lambda content: None, ["--processes=0"], "--processes=0: must be at least 1"),
        (lambda content: None, ["--semantic_dir=nowhere"], "--semantic_dir=nowhere is not a folder"),
        (
            lambda content: None,
            ["--label_divisor=2"],
            "annotation 13: is instance 2 of 'dog'; label_divisor 2 allows instances below 2",
        ),
    ],
)
def test_faults_are_named(dataset, capsys, change, flags, message):
    change(dataset.content)
    assert dataset.convert(*flags) == 2
    assert message in complaint(capsys)
    assert not (dataset.folder / "out").exists()


def test_unknown_values_of_semantic_pngs_are_named(dataset, capsys):
    save_map(dataset.folder / "semantic" / "a.png", np.full([HEIGHT, WIDTH], 92))
    assert dataset.convert(f"--semantic_dir={dataset.folder / 'semantic'}") == 2
    assert "semantic/a.png: value 92: no category has this id" in complaint(capsys)
