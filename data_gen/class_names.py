"""Names of classes from a file, and class tables from the classes that a first pass finds in the label maps."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from maxdl_tf.class_table import DatasetInfo, SourceClass, from_source_classes
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage
from maxdl_tf.processes import results_in_order
from maxdl_tf.progress import Progress


class ClassName(NamedTuple):
    """An entry of a list of names; `is_thing` is None if the list does not state it."""

    name: str
    is_thing: bool | None = None


def read_class_names(path: str) -> dict[int, ClassName]:
    """Reads {class number in the data: name}.

    A JSON file is a list of {"id", "name"}, with "isthing" or without, or a COCO file with such a list as "categories".
    Any other file has a line for each class: `name`, numbered from 1, or `number: name`, or `number: name: thing` (or
    `stuff`). Empty lines and lines that start with # are ignored.

    Raises:
      UserError: The file cannot be read or has another format; the message has the file and the line.
    """
    text = storage.read_text(path)
    rows = _json_rows(text, path) if path.endswith(".json") else _text_rows(text, path)
    if not rows:
        raise UserError(f"{path} has no class; write a line `number: name` for each class")
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
                f"{path}, line {at}: {line!r}; expected `number: name`, `number: name: thing` or `number: name: stuff`"
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
        raise UserError(f'{path}: expected a list of {{"id": 1, "name": "sky"}}: {error}') from error


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
        name, kind = names.get(number, ClassName(f"class_{number}"))
        rows.append(SourceClass(number, name, is_thing.get(number, False) if kind is None else kind))
    if not rows:
        raise UserError(f"{source} has no class: all pixels of all images are void")
    return from_source_classes(rows, dataset_name, label_divisor)


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
