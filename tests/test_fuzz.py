"""Damaged and hostile files through the readers: each is read right or refused by a UserError, and nothing else.

Each case changes valid files at random, with a fixed seed and count. A failure names the round and the changed content.
"""

from __future__ import annotations

import copy
import io
import json
import math
import random
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maxdl_tf import class_table, config
from maxdl_tf.checkpoints import archives
from maxdl_tf.checkpoints.save_restore import Checkpoints
from maxdl_tf.checkpoints.source import open_checkpoint
from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.data import coco_files, panoptic, record_streams, records
from maxdl_tf.data_gen import class_names, source_files
from maxdl_tf.errors import UserError
from maxdl_tf.evaluation import coco_pairs
from maxdl_tf.files import images
from maxdl_tf.files.intensity import Range
from tests.data_gen.conversion import read_converted, run_convert, save_image
from tests.helpers import REPOSITORY

SIZE = (8, 6)
ODD_VALUES = (
    *(None, True, False, 0, -1, 1, 3, 255, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, 1.0, -0.0, 1e300),
    *(
        math.nan,
        math.inf,
        "",
        "0",
        "1",
        "x",
        "1.0",
        " 7 ",
        "../../x",
        "/dev/zero",
        "a\\b.png",
        "\0",
        "\ud800",
        "é" * 300,
    ),
    *([], {}, [1], [[]], {"id": 1}, [[None]], [0, 0, 1, 0, 1, 1], [1, 2, 3]),
)
TABLE = DatasetInfo(
    "fuzz", (SegmentClass(1, "thing", True, (255, 0, 0), 1), SegmentClass(2, "stuff", False, (0, 0, 255), 2))
)


def fuzz(rounds: int, seed: bytes | Any, change: Callable, read: Callable[[Any], None]) -> None:
    """Changes `seed` and reads the result, `rounds` times; at least one result must be read, and one refused."""
    refused = 0
    for number in range(rounds):
        changed = change(random.Random(number), seed)
        try:
            read(changed)
        except UserError as error:
            refused += 1
            assert str(error) and "\n" not in str(error), (number, str(error))
        except Exception as error:
            raise AssertionError(f"round {number}: {type(error).__name__}: {error}; of {changed!r:.600}") from error
    assert refused > 0, "no change was refused: the changes are too small"
    assert refused < rounds, "every change was refused: the changes are too large"


def changed_bytes(generator: random.Random, content: bytes) -> bytes:
    """Flips bits, overwrites, inserts, repeats or drops bytes, or cuts the end off; a few times."""
    content = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 2, 5))):
        at = generator.randrange(len(content) or 1)
        span = generator.choice((1, 1, 2, 4, 8, 32))
        kind = generator.randrange(6)
        if kind == 0 and content:
            content[at] ^= 1 << generator.randrange(8)
        elif kind == 1:
            content[at : at + span] = generator.choice((b"\0", b"\xff", b"\x7f")) * span
        elif kind == 2:
            content[at:at] = generator.randbytes(span) if hasattr(generator, "randbytes") else b"\x80" * span
        elif kind == 3:
            content[at:at] = content[at : at + span]
        elif kind == 4:
            del content[at : at + span]
        elif generator.random() < 0.3:
            del content[at:]
    return bytes(content)


def changed_text(generator: random.Random, content: str) -> bytes:
    """Exchanges words and numbers, drops or repeats lines, or changes bytes."""
    lines = content.split("\n")
    for _ in range(generator.choice((1, 1, 2, 4))):
        at = generator.randrange(len(lines))
        kind = generator.randrange(5)
        if kind == 0:
            words = lines[at].split(" ")
            words[generator.randrange(len(words))] = str(generator.choice(ODD_VALUES)).encode(errors="replace").decode()
            lines[at] = " ".join(words)
        elif kind == 1:
            lines[at:at] = [generator.choice(lines)]
        elif kind == 2 and len(lines) > 1:
            del lines[at]
        elif kind == 3:
            lines[at] = generator.choice(("", "{", "}", "# \u2028 note", "\x1b[31m", ": : :", '"', "a: b"))
    content = "\n".join(lines).encode()
    return changed_bytes(generator, content) if generator.random() < 0.3 else content


