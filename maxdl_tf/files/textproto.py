"""Parses textproto files and checks their numbers, with errors that name the file and the line."""

from __future__ import annotations

import difflib
import math
import re
import struct
from collections.abc import Iterator
from typing import Any

from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from maxdl_tf.errors import UserError

PLACEHOLDER = re.compile(r"\$\{(\w*)\}")  # The value of an environment variable.
_MOST_QUOTED = 80  # Characters of a line in an error.
_BOUNDS = "maxdl_tf.bounds"  # protos/options.proto
_NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
    FieldDescriptor.CPPTYPE_FLOAT,
    FieldDescriptor.CPPTYPE_DOUBLE,
}


def parse(text: str, message: Message, name: str) -> Message:
    """Parses `text` into `message` and returns it.

    Args:
      text: Text of the textproto.
      message: Empty message of the expected type.
      name: Name of the text in errors, such as its path.

    Raises:
      UserError: The text has a syntax error or an unknown field. The error gives `name` and the line.
    """
    try:
        return text_format.Parse(text, message)
    except text_format.ParseError as error:
        reason = re.sub(r"^\d+:\d+ : ", "", str(error))
        unknown = re.match(r'Message type "([\w.]+)" has no field named "([^"]+)"', reason)
        if unknown:
            fields = message.DESCRIPTOR.file.pool.FindMessageTypeByName(unknown[1]).fields_by_name
            close = difflib.get_close_matches(unknown[2], fields, n=1)
            reason = f"there is no field {unknown[2]}; " + (
                f"did you mean {close[0]}?" if close else f"choose one of {', '.join(fields)}"
            )
        choice = re.search(r'Enum type "([\w.]+)" has no value named', reason)
        if choice:
            values = message.DESCRIPTOR.file.pool.FindEnumTypeByName(choice[1]).values_by_name
            reason += f" Its values are {', '.join(values)}."
        if not unknown and not choice:
            reason = f"{_plain_syntax_error(reason)} in {_shortened_line(text, error.GetLine())!r}"
        raise UserError(f"{place(name, text, error.GetLine())}: {reason}") from error


def place(name: str, text: str, line: int | None) -> str:
    """`name:line`; only the name if the text has a single line."""
    return f"{name}:{line}" if line and "\n" in text.strip() else name


def _plain_syntax_error(reason: str) -> str:
    """A syntax error of protobuf as the middle of a sentence, such as `expected "}"`, without a line that it quotes."""
    reason = re.sub(r"^'.*?' ?: ", "", reason).rstrip(".")
    return reason[:1].lower() + reason[1:]


def _shortened_line(text: str, line: int | None) -> str:
    """The line of `text` with an error, without margins; behind `_MOST_QUOTED` characters it ends with dots."""
    lines = text.splitlines() or [""]
    quoted = lines[min((line or 1) - 1, len(lines) - 1)].strip()
    return quoted if len(quoted) <= _MOST_QUOTED else f"{quoted[:_MOST_QUOTED]} ..."


def check_placeholders(value: str, field: str) -> None:
    """Raises UserError if a value contains a placeholder, whose environment variable is therefore not set.

    Args:
      value: Value of a field, after placeholders were resolved.
      field: Name of the field in the error.
    """
    unset = PLACEHOLDER.search(value)
    if unset:
        raise UserError(
            f"{field} {value!r}: the placeholder {unset[0]} has no value; set the environment variable "
            f"{unset[1] or 'that it should name'}, or replace it by the value"
        )


def wrong_numbers(message: Message, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Yields (dotted path, value, requirement) of each number that is not finite or outside of its `(bounds)`."""
    for field, value in message.ListFields():
        here = f"{path}.{field.name}".lstrip(".")
        for item in value if is_repeated(field) else [value]:
            if field.message_type:
                yield from wrong_numbers(item, here)
            elif field.cpp_type in _NUMBERS:
                requirement = _broken_requirement(item, field)
                if requirement:
                    yield here, value_text(field, item), requirement


def value_text(field: FieldDescriptor, value: Any) -> str:
    """A value as a textproto shows it: 0.7 instead of 0.699999988, the double that is nearest to a float of 0.7."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_FLOAT:
        texts = [f"{value:.{digits}g}" for digits in range(6, 10)]
        return next((text for text in texts if _as_float32(float(text)) == value), texts[-1])
    if field.enum_type:
        return field.enum_type.values_by_number[value].name
    return repr(value) if isinstance(value, str) else str(value)


def is_repeated(field: FieldDescriptor) -> bool:
    # Newer protobufs have no `label`; 4.25 has no `is_repeated`.
    return field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED


def _broken_requirement(value: float, field: FieldDescriptor) -> str:
    """The requirement that a number does not meet, or an empty string."""
    if not math.isfinite(value):
        return "must be a finite number"
    # By name, because this module is below the protos.
    bounds = next((option for known, option in field.GetOptions().ListFields() if known.full_name == _BOUNDS), None)
    if bounds is None:
        return ""
    if bounds.one_of:
        *first, last = (f"{allowed:g}" for allowed in bounds.one_of)
        return "" if value in bounds.one_of else f"must be {', '.join(first)} or {last}"
    limits = {
        "min": ("at least", value >= bounds.min),
        "above": ("above", value > bounds.above),
        "max": ("at most", value <= bounds.max),
        "below": ("below", value < bounds.below),
    }
    limits = {name: limit for name, limit in limits.items() if bounds.HasField(name)}
    if all(holds for _, holds in limits.values()):
        return ""
    if set(limits) == {"min", "max"}:
        return f"must lie between {bounds.min:.15g} and {bounds.max:.15g}"
    return "must be " + " and ".join(f"{words} {getattr(bounds, name):.15g}" for name, (words, _) in limits.items())


def _as_float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]
