"""Class tables made of what is found in a data set, or of a list of names."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from maxdl_tf import class_table
from maxdl_tf.class_table import DatasetInfo, SegmentClass, distinct_color
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage


class ClassName(NamedTuple):
    """What a list of names says of a class; is_thing is None where it leaves that to the data."""

    name: str
    is_thing: bool | None = None


def read_class_names(path: str) -> dict[int, ClassName]:
    """Names of classes by the number that the data set has for them.

    A JSON file is a list of {"id", "name"} with or without "isthing", or a COCO file that has one as "categories". In
    any other file each line is `name`, numbered from 1, or `number: name`, or `number: name: thing` (or `stuff`);
    empty lines and those that start with # count for nothing.

    Raises:
      UserError: With file and line, if it cannot be read so.
    """
    text = storage.read_text(path)
    rows = _json_rows(text, path) if path.endswith(".json") else _text_rows(text, path)
    if not rows:
        raise UserError(f"{path} names no class; write a line `number: name` for each")
    names: dict[int, ClassName] = {}
    for number, row in rows:
        if number in names:
            raise UserError(f"{path}: class {number} has two names, {names[number].name!r} and {row.name!r}")
        names[number] = row
    return names


def _text_rows(text: str, path: str) -> list[tuple[int, ClassName]]:
    lines = [(at, line.strip()) for at, line in enumerate(text.splitlines(), start=1)]
    lines = [(at, line) for at, line in lines if line and not line.startswith("#")]
    numbered = [re.fullmatch(r"(\d+)\s*:\s*([^:]+?)\s*(?::\s*(thing|stuff))?", line) for _, line in lines]
    if not any(numbered) and not any(":" in line for _, line in lines):
        return [(number, ClassName(line)) for number, (_, line) in enumerate(lines, start=1)]
    for match, (at, line) in zip(numbered, lines):
        if not match:
            raise UserError(
                f"{path}, line {at}: {line!r}; wanted `number: name`, `number: name: thing` or `number: name: stuff`"
            )
    kinds = {"thing": True, "stuff": False, None: None}
    return [(int(match[1]), ClassName(match[2], kinds[match[3]])) for match in numbered]


def _json_rows(text: str, path: str) -> list[tuple[int, ClassName]]:
    try:
        content = json.loads(text)
        rows = content["categories"] if isinstance(content, dict) else content
        return [
            (int(row["id"]), ClassName(str(row["name"]), bool(row["isthing"]) if "isthing" in row else None))
            for row in rows
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path}: wanted a list of {{"id": 1, "name": "sky"}}: {error}') from error


def table_of(
    is_thing: Mapping[int, bool], names: Mapping[int, ClassName], dataset_name: str, label_divisor: int, source: str
) -> DatasetInfo:
    """A class table: ids from 1 in the order of the data set's numbers, which are the source_ids; void 0.

    Args:
      is_thing: Of each class found, whether it has instances.
      names: Of classes, found or not; one without a name is called class_NUMBER.
      dataset_name: Goes into the table.
      label_divisor: Goes into the table.
      source: Where the classes were found, for complaints.

    Raises:
      UserError: If there is no class.
    """
    numbers = sorted({*is_thing, *names})
    classes = []
    for rank, number in enumerate(numbers):
        row = names.get(number, ClassName(f"class_{number}"))
        thing = is_thing.get(number, False) if row.is_thing is None else row.is_thing
        classes.append(SegmentClass(rank + 1, row.name, thing, distinct_color(rank), number))
    if not classes:
        raise UserError(f"{source} has no class: all pixels of all images are void")
    return DatasetInfo(dataset_name, tuple(classes), label_divisor)


def table_of_earlier_split(output_dir: str) -> DatasetInfo | None:
    """The class table that an earlier conversion left in the output folder: its splits must agree on one."""
    path = f"{output_dir}/{class_table.FILE_NAME}"
    return class_table.load(path) if storage.exists(path) else None


def parse_numbers(values: Sequence[str], flag: str) -> frozenset[int]:
    """The numbers of a flag that is a list of them.

    Raises:
      UserError: If one is no number.
    """
    try:
        return frozenset(int(value) for value in values if value.strip())
    except ValueError:
        raise UserError(f"{flag}={','.join(values)}: must be numbers, such as 0,255") from None


def dataset_name(given: str | None, output_dir: str) -> str:
    """What a table calls its data set: the name given, or that of the output folder."""
    if given:
        return given
    path = output_dir if storage.is_remote(output_dir) else os.path.realpath(output_dir)
    return os.path.basename(path.rstrip("/")) or "dataset"
