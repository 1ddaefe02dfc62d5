"""maxdl-check-data tfrecords names each fault with file and record, and finds none in good shards."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maxdl_tf import class_table
from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.data import examples
from maxdl_tf.data_gen.checks import records
from tests.data import damaged_files
from tests.helpers import in_process

INFO = DatasetInfo("test", tuple(SegmentClass(i, f"class {i}", i < 3, (0, 0, 0), i) for i in (1, 2, 3)))
LABEL = np.repeat([[0, 257, 258, 513], [3 * 256] * 4], 4, axis=0)


def _image(seed: int, size=LABEL.shape, kind="PNG", mode="RGB") -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, [*size, 3], np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def _example(seed: int, label=LABEL, image=None, label_format="png", name=None) -> bytes:
    content = _image(seed) if image is None else image
    return examples.encode_panoptic_example(content, "png", label, name or f"image{seed}", label_format)


def _write(path, examples) -> None:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for example in examples:
            writer.write(example)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / class_table.FILE_NAME).write_text(class_table.to_text(INFO))
    for shard in range(2):
        _write(tmp_path / f"train-0000{shard}-of-00002.tfrecord", [_example(3 * shard + i) for i in range(3)])
    _write(tmp_path / "val-00000-of-00001.tfrecord", [_example(10, label_format="raw"), _example(11)])
    return tmp_path


def _check(folder, *flags, patterns=("train-*", "val-*")) -> tuple[int, set]:
    """Exit status, and (kind, file name, record) of the findings."""
    report = folder / "report.json"
    arguments = [f"--file_pattern={folder / pattern}" for pattern in patterns]
    status = in_process(records, *arguments, "--json", report, "--processes=1", *flags)
    if status == 2:
        return status, set()
    findings = json.loads(report.read_text())["findings"]
    return status, {(entry["kind"], entry["file"].rpartition("/")[2], entry["record"]) for entry in findings}


def test_good_shards(folder):
    assert _check(folder) == (0, set())
    train, val = json.loads((folder / "report.json").read_text())["splits"]
    assert (train["split"], train["images"], val["split"], val["images"]) == ("train", 6, "val", 2)
    rows = {row["name"]: (row["images"], row["segments"], row["pixels"]) for row in val["classes"]}
    assert rows == {"class 3": (2, 2, 32), "class 1": (2, 4, 16), "class 2": (2, 2, 8)}


def test_damaged_records_are_named_and_the_following_ones_are_checked(folder):
    name = "train-00000-of-00002.tfrecord"
    _write(folder / name, [*map(_example, range(4)), _example(4, np.full([8, 4], 9 * 256)), _example(5), _example(6)])
    damaged_files.flip_data(folder / name, 1)
    damaged_files.flip_length(folder / name, 3)
    damaged_files.cut_off(folder / name)
    (folder / "train-00001-of-00002.tfrecord").write_bytes(b"")
    assert _check(folder) == (
        1,
        {("record-damaged", name, number) for number in (1, 3, 6)}
        | {("class-unknown", name, 4), ("record-damaged", "train-00001-of-00002.tfrecord", 0)},
    )
    assert json.loads((folder / "report.json").read_text())["splits"][0]["images"] == 4


@pytest.mark.parametrize(
    "example, kinds",
    [
        (b"no example", {"example-unreadable"}),
        (examples.encode_image_example(_image(9)), {"example-unreadable"}),
        (_example(9, image=b"no image"), {"image-undecodable"}),
        (_example(9, image=_image(9, kind="GIF")), {"image-format", "image-format-wrong"}),
        (_example(9, image=_image(9, kind="JPEG")), {"image-format-wrong"}),
        (_example(9, image=_image(9, mode="L")), {"image-gray"}),
        (_example(9, image=_image(9, size=(8, 5))), {"image-size"}),
        (_example(9, label=np.full(LABEL.shape, 4 * 256)), {"class-unknown"}),
        (_example(9, label=np.full(LABEL.shape, 3 * 256 + 1)), {"stuff-instance"}),
        (_example(9, label=np.full(LABEL.shape, 256 + 128)), {"instance-not-pasted"}),
        (_example(9, label=np.zeros(LABEL.shape, int)), {"all-void"}),
        (_example(9, name="image0"), {"record-id-repeated"}),
        (_example(9).replace(b"png", b"gif"), {"image-format-wrong", "label-undecodable"}),
    ],
)
def test_an_unusable_record_is_named(folder, example, kinds):
    name = "train-00001-of-00002.tfrecord"
    _write(folder / name, [_example(3), example, _example(5)])
    status, found = _check(folder)
    assert found == {(kind, name, 1) for kind in kinds}
    harmless = {"image-gray", "image-format-wrong", "stuff-instance", "instance-not-pasted", "all-void"}
    assert status == int(not kinds <= harmless)


def test_a_leak_and_a_repeated_image(folder):
    _write(
        folder / "val-00000-of-00001.tfrecord",
        [_example(10), _example(11, image=_image(10)), _example(12, image=_image(4))],
    )
    status, _ = _check(folder)
    findings = json.loads((folder / "report.json").read_text())["findings"]
    assert status == 1
    assert {(entry["kind"], entry["file"], entry["what"]) for entry in findings} == {
        ("image-repeated", "image11", "has the pixels of image10 in val"),
        ("leak", "image12", "has the pixels of image4 in train"),
    }


def test_missing_shards_and_shards_of_another_conversion(folder):
    (folder / "train-00001-of-00002.tfrecord").rename(folder / "train-00002-of-00003.tfrecord")
    status, found = _check(folder)
    assert status == 1
    assert found == {
        ("shards-mixed", "train-*.tfrecord", None),
        ("shard-missing", "train-00001-of-00002.tfrecord", None),
        ("shard-missing", "train-00000-of-00003.tfrecord", None),
        ("shard-missing", "train-00001-of-00003.tfrecord", None),
    }


def test_slots_and_the_page(folder):
    status, found = _check(folder, "--num_slots=3", "--html", folder / "page.html")
    assert status == 0 and {kind for kind, *_ in found} == {"too-many-segments"} and len(found) == 8
    text = (folder / "page.html").read_text()
    assert text.count("<img") == 16 and "Samples: images under their labels" in text  # Each image is a sample as well.


def test_the_page_shows_12_samples_of_good_data_with_a_legend(folder):
    _write(folder / "train-00000-of-00002.tfrecord", [_example(seed) for seed in range(20, 40)])
    assert _check(folder, "--html", folder / "page.html") == (0, set())
    text = (folder / "page.html").read_text()
    pictures = [base64.b64decode(data) for data in re.findall(r"base64,([^\"]+)", text)]
    assert len(pictures) == 8  # 6 of the 23 images of train, and both of val.
    for picture in pictures:
        with Image.open(io.BytesIO(picture)) as image:
            assert image.height == 480 and image.width > 240 + 50  # 8 x 4 pixels, enlarged, and the legend.


def test_a_split_that_is_mostly_void_is_a_warning(folder):
    label = LABEL.copy()
    label[:5] = 0
    _write(folder / "val-00000-of-00001.tfrecord", [_example(10, label), _example(11)])
    status, found = _check(folder, patterns=("val-*",))
    assert (status, {kind for kind, *_ in found}) == (0, set())
    _write(folder / "val-00000-of-00001.tfrecord", [_example(10, label), _example(11, label)])
    status, found = _check(folder, patterns=("val-*",))
    assert (status, {kind for kind, *_ in found}) == (0, {"mostly-void"})


def test_unreadable_input_gives_one_line_and_status_2(folder, capsys):
    for arguments, words in (
        ({"patterns": ["test-*"]}, "matches no file"),
        ({"patterns": ["train-*"]}, "there is no such file"),
    ):
        if "train-*" in arguments["patterns"]:
            (folder / class_table.FILE_NAME).unlink()
        assert _check(folder, **arguments) == (2, set())
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and words in said[0]
