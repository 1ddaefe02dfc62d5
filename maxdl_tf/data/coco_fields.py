"""Fields of COCO JSON files: the values that each may have, and the one reader of all entries.

Tools write the integer 5 as 5, 5.0 or "5"; all three are read as 5. Other values are refused. An optional field may be
null, like a missing one. Fields that no reader needs are dropped.
"""

from __future__ import annotations

import math
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from maxdl_tf.errors import UserError

_LARGEST = 2**31 - 1
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


class Field(NamedTuple):
    """A field of an entry.

    Attributes:
      convert: Function that returns the value to use, or raises ValueError.
      expected: Description of the valid values, for errors.
      is_required: Whether each entry has the field.
    """

    convert: Callable[[Any], Any]
    expected: str
    is_required: bool = True


class Kind(NamedTuple):
    """A kind of entry.

    Attributes:
      name: Its name in errors.
      fields: {name: field}. The first one identifies an entry in errors.
    """

    name: str
    fields: dict[str, Field]


def integer(least: int = -_LARGEST - 1, most: int = _LARGEST) -> Field:
    """A required integer, which may be written as 5, 5.0 or "5"."""

    def convert(value: Any) -> int:
        number = value if type(value) is int else _whole(value)
        if not least <= number <= most:
            raise ValueError
        return number

    return Field(convert, f"an integer from {least} to {most}")


def _whole(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,20}\s*", value, re.ASCII):
        return int(value)
    raise ValueError


def _finite(value: Any) -> float:
    number = value if isinstance(value, float) else integer(-(2**53), 2**53).convert(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _flag(value: Any) -> bool:
    return value if isinstance(value, bool) else bool(integer(0, 1).convert(value))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    value.encode()  # Half of a surrogate pair raises UnicodeEncodeError, a ValueError.
    return value


def _path(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError
    os.fsencode(value)  # Unlike `_text`, this allows names of files that are not UTF-8.
    return value.replace("\\", "/")  # Tools on Windows write backslashes.


def _identity(value: Any) -> int | str:
    """A number, or text that is none. "0139" stays text: maxdl-predict writes it if not all names are numbers."""
    if isinstance(value, str) and not re.fullmatch(r"0|-?[1-9]\d{0,17}", value, re.ASCII):
        return _path(value)
    return integer(-(2**63), 2**63 - 1).convert(value)


def _color(value: Any) -> tuple[int, int, int]:
    red, green, blue = map(integer(0, 255).convert, _list(value))
    return red, green, blue


def _list(value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise ValueError
    return value


def _optional(field: Field) -> Field:
    return field._replace(is_required=False)


_ID = integer()
_SIDE = integer(1)
_PATH = Field(_path, "the path of a file")
_IDENTITY = Field(_identity, "an integer or text")
_FLAG = Field(_flag, "0 or 1")
_NUMBER = Field(_finite, "a finite number")

IMAGE = Kind("image", {"id": _IDENTITY, "file_name": _PATH, "height": _SIDE, "width": _SIDE})
IMAGE_NAME = Kind("image", {"id": _IDENTITY, "file_name": _PATH})
FILE = Kind("entry", {"file_name": _PATH})
CATEGORY = Kind(
    "category",
    {
        "id": _ID,
        "name": Field(_text, "text"),
        "isthing": _optional(_FLAG),
        "color": _optional(Field(_color, "a list of three integers from 0 to 255")),
    },
)
PANOPTIC_ANNOTATION = Kind(
    "annotation of image",
    {
        "image_id": _IDENTITY,
        "file_name": Field(_path, "the path of a PNG, as in panoptic_*.json"),
        "segments_info": Field(_list, "a list of segments, as in panoptic_*.json"),
    },
)
SEGMENT = Kind(
    "segment",
    {
        "id": _ID,
        "category_id": _ID,
        "iscrowd": _optional(_FLAG),
        "area": _optional(_NUMBER),
        "score": _optional(_NUMBER),
    },
)
OBJECT = Kind(
    "annotation",
    {
        "id": _IDENTITY,
        "image_id": _IDENTITY,
        "category_id": _ID,
        "iscrowd": _optional(_FLAG),
        "segmentation": Field(lambda value: value, "polygons or an RLE", is_required=False),
    },
)
RLE = Kind(
    "RLE",
    {
        "size": Field(lambda value: [_SIDE.convert(side) for side in _list(value)], "a list of height and width"),
        "counts": Field(lambda value: value, "text or a list of integers"),
    },
)


def split(entry: Any, kind: Kind) -> tuple[dict[str, Any], dict[str, str]]:
    """Separates the readable fields of an entry from the faults.

    Args:
      entry: JSON value.
      kind: Kind of the entry.

    Returns:
      {field: value} of the valid fields of the kind, and {field: description} of the faulty or missing ones.
    """
    found, faults = {}, {}
    if not isinstance(entry, Mapping):
        return {}, {
            name: f"is {shown(entry)}; expected an object with {', '.join(kind.fields)}" for name in kind.fields
        }
    for name, field in kind.fields.items():
        value = entry.get(name)
        if value is not None:
            try:
                found[name] = field.convert(value)
            except (ValueError, OverflowError):
                faults[name] = f"has {name} {shown(value)}; expected {field.expected}"
        elif field.is_required:
            what = f"has {name} null" if name in entry else f"has no {name!r}"
            faults[name] = f"{what}; expected {field.expected}"
    return found, faults


def read_all(entries: Iterable[Any], kind: Kind, source: str) -> list[dict[str, Any]]:
    """Reads all entries of a list.

    Args:
      entries: JSON values.
      kind: Kind of the entries.
      source: Name of the file in errors.

    Returns:
      {field: value} of each entry, with the fields of the kind.

    Raises:
      UserError: A field is missing or has an invalid value; the message has the source, the entry, the field and the
        value.
    """
    read = []
    for number, entry in enumerate(entries, start=1):
        found, faults = split(entry, kind)
        if faults:
            raise UserError(f"{source}: {name_of(entry, kind, number)} {next(iter(faults.values()))}")
        read.append(found)
    return read


def name_of(entry: Any, kind: Kind, number: int) -> str:
    """The name of an entry in errors: its identifying field, or its number in the list, from 1."""
    identity = entry.get(next(iter(kind.fields))) if isinstance(entry, Mapping) else None
    return f"{kind.name} number {number}" if identity is None else f"{kind.name} {shown(identity)}"


def shown(value: Any) -> str:
    """A JSON value in an error, shortened and without characters that a terminal would obey."""
    return _SHORT.repr(value)