def changed_json(generator: random.Random, content: Any) -> bytes:
    """Replaces, removes or repeats values anywhere in the tree, or changes the bytes of the file."""
    content = copy.deepcopy(content)
    for _ in range(generator.choice((1, 1, 1, 2, 4))):
        places = list(_places(content))
        parent, key = generator.choice(places)
        kind = generator.randrange(6)
        if kind < 4:
            parent[key] = copy.deepcopy(generator.choice(ODD_VALUES))
        elif kind == 4:
            del parent[key]
        elif isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        if not content:
            break
    text = json.dumps(content).encode()
    if generator.random() < 0.1:
        text = text.replace(b'"id": 1', b'"id": 1, "id": 2', 1)
    return changed_bytes(generator, text) if generator.random() < 0.1 else text


def _places(value: Any):
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(child, (dict, list)):
            yield from _places(child)


# --- COCO files, through the converters and the evaluation ---


@pytest.fixture
def coco(tmp_path) -> Path:
    """Two images with their panoptic PNGs."""
    for number in (1, 2):
        save_image(tmp_path / "images" / f"{number}.png", *SIZE, seed=number)
        ids = np.zeros([*SIZE, 3], np.uint8)
        ids[:4, :, 0], ids[4:, :, 0] = 1, 2
        (tmp_path / "panoptic").mkdir(exist_ok=True)
        Image.fromarray(ids).save(tmp_path / "panoptic" / f"{number}.png")
    return tmp_path


def panoptic_json() -> dict:
    return {
        "images": [{"id": n, "file_name": f"{n}.png", "height": SIZE[0], "width": SIZE[1]} for n in (1, 2)],
        "annotations": [
            {
                "image_id": n,
                "file_name": f"{n}.png",
                "segments_info": [
                    {"id": 1, "category_id": 1, "iscrowd": 0, "area": 24, "bbox": [0, 0, 6, 4], "score": 0.5},
                    {"id": 2, "category_id": 2, "iscrowd": 0, "area": 24, "bbox": [0, 4, 6, 4], "score": 0.5},
                ],
            }
            for n in (1, 2)
        ],
        "categories": [
            {"id": 1, "name": "a", "isthing": 1, "color": [1, 2, 3]},
            {"id": 2, "name": "b", "isthing": 0, "color": [3, 2, 1]},
        ],
    }


def instances_json() -> dict:
    polygon = [[0, 0, 4, 0, 4, 4, 0, 4]]
    runs = {"size": list(SIZE), "counts": [8, 8, 32]}
    content = panoptic_json()
    content["annotations"] = [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "segmentation": polygon,
            "iscrowd": 0,
            "area": 16,
            "bbox": [0, 0, 4, 4],
        },
        {"id": 2, "image_id": 2, "category_id": 2, "segmentation": runs, "iscrowd": 1, "area": 8, "bbox": [1, 0, 1, 8]},
    ]
    return content


@pytest.mark.parametrize("converter, content", [("coco_panoptic", panoptic_json), ("coco_instances", instances_json)])
def test_annotations_are_converted_or_refused(coco, capfd, converter, content):
    json_path, output = coco / "annotations.json", coco / "shards"

    def read(text: bytes) -> None:
        json_path.write_bytes(text)
        folder = ("--panoptic_dir", coco / "panoptic") if converter == "coco_panoptic" else ()
        status = run_convert(
            converter,
            *("--image_dir", coco / "images", "--annotation_file", json_path, "--output_dir", output, *folder),
            *("--split", "train", "--overwrite", "--on_error", "fail"),
        )
        printed = capfd.readouterr().err
        if status:
            lines = [line for line in printed.splitlines() if line.startswith("maxdl-convert")]
            assert status == 2 and len(lines) == 1, printed
            raise UserError(lines[0])
        converted = read_converted(output)
        for labels in converted.labels.values():
            assert labels.shape == SIZE and set(np.unique(labels // converted.info.label_divisor)) <= {
                converted.info.ignore_label,
                *converted.info.class_order,
            }
        for path in output.iterdir():  # The next class table may differ.
            path.unlink()

    fuzz(60, content(), changed_json, read)


def test_predictions_are_compared_or_refused(coco):
    truth, predictions = coco / "truth.json", coco / "predictions.json"
    truth.write_text(json.dumps(panoptic_json()))

    def read(text: bytes) -> None:
        predictions.write_bytes(text)
        files = coco_pairs.PredictionFiles(predictions, coco / "panoptic")
        pairs = coco_pairs.open_pairs(files, str(truth), str(coco / "panoptic"))
        assert len(coco_pairs.compare_pairs(pairs)) == 2
        names = coco_files.load_results(predictions).file_names
        assert all(isinstance(name, str) for name in names.values())

    fuzz(150, panoptic_json(), changed_json, read)


# --- images ---


def image_file(format_: str, mode: str = "RGB", **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, [40, 30, 3], dtype=np.uint8)
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels)
    if mode == "P":
        picture = picture.quantize(7)
    picture.convert(mode).save(buffer, format_, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        image_file("PNG"),
        image_file("PNG", "P"),
        image_file("JPEG", quality=80),
        image_file("JPEG", "L", progressive=True),
        image_file("GIF", "P"),
        image_file("BMP"),
        image_file("TIFF", compression="tiff_lzw"),
        image_file("WEBP"),
    ],
    ids=["png", "palette", "jpeg", "gray_jpeg", "gif", "bmp", "tiff", "webp"],
)
def test_images_are_decoded_or_refused(content):
    def read(changed: bytes) -> None:
        pixels = images.decode_image(changed, "x.png", max_pixels=100_000).pixels
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        assert 0 < pixels.shape[0] * pixels.shape[1] <= 100_000

    fuzz(60, content, changed_bytes, read)


