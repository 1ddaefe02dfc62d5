"""Every writer names the file and what to do if the disk is full, in one line."""

from __future__ import annotations

import functools
import importlib.util
import os

import numpy as np
import pytest
import tensorflow as tf
from absl import flags

from maxdl_tf import beam_pipeline, command_line
from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.data_gen import shard_writer
from maxdl_tf.data_gen.annotated_images import AnnotatedImage
from maxdl_tf.data_gen.shard_output import Output
from maxdl_tf.drawing import html_page
from maxdl_tf.evaluation import submission
from maxdl_tf.evaluation.segment_map import SegmentMap
from maxdl_tf.files import images, storage

INFO = DatasetInfo("test", (SegmentClass(1, "thing", True, (1, 2, 3), 1),))
NOISE = os.urandom(300_000)


def _submission(folder) -> None:
    segments = np.frombuffer(NOISE, np.uint8).reshape(300, 1000)
    with submission.open_submission(f"{folder}/sub", "val_test") as writer:
        writer.add(1, SegmentMap(segments, []), {})
        with open(f"{folder}/big", "wb") as file:  # The zip meets a full disk.
            file.write(NOISE)


def _convert(folder, runner=None) -> None:
    def annotate(task):
        del task
        return AnnotatedImage(NOISE, "png", np.full([2, 3], 256), "image")

    shard_writer.write_shards([1], annotate, INFO, Output(f"{folder}/out", "train", runner=runner))


def _in_worker(folder) -> None:
    storage.make_folder(f"{folder}/beam")
    work = functools.partial(_write_much, f"{folder}/result")
    beam_pipeline.run_chunks(work, {"0": [1]}, f"{folder}/beam", "DirectRunner")


def _write_much(path, name, chunk) -> None:
    del name, chunk
    with open(path, "wb") as file:
        file.write(NOISE)


def _checkpoint(folder) -> None:
    tf.train.Checkpoint(weights=tf.Variable(tf.random.normal([100_000]))).write(f"{folder}/x")


needs_beam = pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason="Apache Beam is not installed")
WRITERS = {
    "report": lambda folder: html_page.write_page(f"{folder}/report.html", "x", html_page.paragraph(NOISE.hex())),
    "metrics": lambda folder: storage.write_json(f"{folder}/metrics.json", NOISE.hex()),
    "picture": lambda folder: images.write_image(
        f"{folder}/x.png", np.frombuffer(NOISE, np.uint8).reshape(100, 1000, 3)
    ),
    "submission": _submission,
    "conversion": _convert,
    "checkpoint": _checkpoint,
}


@pytest.mark.parametrize("writer", [*WRITERS, *(pytest.param(n, marks=needs_beam) for n in ("worker", "Beam"))])
def test_the_path_and_the_advice_are_in_one_line(small_disk, capsys, caplog, writer):
    write = {**WRITERS, "worker": _in_worker, "Beam": lambda folder: _convert(folder, "DirectRunner")}[writer]
    with pytest.raises(SystemExit) as stopped:
        command_line.run(lambda argv: write(small_disk), flags.FlagValues(), ["command"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and "cannot write" not in caplog.text
    assert line.startswith("command: cannot write ") and f"{small_disk}/" in line
    assert "No space left on device; " in line and "choose another" in line
    assert not [name for name in os.listdir(small_disk) if name not in ("big", "beam", "result", "x_temp")]


def test_other_errors_are_bugs_and_keep_their_traceback():
    def main(argv):
        raise OSError(5, "Input/output error", "x")

    with pytest.raises(OSError):
        command_line.run(main, flags.FlagValues(), ["command"])
