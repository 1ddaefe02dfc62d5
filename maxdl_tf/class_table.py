"""Class tables: the classes of a data set, read from and written to textproto, or built from COCO categories."""

from __future__ import annotations

import colorsys
import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from maxdl_tf.errors import UserError
from maxdl_tf.files import storage

if TYPE_CHECKING:
    from maxdl_tf.protos import dataset_pb2

FILE_NAME = "dataset_info.textproto"  # The class table beside the shards of a data set.


@dataclass(frozen=True)
class SegmentClass:
    """One row of a class table.

    Attributes:
      id: The id in label maps and TFRecords, at least 1.
      name: For people.
      is_thing: True if its instances are told apart, False for stuff.
      color: (red, green, blue), 0..255, for pictures.
      source_id: The id in the annotations that the data set came from (COCO: the official
        category id, 1..200), written back by predictions in COCO format.
    """

    id: int
    name: str
    is_thing: bool
    color: tuple[int, int, int]
    source_id: int


@dataclass(frozen=True)
class DatasetInfo:
    """A data set's class table and the numbers that its label maps are coded with.

    A pixel of a label map is `class id * label_divisor + instance`. Instances of things count from
    1; instance 0 of a thing class is a crowd; stuff always has instance 0. Pixels without a label
    are void: `ignore_label * label_divisor`.
    """

    name: str
    classes: tuple[SegmentClass, ...]
    label_divisor: int = 256
    ignore_label: int = 0

    def __post_init__(self):
        ids = [c.id for c in self.classes]
        if not ids:
            raise ValueError(f"data set {self.name!r} has no classes; list at least one")
        if len(set(ids)) != len(ids):
            repeated = sorted({i for i in ids if ids.count(i) > 1})
            raise ValueError(f"data set {self.name!r}: class ids {repeated} occur more than once; ids must be unique")
        if min(ids) < 1:
            raise ValueError(f"data set {self.name!r}: class id {min(ids)}; ids start at 1")
        if self.ignore_label in ids:
            raise ValueError(
                f"data set {self.name!r}: ignore_label {self.ignore_label} is also the id of a class; take another"
            )
        if self.ignore_label < 0 or self.label_divisor < 2:
            raise ValueError(
                f"data set {self.name!r}: ignore_label {self.ignore_label} must be at least 0 and "
                f"label_divisor {self.label_divisor} at least 2"
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
        """The class ids in the order of the class head's logits: things, then stuff (void follows)."""
        return self.thing_ids + self.stuff_ids

    @property
    def num_semantic_channels(self) -> int:
        """Channels of the auxiliary semantic head: class ids are channel numbers, void's included."""
        return max(*self.class_order, self.ignore_label) + 1

    @property
    def void(self) -> int:
        """The value of void pixels in a label map."""
        return self.ignore_label * self.label_divisor

    @cached_property
    def by_id(self) -> dict[int, SegmentClass]:
        return {c.id: c for c in self.classes}


def load(path: str) -> DatasetInfo:
    """Reads a DatasetInfo textproto.

    Raises:
      UserError: With file and line, if the file cannot be read or is not a valid class table.
    """
    return parse(storage.read_text(path), path)


def parse(text: str, name: str = "dataset info") -> DatasetInfo:
    """Parses a DatasetInfo textproto; `name` stands for it in error messages.

    Raises:
      UserError: With name and line, if it is not a valid class table.
    """
    from google.protobuf import text_format

    from maxdl_tf.files import textproto
    from maxdl_tf.protos import dataset_pb2

    message = textproto.parse(text, dataset_pb2.DatasetInfo(), name)
    classes = []
    for entry in message.segment_class:
        if not entry.id or not entry.name:
            raise UserError(f"{name}: a segment_class lacks its id or its name: {text_format.MessageToString(entry)!r}")
        color = (entry.color.red, entry.color.green, entry.color.blue)
        classes.append(SegmentClass(entry.id, entry.name, entry.is_thing, color, entry.source_id or entry.id))
    try:
        return DatasetInfo(message.name, tuple(classes), message.label_divisor, message.ignore_label)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error


def to_text(info: DatasetInfo) -> str:
    """The inverse of `parse`."""
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
    return text_format.MessageToString(message)


def of_dataset(options: dataset_pb2.DatasetOptions) -> DatasetInfo:
    """The class table of a data set: `num_classes`, the file it names, or the file beside its shards.

    Raises:
      UserError: There is no class table, or it is not valid.
    """
    if options.num_classes:
        numbers = range(1, options.num_classes + 1)
        classes = tuple(SegmentClass(number, str(number), False, (0, 0, 0), number) for number in numbers)
        return DatasetInfo(f"{options.num_classes} classes", classes)
    if options.dataset_info:
        return load(options.dataset_info)
    path = os.path.join(os.path.dirname(options.file_pattern[0]), FILE_NAME)
    if not os.path.exists(path) and not storage.is_remote(path):
        raise UserError(
            f"no class table: {path} does not exist and the data set names no dataset_info; convert the data with "
            "maxdl-convert, which writes one, or set dataset_info"
        )
    return load(path)


def from_categories(
    categories: list[dict[str, Any]], source: str | os.PathLike, name: str, label_divisor: int = 256
) -> DatasetInfo:
    """The class table of a category list: ids from 1 in the order of the category ids, void 0.

    Raises:
      UserError: If the list is empty or an entry lacks something.
    """
    if not categories:
        raise UserError(f"{source} lists no categories; pass a class table with --dataset_info")
    classes = []
    for rank, category in enumerate(sorted(categories, key=lambda category: category["id"])):
        missing = [key for key in ("name", "isthing") if key not in category]
        if missing:
            raise UserError(
                f"{source}: category {category['id']} has no {missing[0]!r}; add it, or pass --dataset_info"
            )
        color = tuple(category.get("color") or distinct_color(rank))
        classes.append(SegmentClass(rank + 1, category["name"], bool(category["isthing"]), color, category["id"]))
    try:
        return DatasetInfo(name, tuple(classes), label_divisor)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error


def distinct_color(rank: int) -> tuple[int, ...]:
    """RGB 0..255; hues a golden angle apart never come close to their last few predecessors."""
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(0.618034 * rank % 1, 0.55 + 0.3 * (rank % 2), 0.9))
