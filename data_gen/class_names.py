"""Names and colors of classes from a file, and class tables of the classes that a first pass finds in label maps."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from maxdl_tf.class_table import DatasetInfo, SourceClass, from_source_classes
from maxdl_tf.data import coco_fields, coco_files
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage
from maxdl_tf.processes import results_in_order
from maxdl_tf.progress import Progress

_COLOR_LINE = re.compile(r"(?P<color>[\d\s]+,[\d\s]+,[\d\s]+):\s*(?P<name>[^:]+?)\s*(?::\s*(?P<kind>thing|stuff))?")
_CVAT_LINE = re.compile(r"(?P<name>[^:]+?)\s*:(?P<color>[\d\s]+,[\d\s]+,[\d\s]+)(?P<kind>)(:[^:]*){0,2}")
_KINDS = {"thing": True, "stuff": False, None: None, "": None}
_BLACK = (0, 0, 0)


class ClassName(NamedTuple):
    """An entry of a list of names.

    Attributes:
      name: Human-readable name.
      is_thing: Whether the class has instances; None if the list does not state it.
      color: (red, green, blue) in pictures, 0..255; None if the list does not state it.
    """

    name: str
    is_thing: bool | None = None
    color: tuple[int, int, int] | None = None


class ColorTable(NamedTuple):
    """The classes of color-coded masks.

    Attributes:
      number_of: {(red, green, blue): class number, or None for void}.
      names: {class number: name}.
    """

    number_of: dict[tuple[int, int, int], int | None]
    names: dict[int, ClassName]


def read_class_names(path: str) -> dict[int, ClassName]:
    """Reads {class number in the data: name}.

    A JSON file is a list of {"id", "name"}, with "isthing" or without, or a COCO file with such a list as "categories".
    Any other file has a line for each class: `name`, numbered from 1, or `number: name`, or `number: name: thing` (or
    `stuff`). Empty lines and lines that start with # are ignored.

    Raises:
      UserError: The file cannot be read or has another format; the message has the file and the line.
    """
    rows = _json_rows(path) if path.endswith(".json") else _text_rows(storage.read_text(path), path)
    if not rows:
        raise UserError(f"{path} has no class; write a line `number: name` for each class")
    names: dict[int, ClassName] = {}
    for number, row in rows:
        if number in names:
            raise UserError(f"{path}: class {number} has two names, {names[number].name!r} and {row.name!r}")
        names[number] = row
    return names


def read_color_table(path: str) -> ColorTable:
    """Reads the classes of color-coded masks.

    A line is `red,green,blue: name`, `red,green,blue: name: thing` (or `stuff`), or a line of CVAT's labelmap.txt,
    `name:red,green,blue:parts:actions`. The name `void` marks a color of void. Empty lines and lines that start with #
    are ignored. Black is class 0, as in PASCAL VOC; other classes are numbered from 1 in the order of the file.

    Raises:
      UserError: The file cannot be read or has another format, or a color or a name occurs twice.
    """
    number_of: dict[tuple[int, int, int], int | None] = {}
    names: dict[int, ClassName] = {}
    for at, line in enumerate(storage.read_text(path).splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _COLOR_LINE.fullmatch(line) or _CVAT_LINE.fullmatch(line)
        color = _color(match["color"]) if match else None
        if color is None:
            raise UserError(
                f"{path}, line {at}: {line!r}; expected `red,green,blue: name`, each color 0 to 255, or a line of "
                "CVAT's labelmap.txt, `name:red,green,blue::`"
            )
        if color in number_of:
            raise UserError(f"{path}, line {at}: the color {line!r} occurs twice; give each class its own color")
        if match["name"] in {row.name for row in names.values()}:
            raise UserError(f"{path}, line {at}: {match['name']!r} has two colors; give each class one line")
        if match["name"].lower() == "void":
            number_of[color] = None
            continue
        number = 0 if color == _BLACK else len(names.keys() - {0}) + 1
        number_of[color] = number
        # Black would look like void in pictures.
        names[number] = ClassName(match["name"], _KINDS[match["kind"]], None if color == _BLACK else color)
    if not names:
        raise UserError(f"{path} has no class; write a line `red,green,blue: name` for each class")
    return ColorTable(number_of, names)


def _color(text: str) -> tuple[int, int, int] | None:
    try:
        red, green, blue = (int(part) for part in text.split(","))
    except ValueError:
        return None
    return (red, green, blue) if max(red, green, blue) <= 255 else None


def _text_rows(text: str, path: str) -> list[tuple[int, ClassName]]:
    lines = [(at, line.strip()) for at, line in enumerate(text.splitlines(), start=1)]
    lines = [(at, line) for at, line in lines if line and not line.startswith("#")]
    numbered = [re.fullmatch(r"(\d{1,9})\s*:\s*([^:]+?)\s*(?::\s*(thing|stuff))?", line, re.ASCII) for _, line in lines]
    are_names = not all(re.match(r"\d+[\s,;]", line, re.ASCII) for _, line in lines)  # Not `0 sky` or `0,sky`.
    if are_names and not any(":" in line for _, line in lines):
        return [(number, ClassName(line)) for number, (_, line) in enumerate(lines, start=1)]
    for match, (at, line) in zip(numbered, lines):
        if not match:
            raise UserError(
                f"{path}, line {at}: {line!r}; expected `number: name`, `number: name: thing` or `number: name: stuff`"
            )
    return [(int(match[1]), ClassName(match[2], _KINDS[match[3]])) for match in numbered]


def _json_rows(path: str) -> list[tuple[int, ClassName]]:
    content = coco_files.load_json(path)
    rows = content.get("categories") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise UserError(f'{path}: expected a list of {{"id": 1, "name": "sky"}}')
    rows = coco_fields.read_all(rows, coco_fields.CATEGORY, path)
    return [(row["id"], ClassName(row["name"], row.get("isthing"))) for row in rows]


def named_table(
    is_thing: Mapping[int, bool], names: Mapping[int, ClassName], dataset_name: str, label_divisor: int, source: str
) -> DatasetInfo:
    """Builds the class table of the classes found in the data and the classes named in a list.

    Args:
      is_thing: Whether each class found has instances.
      names: Names of classes, found or not. A class without a name is called class_NUMBER.
      dataset_name: Name of the data set.
      label_divisor: Label divisor of the table.
      source: Path of the data, for error messages.

    Raises:
      UserError: There is no class.
    """
    rows = []
    for number in {*is_thing, *names}:
        name, kind, color = names.get(number, ClassName(f"class_{number}"))
        rows.append(SourceClass(number, name, is_thing.get(number, False) if kind is None else kind, color))
    if not rows:
        raise UserError(f"{source} has no class: all pixels of all images are void")
    return from_source_classes(rows, dataset_name, label_divisor)


def check_not_void(names: Mapping[int, Any], void_values: Collection[int]) -> None:
    """Raises UserError if a class, {number: row with a name}, is also a value of void."""
    for number in sorted(names.keys() & set(void_values)):
        others = ",".join(str(value) for value in sorted(set(void_values) - {number}))
        raise UserError(
            f"class {number} is {names[number].name!r}, but {number} is also in --void_values; pass "
            f"--void_values={others} if it is a class, or remove its name if it is void"
        )


def first_pass(
    function: Callable[[Any], Any], tasks: Sequence[Any], processes: int, label: str, skip_bad_input: bool
) -> Iterator[Any]:
    """Yields `function(task)` for each task in order, and shows the progress on stderr.

    Args:
      function: Picklable function that raises UserError for bad input.
      tasks: Arguments of the function.
      processes: Number of parallel processes.
      label: Label of the progress line.
      skip_bad_input: Whether to skip bad input; the conversion that follows reports it.

    Raises:
      UserError: The input is bad and not skipped, or all of it is bad.
    """
    faults: list[UserError] = []
    attempt = functools.partial(_attempt, function)
    with results_in_order(attempt, tasks, processes) as results, Progress(label, total=len(tasks)) as progress:
        for result in results:
            progress.advance()
            if not isinstance(result, UserError):
                yield result
            elif skip_bad_input:
                faults.append(result)
            else:
                raise result
    if faults and len(faults) == len(tasks):
        raise UserError(f"all {len(tasks)} label maps are bad; the first: {faults[0]}")


def _attempt(function: Callable[[Any], Any], task: Any) -> Any:
    try:
        return function(task)
    except UserError as error:
        return error
