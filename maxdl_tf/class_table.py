"""Class tables: the classes of a data set, as a textproto, as JSON, or built from categories.

The class table also has the rule by which the images of the data set get 8 bits.
"""

from __future__ import annotations

import colorsys
import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from maxdl_tf.errors import UserError
from maxdl_tf.files import storage
from maxdl_tf.files.intensity import IntensityRule, Percentiles, Range

if TYPE_CHECKING:
    from maxdl_tf.protos import dataset_pb2

FILE_NAME = "dataset_info.textproto"  # File of the class table in the folder of the shards.
JSON_FILE_NAME = "dataset_info.json"  # The same in exports, for programs without protocol buffers.
_BLACK = (0, 0, 0)


@dataclass(frozen=True)
class SegmentClass:
    """One row of a class table.

    Attributes:
      id: Class id in label maps and TFRecords, at least 1.
      name: Human-readable name.
      is_thing: Whether the class has instances; False for stuff.
      color: (red, green, blue) in pictures, 0..255.
      source_id: Class id in the original annotations (COCO: the official category id, 1..200). Predictions in COCO
        format use it.
    """

    id: int
    name: str
    is_thing: bool
    color: tuple[int, int, int]
    source_id: int


@dataclass(frozen=True)
class DatasetInfo:
    """Class table of a data set, with the numbers that encode its label maps and the rule for values of its images.

    A pixel of a label map is `class id * label_divisor + instance`. Instances of a thing class count from 1, and
    instance 0 is a crowd. Stuff has instance 0. Pixels without a label are void: `ignore_label * label_divisor`.

    `intensity` maps values of more than 8 bits to 0..255; None if the data set has no rule.
    """

    name: str
    classes: tuple[SegmentClass, ...]
    label_divisor: int = 256
    ignore_label: int = 0
    intensity: IntensityRule | None = None

    def __post_init__(self):
        ids = [c.id for c in self.classes]
        if not ids:
            raise ValueError(f"data set {self.name!r} has no classes; list at least one")
        if len(set(ids)) != len(ids):
            repeated = sorted({i for i in ids if ids.count(i) > 1})
            raise ValueError(
                f"data set {self.name!r}: class ids {repeated} occur more than once; class ids must be unique"
            )
        if min(ids) < 1:
            raise ValueError(f"data set {self.name!r}: class id {min(ids)}; class ids start at 1")
        if self.ignore_label in ids:
            raise ValueError(
                f"data set {self.name!r}: ignore_label {self.ignore_label} is also a class id; choose another"
            )
        if self.ignore_label < 0 or self.label_divisor < 2:
            raise ValueError(
                f"data set {self.name!r}: ignore_label {self.ignore_label} must be at least 0 and "
                f"label_divisor {self.label_divisor} at least 2"
            )
        largest = (max(*ids, self.ignore_label) + 1) * self.label_divisor - 1
        if largest >= 2**31:
            raise ValueError(
                f"data set {self.name!r}: label_divisor {self.label_divisor} makes labels up to {largest}; they must "
                "be below 2^31, so use a smaller one"
            )

    @cached_property
    def thing_ids(self) -> tuple[int, ...]:
        """Class ids of things, ascending."""
        return tuple(sorted(c.id for c in self.classes if c.is_thing))

    @cached_property
    def stuff_ids(self) -> tuple[int, ...]:
        """Class ids of stuff, ascending."""
        return tuple(sorted(c.id for c in self.classes if not c.is_thing))

    @cached_property
    def class_order(self) -> tuple[int, ...]:
        """Class ids in the order of the class logits: things, then stuff. Void is not among them."""
        return self.thing_ids + self.stuff_ids

    @property
    def num_semantic_channels(self) -> int:
        """Number of channels of the auxiliary semantic head: class ids, including void, are channel numbers."""
        return max(*self.class_order, self.ignore_label) + 1

    @property
    def void(self) -> int:
        """Value of void pixels in a label map."""
        return self.ignore_label * self.label_divisor

    @cached_property
    def by_id(self) -> dict[int, SegmentClass]:
        """{class id: class}."""
        return {c.id: c for c in self.classes}

    @cached_property
    def by_source_id(self) -> dict[int, SegmentClass]:
        """{source id: class}.

        Raises:
          UserError: Two classes have the same source id.
        """
        rows: dict[int, SegmentClass] = {}
        for row in self.classes:
            other = rows.setdefault(row.source_id, row)
            if other is not row:
                raise UserError(
                    f"data set {self.name!r}: classes {other.id} and {row.id} have the source_id {row.source_id}; a "
                    "converter needs a different one for each class"
                )
        return rows


