"""Class folders become records with the keys of ImageNet records; images keep their class and their pixels."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maxdl_tf import class_table
from maxdl_tf.data_gen import image_folders, shapes
from tests.helpers import in_process


def picture(seed: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def folders(tmp_path):
    """Three classes: one has images of other modes, and one has no images."""
    for name in ("zebra", "ant", "cat"):
        (tmp_path / "images" / name).mkdir(parents=True)
    for number in range(3):
        picture(number).save(tmp_path / "images" / "ant" / f"{number}.PNG")
    picture(3).save(tmp_path / "images" / "zebra" / "a.JPEG")
    picture(4, "L").save(tmp_path / "images" / "zebra" / "gray.jpg")
    picture(5, "CMYK").save(tmp_path / "images" / "zebra" / "print.jpg")
    (tmp_path / "images" / "zebra" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "images" / "readme.txt").write_text("x")
    return tmp_path


def convert(folder, *flags, split="train"):
    """Exit status of the command in this process."""
    arguments = ["--image_dir", folder / "images", "--output_dir", folder / "out", "--processes=1", "--split", split]
    return in_process(image_folders, *arguments, *flags, program="maxdl-convert image_folders")


def records(folder, split="train"):
    """{file name: features} in the order of the files."""
    found = {}
    for path in sorted((folder / "out").glob(f"{split}-*.tfrecord")):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            features = tf.train.Example.FromString(record).features.feature
            found[features["image/filename"].bytes_list.value[0].decode()] = features
    return found


def test_labels_count_from_1_in_alphabetical_order(folders, capsys):
    assert convert(folders) == 0
    assert "6 images in 1 shards" in capsys.readouterr().out
    found = records(folders)
    assert set(found) == {"ant/0", "ant/1", "ant/2", "zebra/a", "zebra/gray", "zebra/print"}
    for name, features in found.items():
        class_name = name.split("/")[0]
        assert features["image/class/label"].int64_list.value[:] == [{"ant": 1, "cat": 2, "zebra": 3}[class_name]]
        assert features["image/class/text"].bytes_list.value[:] == [class_name.encode()]
        assert features["image/height"].int64_list.value[:] == [20]
        assert features["image/width"].int64_list.value[:] == [30]
    info = class_table.load(str(folders / "out" / "dataset_info.textproto"))
    assert [(row.id, row.name, row.is_thing) for row in info.classes] == [
        (1, "ant", False),
        (2, "cat", False),
        (3, "zebra", False),
    ]


def test_images_with_an_exif_orientation_are_stored_upright(folders):
    path = folders / "images" / "zebra" / "rotated.jpg"
    pixels = np.zeros([20, 40, 3], np.uint8)
    pixels[:, :20] = 200  # The left half is bright.
    exif = Image.Exif()
    exif[0x0112] = 6  # Viewers rotate the image clockwise: the left side becomes the top.
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    assert convert(folders) == 0
    features = records(folders)["zebra/rotated"]
    assert features["image/format"].bytes_list.value[:] == [b"png"]
    assert [features[f"image/{side}"].int64_list.value[0] for side in ("height", "width")] == [40, 20]
    stored = tf.io.decode_image(features["image/encoded"].bytes_list.value[0]).numpy()
    assert stored.shape == (40, 20, 3) and stored[:16].min() > 150 and stored[24:].max() < 50


def test_rgb_files_are_stored_unchanged_and_others_become_rgb_pngs(folders):
    assert convert(folders) == 0
    found = records(folders)
    path = folders / "images" / "zebra" / "a.JPEG"
    assert found["zebra/a"]["image/encoded"].bytes_list.value[0] == path.read_bytes()
    for name in ("gray", "print"):
        features = found[f"zebra/{name}"]
        assert features["image/format"].bytes_list.value[:] == [b"png"]
        with Image.open(io.BytesIO(features["image/encoded"].bytes_list.value[0])) as decoded:
            assert decoded.mode == "RGB"
            with Image.open(folders / "images" / "zebra" / f"{name}.jpg") as original:
                np.testing.assert_array_equal(np.asarray(decoded), np.asarray(original.convert("RGB")))


def test_classes_are_mixed_and_the_order_repeats(folders):
    for number in range(3, 30):
        picture(number).save(folders / "images" / "ant" / f"{number}.png")
        picture(number).save(folders / "images" / "cat" / f"{number}.png")
    assert convert(folders) == 0
    order = list(records(folders))
    first_half = [name.split("/")[0] for name in order[: len(order) // 2]]
    assert min(first_half.count("ant"), first_half.count("cat")) >= 5
    assert convert(folders, "--overwrite") == 0
    assert list(records(folders)) == order


def test_a_split_with_other_classes_is_refused(folders, capsys):
    assert convert(folders) == 0
    assert convert(folders, split="val") == 0
    (folders / "images" / "cat").rename(folders / "images" / "dog")
    assert convert(folders, split="test") == 2
    assert "its class 2 is ('cat'" in capsys.readouterr().err


def test_bad_images_stop_the_conversion_or_are_skipped(folders, capsys):
    (folders / "images" / "cat" / "broken.jpg").write_bytes(b"no image")
    assert convert(folders) == 2
    error = capsys.readouterr().err
    assert "cat/broken.jpg: cannot be read as an image" in error
    assert not (folders / "out").exists()
    assert convert(folders, "--on_error=skip") == 0
    assert "1 images skipped" in capsys.readouterr().out
    assert len(records(folders)) == 6


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image_dir=nowhere"], "nowhere is not a folder"),
        (["--image_dir={folder}/images/ant"], "has no subfolders; expected one folder of images per class"),
        (["--label_format=raw"], "Unknown command line flag 'label_format'"),
    ],
)
def test_bad_input_is_reported_in_one_line(folders, capsys, flags, message):
    assert convert(folders, *(flag.format(folder=folders) for flag in flags)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_largest_thing_of_a_drawing_names_its_folder(tmp_path):
    painter = shapes.Painter(64, 64, 4, seed=2, split="train", class_folders=str(tmp_path))
    info = shapes.dataset_info()
    for class_id in info.thing_ids:
        (tmp_path / info.by_id[class_id].name).mkdir()
    for index in range(8):
        annotated = painter.annotate(index)
        areas = {value: np.sum(annotated.label == value) for value in np.unique(annotated.label) if value % 256}
        largest = info.by_id[max(areas, key=areas.get) // 256].name
        (path,) = tmp_path.rglob(f"{annotated.image_id}.jpg")
        assert path.parent.name == largest
        assert path.read_bytes() == annotated.image_bytes


def test_a_class_folder_whose_name_is_not_utf_8_is_named(folders, capsys):
    (folders / "images" / os.fsdecode(b"stra\xdfe")).mkdir()
    assert convert(folders) == 2
    assert r"the folder name 'stra\udcdfe' is not UTF-8; rename it" in capsys.readouterr().err
