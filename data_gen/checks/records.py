"""Checks TFRecord shards: every frame, image and label map, as training would read them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maxdl_tf import panoptic_ids
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data import examples, records
from maxdl_tf.data_gen.checks import pictures as check_pictures
from maxdl_tf.data_gen.checks.findings import Finding, ImageReport, SegmentFacts, Split

_SHARD = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<ending>\..+)?")


@dataclass(frozen=True)
class RecordChecker:
    """Checks files in any process.

    Attributes:
      split: Name of the split.
      dataset_info: The class table.
      num_slots: Segments that the network can tell apart in an image.
    """

    split: str
    dataset_info: DatasetInfo
    num_slots: int

    def __call__(self, path: str) -> list[ImageReport]:
        """A report of each record of a file, the damaged ones included."""
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
            self._check_labels(label, find, report)
        return report

    def _check_image(self, features: dict[str, Any], find, report: ImageReport) -> None:
        picture = check_pictures.inspect_image(features[examples.IMAGE_ENCODED])
        for kind, what in picture.faults:
            find(kind, what)
        if picture.pixels is None:
            return
        report.size, report.digest, report.mode = picture.pixels.shape[:2], picture.digest, picture.mode
        said = features.get(examples.IMAGE_FORMAT, b"").decode(errors="replace").lower().replace("jpg", "jpeg")
        if said and said != picture.format:
            find("image-format-wrong", f"a {picture.format} image, and the example says {said}")
        if report.size != said_size(features):
            find("image-size", _sizes(report.size, said_size(features)))

    def _label_map(self, features: dict[str, Any], find) -> np.ndarray | None:
        try:
            label = decode_label_map(features)
        except Exception as error:  # Pillow's decoders raise what they like on broken files.
            find("label-undecodable", f"a label map that cannot be decoded: {error}")
            return None
        if label.shape != said_size(features):
            find("label-size", _sizes(label.shape, said_size(features)))
        return label

    def _check_labels(self, label: np.ndarray, find, report: ImageReport) -> None:
        info = self.dataset_info
        values, counts = np.unique(label, return_counts=True)
        classes, instances = panoptic_ids.decode_label(values, info.label_divisor)
        unknown: dict[int, int] = {}
        for value, class_id, instance, area in zip(
            values.tolist(), classes.tolist(), instances.tolist(), counts.tolist()
        ):
            row = info.by_id.get(class_id)
            if class_id == info.ignore_label:
                report.void += area
            elif row is None:
                unknown[class_id] = unknown.get(class_id, 0) + area
            else:
                if instance and not row.is_thing:
                    find("stuff-instance", f"{row.name!r} is stuff and has instance {instance}", value)
                report.segments.append(SegmentFacts(class_id, area, row.is_thing and instance == 0))
        for class_id, area in unknown.items():
            find("class-unknown", f"{area} pixels of class {class_id}, which {info.name!r} does not have")
        if report.void == label.size:
            find("all-void", "no pixel belongs to a segment")
        objects = sum(not segment.is_crowd for segment in report.segments)
        if objects > self.num_slots:
            find("too-many-segments", f"{objects} segments, and there are {self.num_slots} slots")
        is_segment = classes != info.ignore_label
        for value, what in check_pictures.tiny_segments(values[is_segment], counts[is_segment]):
            find("segment-tiny", what, value)
        for value, what in check_pictures.holes(label, info.void):
            find("hole", what, value)


def read_example(data: bytes) -> dict[str, Any]:
    """The features that training needs, each a value.

    Raises:
      ValueError: It is no example, or one of them is missing.
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


def said_size(features: dict[str, Any]) -> tuple[int, int]:
    """(height, width) that the example gives."""
    return features[examples.IMAGE_HEIGHT], features[examples.IMAGE_WIDTH]


def decode_label_map(features: dict[str, Any]) -> np.ndarray:
    """int32 [height, width] of an example's features.

    Raises:
      Exception: It cannot be decoded.
    """
    label_format = features.get(examples.LABEL_FORMAT, b"raw").decode(errors="backslashreplace")
    return examples.decode_label_map(features[examples.LABEL_ENCODED], label_format, said_size(features))


def check_shard_names(split: str, paths: Sequence[str]) -> Iterator[Finding]:
    """Shards that are missing of NAME-00000-of-00008, and shards of two conversions that one pattern matches."""
    numbers: dict[tuple[str, str], dict[int, set[int]]] = {}
    for path in paths:
        match = _SHARD.fullmatch(path)
        if match:
            sets = numbers.setdefault((match["name"], match["ending"] or ""), {})
            sets.setdefault(int(match["count"]), set()).add(int(match["number"]))
    for (name, ending), sets in numbers.items():
        if len(sets) > 1:
            counts = " and ".join(f"-of-{count:05d}" for count in sorted(sets))
            yield Finding("shards-mixed", split, f"{name}-*{ending}", f"shards {counts}")
        for count, there in sets.items():
            for number in sorted(set(range(count)) - there):
                yield Finding("shard-missing", split, f"{name}-{number:05d}-of-{count:05d}{ending}", "is not there")


def repeated_ids(split: Split) -> Iterator[Finding]:
    """Records whose image id an earlier record has."""
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


def _sizes(got: tuple[int, int], said: tuple[int, int]) -> str:
    return f"{got[0]} x {got[1]} (height x width), and the example says {said[0]} x {said[1]}"