@pytest.mark.parametrize(
    "options",
    [{"photometric": "rgb", "compression": "zlib"}, {"imagej": True, "metadata": {"axes": "CYX"}}],
    ids=["colors", "hyperstack"],
)
def test_tiff_files_of_microscopes_are_decoded_or_refused(options):
    tifffile = pytest.importorskip("tifffile", reason="tifffile, extra [microscopy], is not installed")
    pixels = np.random.default_rng(0).integers(0, 4096, [40, 30, 3]).astype(np.uint16)
    file = io.BytesIO()
    tifffile.imwrite(file, np.moveaxis(pixels, -1, 0) if "imagej" in options else pixels, **options)

    def read(changed: bytes) -> None:
        shown = images.decode_image(changed, "x.tif", max_pixels=100_000, intensity=Range(0, 4095)).pixels
        assert shown.dtype == np.uint8 and shown.ndim == 3 and shown.shape[2] == 3
        assert 0 < shown.shape[0] * shown.shape[1] <= 100_000

    fuzz(60, file.getvalue(), changed_bytes, read)


def test_label_pngs_are_read_or_refused(tmp_path):
    path = tmp_path / "x.png"
    readers = (source_files.read_gray_labels, source_files.read_label_colors, coco_files.read_panoptic_png)
    contents = [image_file("PNG", "L"), image_file("PNG", "P"), image_file("PNG")]
    for reader, content in zip(readers, contents):

        def read(changed: bytes, reader=reader) -> None:
            path.write_bytes(changed)
            assert 0 < reader(path).size < 10**6

        fuzz(50, content, changed_bytes, read)


# --- records ---


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> bytes:
    """The content of a shard of four images."""
    folder = tmp_path_factory.mktemp("shard")
    status = run_convert(
        "shapes", "--output_dir", folder, "--split", "train", "--count", "4", "--height", "32", "--width", "32"
    )
    assert status == 0
    (path,) = folder.glob("*.tfrecord")
    return path.read_bytes()


def changed_shard(generator: random.Random, content: bytes) -> bytes:
    """Changes the length of the first record, or any bytes."""
    if generator.random() < 0.5:
        length = generator.choice((0, 1, 2**20, 2**31, 2**40, 2**60, 2**62, 2**63, 2**64 - 1))
        header = struct.pack("<Q", length)
        checksum = struct.pack("<I", records.masked_checksum(header)) if generator.random() < 0.7 else content[8:12]
        return header + checksum + content[12 : generator.choice((12, 40, 76, len(content)))]
    return changed_bytes(generator, content)


@pytest.mark.parametrize("skip_damaged", [False, True])
def test_shards_are_read_or_refused(tmp_path, shard, skip_damaged):
    path = tmp_path / "train-00000-of-00001.tfrecord"

    def parse(serialized):
        return panoptic.parse_example(serialized)

    def read(changed: bytes) -> None:
        path.write_bytes(changed)
        with record_streams.naming_bad_records(lambda: [str(path)], parse):
            dataset = record_streams.examples_in_order([str(path)], parse, skip_damaged=skip_damaged)
            examples = list(dataset)
        assert skip_damaged or len(examples) == 4
        for example in examples:
            assert example.image.shape == (32, 32, 3) and example.label.shape == (32, 32)

    fuzz(60, shard, changed_shard, read)


