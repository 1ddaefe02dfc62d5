"""Shards have the same bytes for any number of processes, and a failed conversion leaves none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf import class_table
from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.data import examples
from maxdl_tf.data_gen import shapes, shard_writer
from maxdl_tf.data_gen.annotated_images import AnnotatedImage
from maxdl_tf.data_gen.shard_output import Output
from maxdl_tf.errors import UserError

THING, STUFF = SegmentClass(1, "thing", True, (1, 2, 3), 7), SegmentClass(2, "stuff", False, (0, 0, 0), 9)
INFO = DatasetInfo("test", (THING, STUFF))


@dataclass(frozen=True)
class Annotate:
    """Makes images numbered by their task; tasks in `bad` are bad input."""

    bad: frozenset[int] = frozenset()

    def __call__(self, task: int) -> AnnotatedImage:
        if task in self.bad:
            raise UserError(f"image_{task}.jpg: broken")
        return AnnotatedImage(b"pixels", "jpeg", np.full([2, 3], 256 + task), f"image_{task}")


def _ids(folder, split="train") -> list[list[str]]:
    """The image ids in each shard."""
    return [
        [
            tf.train.Example.FromString(record).features.feature[examples.IMAGE_FILENAME].bytes_list.value[0].decode()
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
        ]
        for path in sorted(folder.glob(f"{split}-*.tfrecord"))
    ]


def _bytes(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path):
    painter = shapes.Painter(40, 56, 3, seed=1, split="train")
    for processes in (1, 3):
        output = Output(str(tmp_path / str(processes)), "train", num_shards=3, processes=processes)
        shard_writer.write_shards(range(8), painter.annotate, shapes.dataset_info(), output)
    one, three = _bytes(tmp_path / "1"), _bytes(tmp_path / "3")
    assert one == three
    assert sorted(one) == ["dataset_info.textproto", *(f"train-{i:05d}-of-00003.tfrecord" for i in range(3))]


def test_tasks_keep_their_order_and_all_arrive(tmp_path):
    report = shard_writer.write_shards(range(10), Annotate(), INFO, Output(str(tmp_path), "train", num_shards=3))
    assert _ids(tmp_path) == [[f"image_{i}" for i in shard] for shard in (range(3), range(3, 6), range(6, 10))]
    assert (report.written, report.num_shards, report.skipped) == (10, 3, [])
    assert class_table.load(str(tmp_path / "dataset_info.textproto")) == INFO


def test_bad_input_stops_the_conversion_and_leaves_nothing(tmp_path):
    output = Output(str(tmp_path / "new" / "folder"), "train", num_shards=2)
    with pytest.raises(UserError, match="image_8"):
        shard_writer.write_shards(range(10), Annotate(frozenset({8})), INFO, output)
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_skipped_and_listed_on_request(tmp_path):
    output = Output(str(tmp_path), "train", num_shards=2, skip_bad_input=True)
    report = shard_writer.write_shards(range(6), Annotate(frozenset({1, 4})), INFO, output)
    assert report.written == 4
    assert report.skipped == ["image_1.jpg: broken", "image_4.jpg: broken"]
    assert "2 images skipped" in str(report) and "image_4.jpg: broken" in str(report)
    assert _ids(tmp_path) == [["image_0", "image_2"], ["image_3", "image_5"]]


def test_nothing_is_written_if_all_input_is_bad(tmp_path):
    output = Output(str(tmp_path), "train", skip_bad_input=True)
    with pytest.raises(UserError, match=r"all 2 images were skipped.*image_0"):
        shard_writer.write_shards(range(2), Annotate(frozenset({0, 1})), INFO, output)
    assert list(tmp_path.iterdir()) == []


def test_existing_shards_are_replaced_only_on_request(tmp_path):
    output = Output(str(tmp_path), "train", num_shards=3)
    shard_writer.write_shards(range(3), Annotate(), INFO, output)
    shard_writer.write_shards(range(2), Annotate(), INFO, replace(output, split="train-small", num_shards=1))
    before = _bytes(tmp_path)
    with pytest.raises(UserError, match="already has 3 shards"):
        shard_writer.write_shards(range(2), Annotate(), INFO, replace(output, num_shards=1))
    assert _bytes(tmp_path) == before
    shard_writer.write_shards(range(2), Annotate(), INFO, replace(output, num_shards=1, overwrite=True))
    assert [path.name for path in sorted(tmp_path.glob("*.tfrecord"))] == [
        "train-00000-of-00001.tfrecord",
        "train-small-00000-of-00001.tfrecord",
    ]


@pytest.mark.parametrize(
    "other, message",
    [
        (replace(INFO, label_divisor=512), "label_divisor is 256, here it is 512"),
        (replace(INFO, classes=(THING,)), "class 2 is .*stuff.* absent"),
        (replace(INFO, classes=(replace(THING, is_thing=False), STUFF)), "class 1 is .*thing"),
    ],
)
def test_splits_of_a_folder_agree_on_the_class_table(tmp_path, other, message):
    shard_writer.write_shards(range(2), Annotate(), INFO, Output(str(tmp_path), "train"))
    renamed = replace(INFO, name="other name")
    shard_writer.write_shards(range(2), Annotate(), renamed, Output(str(tmp_path), "val"))
    before = _bytes(tmp_path)
    with pytest.raises(UserError, match=message):
        shard_writer.write_shards(range(2), Annotate(), other, Output(str(tmp_path), "test"))
    assert _bytes(tmp_path) == before


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_shards": 5}, "num_shards=5 for 4 images"),
        ({"num_shards": 0}, "num_shards=0"),
        ({"processes": 0}, "processes=0"),
        ({"split": "../train"}, "split"),
        ({"split": ""}, "split"),
    ],
)
def test_invalid_options_are_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        shard_writer.write_shards(
            range(4), Annotate(), INFO, Output(str(tmp_path / "x"), **{"split": "train", **options})
        )
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="file"):
            shard_writer.write_shards(range(4), Annotate(), INFO, Output(str(directory), "train"))


def test_a_killed_run_leaves_no_shard_and_does_not_disturb_the_next(tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, "-m", "maxdl_tf.data_gen.convert", "shapes", f"--output_dir={output}"]
    process = subprocess.Popen(
        [*command, "--count=100000", "--num_shards=50000", "--processes=2"], stderr=subprocess.DEVNULL
    )
    try:
        staging = output / ".incomplete-train" / "new"
        deadline = time.monotonic() + 240
        while not (staging.is_dir() and len(list(staging.iterdir())) > 3):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        children = _children(process.pid)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert [path.name for path in output.iterdir()] == [".incomplete-train"]
    assert tf.io.gfile.glob([str(output / "*.tfrecord"), str(output / "train*")]) == []
    assert len(children) >= 2
    deadline = time.monotonic() + 60
    while any(_is_alive(child) for child in children):  # They must not wait for tasks forever.
        assert time.monotonic() < deadline
        time.sleep(0.05)
    painter = shapes.Painter(40, 40, 3, seed=1, split="train")
    shard_writer.write_shards(range(2), painter.annotate, shapes.dataset_info(), Output(str(output), "train"))
    assert sorted(path.name for path in output.iterdir()) == ["dataset_info.textproto", "train-00000-of-00001.tfrecord"]


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
