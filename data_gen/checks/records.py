r"""Checks TFRecord shards: damaged records, images and label maps that do not match, missing shards.

Give --file_pattern once for each split. Images that occur in two splits are found by their pixels. The check changes no
file.

Exit status: 0 without errors (warnings and notes are possible), 1 with errors, 2 if the check could not run.

Example:
  maxdl-check-data tfrecords --file_pattern 'data/train-*.tfrecord' --file_pattern 'data/val-*.tfrecord'
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from absl import flags

from maxdl_tf import class_table
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data import examples, records, shards
from maxdl_tf.data_gen.checks import command, images
from maxdl_tf.data_gen.checks.findings import Finding, ImageReport, Loaded, Split
from maxdl_tf.data_gen.checks.images import Find

FLAGS = flags.FlagValues()
_FILE_PATTERN = flags.DEFINE_multi_string(
    "file_pattern", None, "Glob of the shards of a split.", required=True, flag_values=FLAGS
)
_DATASET_INFO = flags.DEFINE_string(
    "dataset_info",
    None,
    "Class table; dataset_info.textproto in the folder of the first --file_pattern if not given.",
    flag_values=FLAGS,
)
command.define_flags(FLAGS)


def main(argv: list[str]) -> int:
    del argv
    options = command.read_flags(FLAGS)
    patterns = _FILE_PATTERN.value
    files = [shards.matching_shards(pattern, "--file_pattern") for pattern in patterns]
    folder = os.path.dirname(patterns[0])
    info = class_table.load(_DATASET_INFO.value or os.path.join(folder, class_table.FILE_NAME))
    names = [_split_name(pattern) for pattern in patterns]
    if len(set(names)) < len(names):
        names = list(patterns)
    splits = []
    for name, paths in zip(names, files):
        split = Split(name, {row.id: (row.name, row.is_thing) for row in info.classes})
        splits.append(split)
        split.findings.extend(check_shard_names(name, paths))
        checker = RecordChecker(name, info, options.num_slots)
        split.images.extend(command.check_all(f"checking {name}", checker, paths, "files", options.processes))
        split.findings.extend(repeated_ids(split))

    def load(split: Split, source: tuple[str, int]) -> Loaded:
        del split
        return load_record(*source, info)

    return command.write_reports(f"Check of {', '.join(names)}", splits, load, options)


def _split_name(pattern: str) -> str:
    """Name of a split: "train" for "data/train-*.tfrecord"."""
    return re.match(r"[\w.]*", os.path.basename(pattern)).group() or pattern


@dataclass(frozen=True)
class RecordChecker:
    """Checks files; it can be sent to other processes.

    Attributes:
      split: Name of the split.
      dataset_info: The class table.
      num_slots: Number of slots of the network.
    """

    split: str
    dataset_info: DatasetInfo
    num_slots: int

    def __call__(self, path: str) -> list[ImageReport]:
        """Returns a report of each record of a file, damaged records included."""
        try:
            return [self._check(path, entry) for entry in records.read_records(path)]
        except Exception as error:
            if not (isinstance(error, OSError) or hasattr(error, "error_code")):
                raise
            what = f"cannot be read: {error}"
            return [ImageReport(path, [Finding("record-damaged", self.split, path, what)])]

    def _check(self, path: str, entry: records.Record | records.Damage) -> ImageReport:
        report = ImageReport(os.path.basename(path))
        if isinstance(entry, records.Damage):
            what = f"{entry.what} (at byte {entry.offset})"
            report.findings.append(Finding("record-damaged", self.split, path, what, record=entry.number))
            return report

        def find(kind: str, what: str, segment: int | None = None) -> None:
            report.findings.append(Finding(kind, self.split, path, f"{name}{what}", segment, entry.number))

        name = ""
        try:
            features = read_example(entry.data)
        except ValueError as error:
            find("example-unreadable", str(error))
            return report
        report.source = (path, entry.number)
        report.name = features[examples.IMAGE_FILENAME].decode(errors="backslashreplace")
        name = f"image {report.name}: "
        self._check_image(features, find, report)
        label = self._label_map(features, find)
        if label is not None:
            images.check_label_map(label, self.dataset_info, self.num_slots, find, report)
        return report

    def _check_image(self, features: dict[str, Any], find: Find, report: ImageReport) -> None:
        image = images.check_image(features[examples.IMAGE_ENCODED], find, report)
        if image.pixels is None:
            return
        stated = features.get(examples.IMAGE_FORMAT, b"").decode(errors="replace").lower().replace("jpg", "jpeg")
        if stated and stated != image.format:
            find("image-format-wrong", f"a {image.format} image, but the record states {stated}")
        if image.stored_size != stated_size(features):
            find("image-size", _sizes(image.stored_size, stated_size(features)))

    def _label_map(self, features: dict[str, Any], find: Find) -> np.ndarray | None:
        try:
            label = decode_label_map(features)
        except Exception as error:  # Pillow's decoders raise many kinds of exceptions for broken files.
            find("label-undecodable", f"the label map cannot be decoded: {error}")
            return None
        if label.shape != stated_size(features):
            find("label-size", _sizes(label.shape, stated_size(features)))
        return label


def read_example(data: bytes) -> dict[str, Any]:
    """Returns {key: value} of a record; the features that training needs are there.

    Raises:
      ValueError: The record is not an example, or lacks a feature.
    """
    features = examples.read_features(data)
    for key, kind in (
        (examples.IMAGE_FILENAME, bytes),
        (examples.IMAGE_ENCODED, bytes),
        (examples.LABEL_ENCODED, bytes),
        (examples.IMAGE_HEIGHT, int),
        (examples.IMAGE_WIDTH, int),
    ):
        if not isinstance(features.get(key), kind):
            raise ValueError(f"has no {key} (one {'integer' if kind is int else 'string'})")
    return features


def stated_size(features: dict[str, Any]) -> tuple[int, int]:
    """The (height, width) that a record states."""
    return features[examples.IMAGE_HEIGHT], features[examples.IMAGE_WIDTH]


def decode_label_map(features: dict[str, Any]) -> np.ndarray:
    """Decodes the label map of a record: int32 [height, width]; a label map without a format is raw.

    Raises:
      Exception: The label map cannot be decoded.
    """
    label_format = features.get(examples.LABEL_FORMAT, b"raw").decode(errors="backslashreplace")
    return examples.decode_label_map(features[examples.LABEL_ENCODED], label_format, stated_size(features))


def load_record(path: str, number: int, dataset_info: DatasetInfo) -> Loaded:
    """Reads the image and the label map of a record."""
    record: Any = next(entry for entry in records.read_records(path) if entry.number == number)
    pixels = None
    try:
        features = read_example(record.data)
        pixels = images.inspect_image(features[examples.IMAGE_ENCODED]).pixels
        return images.loaded(pixels, decode_label_map(features), dataset_info)
    except Exception:  # The check has reported it.
        return Loaded(pixels, None)


def check_shard_names(split: str, paths: Sequence[str]) -> Iterator[Finding]:
    """Finds missing shards of NAME-00000-of-00008, and patterns that match the shards of two conversions."""
    sets = shards.sets_of(paths)
    for same in shards.mixed(sets):
        counts = " and ".join(f"-of-{found.count:05d}" for found in same)
        pattern = os.path.join(same[0].folder, f"{same[0].split}-*{same[0].ending}")
        yield Finding("shards-mixed", split, pattern, f"shards {counts}")
    for path in (path for found in sets for path in found.missing):
        yield Finding("shard-missing", split, path, "does not exist")


def repeated_ids(split: Split) -> Iterator[Finding]:
    """Finds records with the image id of an earlier record."""
    place_of: dict[str, tuple[str, int]] = {}
    for image in split.images:
        if image.source is None or not image.size:
            continue
        path, record = image.source
        if image.name in place_of:
            first_path, first_record = place_of[image.name]
            what = f"image {image.name} is also record {first_record} of {os.path.basename(first_path)}"
            yield Finding("record-id-repeated", split.name, path, what, record=record)
        place_of.setdefault(image.name, image.source)


def _sizes(got: tuple[int, int], stated: tuple[int, int]) -> str:
    return f"{got[0]} x {got[1]} (height x width), but the record states {stated[0]} x {stated[1]}"