def load(path: str) -> DatasetInfo:
    """Reads a class table from a textproto file.

    Raises:
      UserError: The file cannot be read or is not a valid class table; the message has the file and the line.
    """
    return parse(storage.read_text(path), path)


def parse(text: str, name: str = "dataset info") -> DatasetInfo:
    """Parses the textproto of a class table.

    Args:
      text: The textproto.
      name: Name of the text in error messages.

    Raises:
      UserError: The text is not a valid class table; the message has the name and the line.
    """
    from google.protobuf import text_format

    from maxdl_tf.files import textproto
    from maxdl_tf.protos import dataset_pb2

    message = textproto.parse(text, dataset_pb2.DatasetInfo(), name)
    for field, value, requirement in textproto.wrong_numbers(message):
        raise UserError(f"{name}: {field} {value}: {requirement}")
    classes = []
    for entry in message.segment_class:
        if not entry.HasField("id") or not entry.name:
            raise UserError(f"{name}: a segment_class has no id or no name: {text_format.MessageToString(entry)!r}")
        color = (entry.color.red, entry.color.green, entry.color.blue)
        source_id = entry.source_id if entry.HasField("source_id") else entry.id
        classes.append(SegmentClass(entry.id, entry.name, entry.is_thing, color, source_id))
    rule = _rule_of(message.intensity, name) if message.HasField("intensity") else None
    try:
        return DatasetInfo(message.name, tuple(classes), message.label_divisor, message.ignore_label, rule)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error


def parse_intensity(text: str, name: str) -> IntensityRule:
    """Parses a rule, the textproto of an `Intensity`, such as "range { low: 0 high: 4095 }".

    Args:
      text: The textproto.
      name: Name of the text in error messages.

    Raises:
      UserError: The text is not a rule.
    """
    from maxdl_tf.files import textproto
    from maxdl_tf.protos import dataset_pb2

    message = textproto.parse(text, dataset_pb2.Intensity(), name)
    for field, value, requirement in textproto.wrong_numbers(message):
        raise UserError(f"{name}: {field} {value}: {requirement}")
    return _rule_of(message, name)


def _rule_of(message: dataset_pb2.Intensity, name: str) -> IntensityRule:
    kind = message.WhichOneof("rule")
    if kind is None:
        raise UserError(f"{name}: intensity has no rule; set range {{ low: 0 high: 4095 }} or percentiles {{ }}")
    limits = getattr(message, kind)
    if limits.low >= limits.high:
        raise UserError(
            f"{name}: intensity {kind} {{ low: {limits.low:g} high: {limits.high:g} }}: high must be above low"
        )
    return (Range if kind == "range" else Percentiles)(limits.low, limits.high)


def to_text(info: DatasetInfo) -> str:
    """Formats a class table as a textproto; the inverse of `parse`."""
    from google.protobuf import text_format

    from maxdl_tf.protos import dataset_pb2

    message = dataset_pb2.DatasetInfo(name=info.name, label_divisor=info.label_divisor, ignore_label=info.ignore_label)
    for entry in info.classes:
        red, green, blue = entry.color
        message.segment_class.add(
            id=entry.id,
            name=entry.name,
            is_thing=entry.is_thing,
            color=dataset_pb2.Color(red=red, green=green, blue=blue),
            source_id=entry.source_id,
        )
    if info.intensity:
        limits = message.intensity.range if isinstance(info.intensity, Range) else message.intensity.percentiles
        limits.low, limits.high = info.intensity.low, info.intensity.high
    return text_format.MessageToString(message)


