"""COCO panoptic input: labels equal the reference, real data is converted without loss, and faults are named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maxdl_tf import class_table, panoptic_ids
from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.data import coco_categories, examples, panoptic
from maxdl_tf.data_gen import coco_panoptic, convert, shapes
from maxdl_tf.errors import UserError
from tests.helpers import REPOSITORY, shared_golden, shared_path

CATEGORIES = [
    {"id": 30, "name": "grass", "isthing": 0},
    {"id": 7, "name": "dog", "isthing": 1, "color": [1, 2, 3]},
    {"id": 9, "name": "cat", "isthing": 1},
]


class Dataset:
    """A small COCO panoptic data set on disk, in which tests plant a fault."""

    def __init__(self, folder: Path):
        self.images, self.annotation_file = folder / "images", folder / "panoptic_val.json"
        self.pngs = folder / "panoptic_val"
        self.images.mkdir()
        self.pngs.mkdir()
        self.ids = np.repeat(np.array([[0, 11, 12], [70000, 70000, 13]]), 8, axis=1)
        self.segments = [
            {"id": 11, "category_id": 7, "iscrowd": 0, "area": 8},
            {"id": 70000, "category_id": 30, "iscrowd": 0, "area": 16},
            {"id": 12, "category_id": 7, "iscrowd": 0, "area": 8},
            {"id": 13, "category_id": 9, "iscrowd": 1, "area": 8},
        ]
        self.content = {
            "images": [{"id": 5, "file_name": "a.jpg", "height": 2, "width": 24}],
            "annotations": [{"image_id": 5, "file_name": "a.png", "segments_info": self.segments}],
            "categories": CATEGORIES,
        }
        self.image = Image.fromarray(np.random.default_rng(0).integers(0, 255, [2, 24, 3], dtype=np.uint8))

    def write(self) -> Dataset:
        self.annotation_file.write_text(json.dumps(self.content))
        Image.fromarray(panoptic_ids.id_to_color(self.ids)).save(self.pngs / "a.png")
        self.image.save(self.images / "a.jpg")
        return self

    def annotate(self, **options):
        annotations = coco_panoptic.load_annotations(self.annotation_file)
        info = coco_categories.table_of_categories(annotations.categories, self.annotation_file, "test", **options)
        annotator = coco_panoptic.Annotator(self.images, self.pngs, self.annotation_file.name, info)
        return [annotator.annotate(entry) for entry in annotations.images]


@pytest.fixture
def dataset(tmp_path):
    return Dataset(tmp_path)


def _convert(*arguments) -> int:
    """Runs maxdl-convert in this process; returns the exit status."""
    for name in coco_panoptic.FLAGS:
        coco_panoptic.FLAGS[name].unparse()
    with pytest.raises(SystemExit) as exit_status:
        convert.run(["maxdl-convert", *(str(argument) for argument in arguments)])
    return exit_status.value.code or 0


@pytest.mark.parametrize("crowd_ignored", [False, True])
def test_labels_equal_the_reference(crowd_ignored):
    folder = shared_path("reference", "golden", "i_coco")
    file = folder / "annotations" / "panoptic_val2017.json"
    info = class_table.load(str(REPOSITORY / "configs" / "datasets" / "coco_panoptic.textproto"))
    annotator = coco_panoptic.Annotator(folder / "val2017", file.with_suffix(""), file.name, info, crowd_ignored)
    (annotated,) = [annotator.annotate(entry) for entry in coco_panoptic.load_annotations(file).images]
    expected = shared_golden("i_coco_example")[f"label_crowd_ignored_{int(crowd_ignored)}"]
    np.testing.assert_array_equal(annotated.label, expected)
    assert annotated.image_bytes == (folder / "val2017" / "000000000001.jpg").read_bytes()
    assert (annotated.image_id, annotated.image_format) == ("000000000001", "jpeg")


@pytest.mark.parametrize("name, images, split", [("coco_sample", "val2017", "val2017"), ("nuclei", "val", "val")])
def test_real_data_survives_conversion(tmp_path, name, images, split):
    image_dir = shared_path("data", name, images)
    file = shared_path("data", name, "annotations", f"panoptic_{split}.json")
    flags = [f"--image_dir={image_dir}", f"--annotation_file={file}", f"--output_dir={tmp_path}", "--split=val"]
    assert _convert("coco_panoptic", *flags, "--processes=1", "--num_shards=2") == 0
    info = class_table.load(str(tmp_path / "dataset_info.textproto"))
    content = json.loads(file.read_text())
    annotation_of = {Path(annotation["file_name"]).stem: annotation for annotation in content["annotations"]}
    seen = set()
    for record in tf.data.TFRecordDataset(sorted(str(path) for path in tmp_path.glob("val-*"))).take(15):
        example = panoptic.parse_example(record)
        label, image_id = example.label.numpy(), example.image_id.numpy().decode()
        seen.add(image_id)
        annotation = annotation_of[image_id]
        with Image.open(file.with_suffix("") / annotation["file_name"]) as png:
            ids = panoptic_ids.color_to_id(np.asarray(png))
        assert np.all(label[ids == 0] == 0)
        labels_of_things = []
        for segment in annotation["segments_info"]:
            (value,) = np.unique(label[ids == segment["id"]])
            class_id, instance = panoptic_ids.decode_label(value, 256)
            if segment["iscrowd"]:
                assert value == 0
                continue
            assert info.by_id[class_id].source_id == segment["category_id"]
            assert (instance > 0) == info.by_id[class_id].is_thing
            if instance:
                labels_of_things.append(value)
        assert len(set(labels_of_things)) == len(labels_of_things)
    assert len(seen) == 15


def test_class_ids_are_ranks_of_category_ids_and_missing_colors_are_generated(dataset):
    info = coco_categories.table_of_categories(CATEGORIES, dataset.annotation_file, "test")
    assert [(row.id, row.name, row.is_thing, row.source_id) for row in info.classes] == [
        (1, "dog", True, 7),
        (2, "cat", True, 9),
        (3, "grass", False, 30),
    ]
    assert info.classes[0].color == (1, 2, 3)
    assert len({row.color for row in info.classes}) == 3


def test_labels_of_a_small_data_set(dataset):
    (annotated,) = dataset.write().annotate(label_divisor=10)
    np.testing.assert_array_equal(annotated.label[:, ::8], [[0, 11, 12], [30, 30, 0]])


def _break(attribute, *path_and_value):
    """A function that changes one value below `dataset.content` or `dataset.segments`."""
    *path, last, value = path_and_value

    def apply(dataset):
        target = getattr(dataset, attribute)
        for key in path:
            target = target[key]
        target[last] = value

    return apply


def _remove(*names):
    return lambda dataset: [(dataset.images.parent / name).unlink() for name in names]


def _become(name, make):
    def fault(dataset):
        path = dataset.images.parent / name
        path.unlink()
        make(path)

    return fault


def _truncate(name):
    def apply(dataset):
        path = dataset.images.parent / name
        path.write_bytes(path.read_bytes()[:-60])

    return apply


BEFORE_WRITING = [
    (
        "not in the JSON",
        lambda d: d.ids.__setitem__((0, 0), 99),
        r"a\.png: segment 99: in the PNG but not in panoptic_val",
    ),
    (
        "not in the PNG",
        lambda d: d.ids.__setitem__(d.ids == 12, 0),
        r"a\.png: segment 12: in panoptic_val\.json but not in the PNG",
    ),
    ("area", _break("segments", 0, "area", 9), r"a\.png: segment 11: area 8 in the PNG, 9 in panoptic_val"),
    ("category", _break("segments", 1, "category_id", 8), r"a\.png: segment 70000: unknown category 8"),
    ("listed twice", lambda d: d.segments.append(dict(d.segments[0])), r"a\.png: segment 11: listed twice"),
    ("segment 0", _break("segments", 0, "id", 0), "segment 0: the id 0 stands for void"),
    ("size of the image", _break("content", "images", 0, "width", 23), r"a\.jpg: 2 x 24 .*states 2 x 23"),
    ("size of the PNG", lambda d: setattr(d, "ids", d.ids[:1]), r"a\.png: 1 x 24 .*states 2 x 24"),
    (
        "image outside",
        _break("content", "images", 0, "file_name", "../images/a.jpg"),
        "leads out of the folder .*images;",
    ),
    (
        "image on a device",
        _break("content", "images", 0, "file_name", "/dev/zero"),
        "leads out of the folder .*images;",
    ),
    (
        "PNG outside",
        _break("content", "annotations", 0, "file_name", "../a.png"),
        "leads out of the folder .*panoptic_val;",
    ),
    ("no annotation", _break("content", "annotations", []), r"a\.jpg: panoptic_val\.json has no annotation"),
    ("image elsewhere", _break("content", "images", 0, "file_name", "../a.jpg"), "../a.jpg' leads out of the folder"),
    (
        "PNG elsewhere",
        _break("content", "annotations", 0, "file_name", "/etc/a.png"),
        "/etc/a.png' leads out of the folder",
    ),
    ("two images", lambda d: d.content.update(images=d.content["images"] * 2), "two images have the id 5, a.jpg and"),
    ("no image", _break("content", "images", []), "annotations refer to images that the file does not list: 5"),
    (
        "two annotations",
        lambda d: d.content.update(annotations=d.content["annotations"] * 2),
        "image 5 has more than one",
    ),
    ("no segments_info", lambda d: d.content["annotations"][0].pop("segments_info"), "has no 'segments_info'"),
    ("not a dictionary", lambda d: setattr(d, "content", [1]), "holds a JSON list"),
    ("no isthing", _break("content", "categories", [{"id": 1, "name": "a"}]), "category 1 has no 'isthing'"),
    ("no categories", _break("content", "categories", []), "lists no categories; add them"),
]
AFTER_WRITING = [
    ("image missing", _remove("images/a.jpg"), r"images/a\.jpg: there is no such file"),
    (
        "image a device",
        _become("images/a.jpg", lambda path: path.symlink_to("/dev/zero")),
        "a.jpg: a pipe, socket or dev",
    ),
    ("image a pipe", _become("images/a.jpg", os.mkfifo), "a.jpg: a pipe, socket or device; expected a regular file"),
    ("PNG a pipe", _become("panoptic_val/a.png", os.mkfifo), "a.png: a pipe, socket or device"),
    ("PNG missing", _remove("panoptic_val/a.png"), r"panoptic_val/a\.png: there is no such file"),
    ("image broken", _truncate("images/a.jpg"), r"a\.jpg: cannot be read as an image"),
    ("PNG broken", _truncate("panoptic_val/a.png"), r"a\.png: cannot be read as an image"),
    ("no image at all", lambda d: (d.images / "a.jpg").write_text("text"), r"a\.jpg: cannot be read as an image"),
    ("gray PNG", lambda d: Image.new("L", (24, 2)).save(d.pngs / "a.png"), r"a\.png: a PNG of mode L; expected RGB"),
    ("GIF", lambda d: d.image.save(d.images / "a.jpg", format="GIF"), r"a\.jpg: a GIF file"),
    ("no JSON", lambda d: d.annotation_file.write_text("{"), r"panoptic_val\.json is not a JSON file"),
    ("JSON missing", _remove("panoptic_val.json"), r"panoptic_val\.json: there is no such file"),
]


@pytest.mark.parametrize("fault, message", [case[1:] for case in BEFORE_WRITING], ids=[c[0] for c in BEFORE_WRITING])
def test_faults_of_annotations_are_named(dataset, fault, message):
    fault(dataset)
    dataset.write()
    with pytest.raises(UserError, match=message):
        dataset.annotate()


@pytest.mark.parametrize("fault, message", [case[1:] for case in AFTER_WRITING], ids=[c[0] for c in AFTER_WRITING])
def test_faults_of_files_are_named(dataset, fault, message):
    dataset.write()
    fault(dataset)
    with pytest.raises(UserError, match=message):
        dataset.annotate()


def test_more_instances_than_the_label_divisor_allows(dataset):
    dataset.write()
    assert dataset.annotate(label_divisor=3)
    with pytest.raises(
        UserError, match=r"segment 12: is instance 2 of 'dog'; label_divisor 2 allows instances below 2"
    ):
        dataset.annotate(label_divisor=2)


def test_only_some_images(dataset, tmp_path, capsys):
    dataset.content["images"].append({"id": 6, "file_name": "b.jpg", "height": 2, "width": 24})  # No such file.
    dataset.write()
    flags = [f"--image_dir={dataset.images}", f"--annotation_file={dataset.annotation_file}", "--processes=1"]
    assert _convert("coco_panoptic", *flags, f"--output_dir={tmp_path / 'out'}", "--only=a.jpg") == 0
    (shard,) = (tmp_path / "out").glob("*.tfrecord")
    assert len(list(tf.data.TFRecordDataset(str(shard)))) == 1
    assert _convert("coco_panoptic", *flags, f"--output_dir={tmp_path / 'other'}", "--only=a.jpg,c.jpg") == 2
    assert "no image c.jpg" in capsys.readouterr().err


def test_categories_from_0_and_numbers_as_text(dataset, tmp_path):
    """Both splits of such an export are converted, with the labels that plain numbers give."""
    plain = dataset.write().annotate()[0].label
    number_of = {7: 0, 9: 1, 30: 2}
    dataset.content["categories"] = [
        {"id": str(number_of[row["id"]]), "name": row["name"], "isthing": str(row["isthing"])} for row in CATEGORIES
    ]
    for segment in dataset.segments:
        segment.update(
            category_id=number_of[segment["category_id"]], id=str(segment["id"]), area=float(segment["area"])
        )
        segment["iscrowd"] = str(segment["iscrowd"])
    dataset.content["images"][0].update(height="2", width=24.0, id="5", file_name="images\\a.jpg")
    dataset.content["annotations"][0]["file_name"] = "panoptic_val\\a.png"
    dataset.write()
    flags = [f"--image_dir={tmp_path}", f"--panoptic_dir={tmp_path}", f"--annotation_file={dataset.annotation_file}"]
    for split in ("train", "val"):
        flags_of_output = [f"--output_dir={tmp_path / 'out'}", f"--split={split}", "--processes=1"]
        assert _convert("coco_panoptic", *flags, *flags_of_output) == 0
        (shard,) = (tmp_path / "out").glob(f"{split}-*.tfrecord")
        (record,) = tf.data.TFRecordDataset(str(shard))
        np.testing.assert_array_equal(panoptic.parse_example(record).label, plain)
    info = class_table.load(str(tmp_path / "out" / "dataset_info.textproto"))
    assert [(row.name, row.is_thing, row.source_id) for row in info.classes] == [
        ("dog", True, 0),
        ("cat", True, 1),
        ("grass", False, 2),
    ]


def test_gray_images_become_rgb(dataset):
    dataset.image = dataset.image.convert("L")
    (annotated,) = dataset.write().annotate()
    assert annotated.image_format == "png"
    rgb = tf.io.decode_png(annotated.image_bytes).numpy()
    with Image.open(dataset.images / "a.jpg") as stored:
        np.testing.assert_array_equal(rgb, np.stack([np.asarray(stored)] * 3, axis=-1))


def test_faults_give_one_line_and_status_2_and_leave_nothing(dataset, tmp_path, capsys):
    dataset.segments[0]["area"] = 9
    dataset.write()
    flags = [f"--image_dir={dataset.images}", f"--annotation_file={dataset.annotation_file}", "--processes=1"]
    output = tmp_path / "out"
    assert _convert("coco_panoptic", *flags, f"--output_dir={output}") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("maxdl-convert")]
    assert len(lines) == 1 and "segment 11" in lines[0]
    assert not output.exists()


def test_help_and_errors_in_flags_come_without_tensorflow(tmp_path):

    code = (
        "import sys\nfrom maxdl_tf.data_gen import convert\n"
        "try:\n    convert.run(['maxdl-convert', *sys.argv[1:]])\n"
        "finally:\n    assert 'tensorflow' not in sys.modules\n"
    )
    for arguments, status, words in (
        (["--help"], 0, "maxdl-convert shapes"),
        (["coco_panoptic", "--help"], 0, "--annotation_file"),
        (["shapes", "--count=0", f"--output_dir={tmp_path}"], 2, "count"),
        (["kitti"], 2, "'kitti'"),
    ):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert words in done.stdout + done.stderr


def test_drawn_shapes_survive_a_round_trip_through_coco_files(tmp_path):
    painter = shapes.Painter(64, 80, 4, seed=0, split="val")
    table = {row.id: row for row in shapes.dataset_info().classes}
    folders = {name: tmp_path / name for name in ("images", "panoptic")}
    for folder in folders.values():
        folder.mkdir()
    content = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": 10 * i, "name": row.name, "isthing": int(row.is_thing)} for i, row in table.items()]
    drawings = [painter.draw(index) for index in range(4)]
    for index, (image, label) in enumerate(drawings):
        Image.fromarray(image).save(folders["images"] / f"{index}.png")
        Image.fromarray(panoptic_ids.id_to_color(label * 3)).save(folders["panoptic"] / f"{index}.png")
        segments = [{"id": int(v) * 3, "category_id": 10 * int(v // 256), "iscrowd": 0} for v in np.unique(label)]
        content["images"].append({"id": index, "file_name": f"{index}.png", "height": 64, "width": 80})
        content["annotations"].append({"image_id": index, "file_name": f"{index}.png", "segments_info": segments})
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    annotations = coco_panoptic.load_annotations(tmp_path / "panoptic.json")
    info = coco_categories.table_of_categories(annotations.categories, tmp_path, "shapes")
    assert isinstance(info, DatasetInfo) and info.classes[0] == SegmentClass(1, "disk", True, info.classes[0].color, 10)
    annotator = coco_panoptic.Annotator(folders["images"], folders["panoptic"], "panoptic.json", info)
    for entry, (image, label) in zip(annotations.images, drawings):
        record = examples.encode_panoptic_example(*annotator.annotate(entry))
        example = panoptic.parse_example(tf.constant(record))
        np.testing.assert_array_equal(example.image, image)
        np.testing.assert_array_equal(example.label, label)
