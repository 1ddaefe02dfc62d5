"""Runs maxdl-convert and reads its output."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from PIL import Image

from maxdl_tf import class_table
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data import panoptic
from maxdl_tf.data_gen import convert


def run_convert(name: str, *arguments) -> int:
    """Runs maxdl-convert in this process, with --processes=1 unless given; returns the exit status.

    The flags of the converter are reset afterwards.
    """
    flags = convert.CONVERTERS[name].FLAGS
    saved = flagsaver.save_flag_values(flags)
    arguments = [str(argument) for argument in arguments]
    if not any(argument.startswith("--processes") for argument in arguments):
        arguments.append("--processes=1")
    try:
        with pytest.raises(SystemExit) as exit_status:
            convert.run(["maxdl-convert", name, *arguments])
    finally:
        flagsaver.restore_flag_values(saved, flags)
    return exit_status.value.code or 0


class Converted(NamedTuple):
    """The class table; {image id: int32 [height, width]}; {image id: uint8 [height, width, 3]}."""

    info: DatasetInfo
    labels: dict[str, np.ndarray]
    images: dict[str, np.ndarray]

    def semantics(self) -> list[tuple[str, bool, int]]:
        """Name, is_thing and source_id of each class, by id."""
        assert [row.id for row in self.info.classes] == list(range(1, len(self.info.classes) + 1))
        return [(row.name, row.is_thing, row.source_id) for row in self.info.classes]


def read_converted(folder: Path, split: str = "train") -> Converted:
    labels, images = {}, {}
    for record in tf.data.TFRecordDataset(sorted(str(path) for path in folder.glob(f"{split}-*.tfrecord"))):
        example = panoptic.parse_example(record)
        image_id = example.image_id.numpy().decode()
        assert image_id not in labels
        labels[image_id], images[image_id] = example.label.numpy(), example.image.numpy()
    return Converted(class_table.load(str(folder / class_table.FILE_NAME)), labels, images)


def save_image(path: Path, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Writes a PNG of noise; returns its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, [height, width, 3], dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def save_map(path: Path, values, dtype=np.uint8) -> None:
    """Writes a PNG of the values: gray with 8 or 16 bits, or with channels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype)).save(path)


def complaint(capsys) -> str:
    """The error line on stderr of a command that exited with status 2."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("maxdl-convert")]
    return line