# --- texts ---


EXPERIMENT = (REPOSITORY / "configs" / "shapes" / "max_deeplab_tiny_81.textproto").read_text()


def test_experiments_are_loaded_or_refused(tmp_path, monkeypatch):
    path = tmp_path / "experiment.textproto"
    monkeypatch.setenv("SHAPES_TFRECORDS", str(tmp_path))

    def read(changed: bytes) -> None:
        path.write_bytes(changed)
        experiment = config.load_experiment(str(path))
        assert all(math.isfinite(value) for value in _numbers(experiment))

    fuzz(200, EXPERIMENT, changed_text, read)


def _numbers(message):
    for _, value in message.ListFields():
        for part in [value] if isinstance(value, (str, bytes, int, float)) or hasattr(value, "ListFields") else value:
            if hasattr(part, "ListFields"):
                yield from _numbers(part)
            elif isinstance(part, float):
                yield part


def test_class_tables_are_loaded_or_refused(tmp_path):
    path = tmp_path / "dataset_info.textproto"

    def read(changed: bytes) -> None:
        path.write_bytes(changed)
        info = class_table.load(str(path))
        assert class_table.parse(class_table.to_text(info)) == info
        assert all(0 <= part <= 255 for row in info.classes for part in row.color)

    fuzz(200, class_table.to_text(TABLE), changed_text, read)


@pytest.mark.parametrize(
    "reader, content",
    [
        (class_names.read_class_names, "1: cell: thing\n2: background: stuff\n\n# note\n3: other"),
        (
            class_names.read_color_table,
            "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncell:255,0,0::\nborder:1,2,3::",
        ),
    ],
)
def test_lists_of_names_are_read_or_refused(tmp_path, reader, content):
    path = tmp_path / "names.txt"

    def read(changed: bytes) -> None:
        path.write_bytes(changed)
        assert reader(str(path))

    fuzz(150, content, changed_text, read)


# --- checkpoints ---


def test_the_list_of_checkpoints_cannot_lead_elsewhere(tmp_path):
    """Whatever the file `checkpoint` says, the newest checkpoint of the folder is found and nothing else is touched."""
    model_dir, outside = tmp_path / "model", tmp_path / "outside"
    outside.mkdir()
    (outside / "ckpt-1.index").write_text("somebody's")
    model, step = tf.Module(), tf.Variable(0, dtype=tf.int64)
    model.weight = tf.Variable(1.0)

    def checkpoints() -> Checkpoints:
        return Checkpoints(str(model_dir), model=model, global_step=step, keep=2, log=lambda line: None)

    for number in (1, 2):
        step.assign(number)
        checkpoints().save()
    text = (model_dir / "checkpoint").read_text()
    hostile = ["../outside/ckpt-1", str(outside / "ckpt-1"), "ckpt-9", "", "*"]
    for number in range(40):
        generator = random.Random(number)
        (model_dir / "checkpoint").write_bytes(
            changed_text(
                generator,
                text.replace("ckpt-1", generator.choice(hostile)).replace("ckpt-2", generator.choice(hostile)),
            )
        )
        assert checkpoints().restore_latest().step == 2 + number
        with open_checkpoint(str(model_dir)) as found:
            assert found.prefix == str(model_dir / f"ckpt-{2 + number}")
        step.assign(3 + number)
        checkpoints().save()
        assert len(list(model_dir.glob("*.index"))) == 2 and len(list(model_dir.glob("*.data-*"))) == 2
    assert [path.name for path in outside.iterdir()] == ["ckpt-1.index"]


def test_archives_are_unpacked_or_refused(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in ("ckpt-1.index", "ckpt-1.data-00000-of-00001"):
            entry = tarfile.TarInfo(f"folder/{name}")
            entry.size = 300
            archive.addfile(entry, io.BytesIO(b"x" * 300))
    path = tmp_path / "checkpoint.tar.gz"

    def read(changed: bytes) -> None:
        path.write_bytes(changed)
        folder = tmp_path / f"unpacked_{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        archives.unpack(str(path), str(folder))
        for file in folder.rglob("*"):
            assert file.is_dir() or file.stat().st_size <= 300

    fuzz(150, buffer.getvalue(), changed_bytes, read)
    assert all(name.name.startswith(("unpacked_", "checkpoint")) for name in tmp_path.iterdir())