def to_json(info: DatasetInfo) -> str:
    """Formats a class table as JSON: attributes of `DatasetInfo` by name, with a line for each row of `classes`.

    `intensity` is {"range": {"low": 0.0, "high": 4095.0}} or the same with "percentiles"; it is absent without a rule.
    """
    names = ("name", "label_divisor", "ignore_label", "void", "thing_ids", "class_order")
    table = {name: getattr(info, name) for name in names}
    if info.intensity:
        kind = "range" if isinstance(info.intensity, Range) else "percentiles"
        table["intensity"] = {kind: dataclasses.asdict(info.intensity)}
    rows = ",\n  ".join(json.dumps(dataclasses.asdict(row)) for row in info.classes)
    return f'{json.dumps(table)[:-1]}, "classes": [\n  {rows}\n]}}\n'


def of_dataset(options: dataset_pb2.DatasetOptions, name: str = "the data set") -> DatasetInfo:
    """Reads the class table of a data set: from `num_classes`, `dataset_info`, or the file in the shards' folder.

    If `dataset_info` has no rule for values of more than 8 bits, that of the file in the shards' folder holds: the
    pixels of the shards were made by it. The folder must be local.

    Args:
      options: The data set.
      name: Name of its field in errors, such as `eval_dataset`.

    Raises:
      UserError: The data set has no class table, or the class table is not valid.
    """
    if options.num_classes:
        numbers = range(1, options.num_classes + 1)
        rows = [SourceClass(number, str(number), False, _BLACK) for number in numbers]
        return from_source_classes(rows, f"{options.num_classes} classes")
    from maxdl_tf.files import textproto

    pattern = options.file_pattern[0] if options.file_pattern else ""
    path = os.path.join(os.path.dirname(pattern), FILE_NAME)
    if options.dataset_info:
        textproto.check_placeholders(options.dataset_info, f"{name}.dataset_info")
        if not storage.exists(options.dataset_info):
            raise UserError(
                f"{name}.dataset_info {options.dataset_info!r} does not exist; fix the path, or set an empty one to "
                "use the class table in the folder of the shards"
            )
        info = load(options.dataset_info)
        if info.intensity is None and pattern and os.path.isfile(path):
            info = dataclasses.replace(info, intensity=load(path).intensity)
        return info
    textproto.check_placeholders(pattern, f"{name}.file_pattern")
    if not os.path.exists(path) and not storage.is_remote(path):
        raise UserError(
            f"no class table: {path} does not exist, and {name} sets no dataset_info; convert the data with "
            "maxdl-convert, which writes one, or set dataset_info"
        )
    return load(path)


class SourceClass(NamedTuple):
    """A class as the original annotations define it.

    Attributes:
      source_id: Class id in the annotations.
      name: Human-readable name.
      is_thing: Whether the class has instances.
      color: (red, green, blue), 0..255; None for one that differs from those of the neighbors in the table.
    """

    source_id: int
    name: str
    is_thing: bool
    color: tuple[int, int, int] | None = None


def from_source_classes(rows: Iterable[SourceClass], name: str, label_divisor: int = 256) -> DatasetInfo:
    """Builds a class table: class ids count from 1 in the order of the source ids, and void is 0.

    Raises:
      ValueError: The table is not valid; it has no class, for example.
    """
    classes = [
        SegmentClass(rank + 1, row.name, row.is_thing, row.color or _distinct_color(rank), row.source_id)
        for rank, row in enumerate(sorted(rows, key=lambda row: row.source_id))
    ]
    return DatasetInfo(name, tuple(classes), label_divisor)


def _distinct_color(rank: int) -> tuple[int, ...]:
    """RGB, 0..255. Hues a golden angle apart differ clearly from the last few."""
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(0.618034 * rank % 1, 0.55 + 0.3 * (rank % 2), 0.9))
