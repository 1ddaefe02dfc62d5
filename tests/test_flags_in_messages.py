"""What errors advise works: a flag in a message is a flag of each command that can print the message.

Which command can print it is found in the sources: a function is reached if a function that is reached names it and its
module is imported, directly or not. That is more than what really runs.
"""

from __future__ import annotations

import ast
import functools
import importlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from maxdl_tf import check_data
from maxdl_tf.data_gen import convert
from tests.helpers import SCRIPTS
from tests.test_import_floors import FILES, MODULES, imports_of

_FLAG = re.compile(r"(?<![\w-])--(?:\[no\])?([a-z][a-z0-9_]+)")
_OF_ANY_COMMAND = {"help", "version", "list_configs", "list_fields"}


def _commands() -> dict[str, tuple[str, set[str]]]:
    """(module, names of flags) by command, such as "maxdl-convert coco_panoptic"."""
    parts = {"maxdl-convert": convert.CONVERTERS, "maxdl-check-data": check_data.CHECKS}
    modules = {name: importlib.import_module(module) for name, module in SCRIPTS.items() if name not in parts}
    modules.update({f"{name} {part}": module for name in parts for part, module in parts[name].items()})
    return {name: (module.__name__, set(module.FLAGS)) for name, module in modules.items()}


COMMANDS = _commands()

# Functions that are reached with other arguments, or not at all, and why.
EXCEPTIONS = {
    ("maxdl_tf.beam_pipeline", "run_chunks"): "an option of Beam",
    ("maxdl_tf.data_gen.converter_flags", "read_intensity"): "called by converters that have the flag",
    ("maxdl_tf.files.intensity", "advice"): "Cityscapes, ADE20K and shapes have 8 bits",
    ("maxdl_tf.tasks.run", "check_devices"): "only a training checks its devices",
    ("maxdl_tf.tasks.run", "evaluate"): "of Run, which maxdl-train alone starts",
    ("maxdl_tf.training.distribution", "create_strategy"): "maxdl-benchmark names no strategy, maxdl-eval no TPU",
    ("maxdl_tf.training.distribution", "_tpu_strategy"): "maxdl-benchmark and maxdl-eval use no TPU",
}


class Unit(NamedTuple):
    """A function, or the rest of a module.

    Attributes:
      module: Its module.
      name: Name of the function, or of the class if it is one of its special methods. Empty: the rest of a module.
      names: Names that it mentions.
      texts: Its strings without docstrings, with their lines; {} stands for a value in them.
    """

    module: str
    name: str
    names: frozenset[str]
    texts: tuple[tuple[int, str], ...]


def _units_of(module: str, tree: ast.Module) -> Iterator[Unit]:
    rest: list[ast.AST] = []
    for node in tree.body:
        members = [(node, node.name)] if isinstance(node, ast.FunctionDef) else []
        if isinstance(node, ast.ClassDef):
            members = [
                (member, node.name if member.name.startswith("__") else member.name)
                for member in node.body
                if isinstance(member, ast.FunctionDef)
            ]
        for member, name in members:
            yield _unit(module, name, [member])
        if not members and not _is_docstring(node):
            rest.append(node)
    yield _unit(module, "", rest)


def _unit(module: str, name: str, nodes: list[ast.AST]) -> Unit:
    names, texts = set(), []
    for node in (inner for outer in nodes for inner in _walk(outer)):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.JoinedStr):
            pieces = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            texts.append((node.lineno, "".join(pieces)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append((node.lineno, node.value))
    return Unit(module, name, frozenset(names), tuple(texts))


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but docstrings; the parts of an f-string are not strings of their own."""
    yield node
    for child in ast.iter_child_nodes(node):
        is_part = isinstance(node, ast.JoinedStr) and isinstance(child, ast.Constant)
        if not _is_docstring(child) and not is_part:
            yield from _walk(child)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


@functools.cache
def _parsed(module: str) -> tuple[tuple[Unit, ...], frozenset[str]]:
    """(units, imported modules)"""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    imported = {found.module for found in imports_of(tree, MODULES)}
    # The package itself imports its public functions, for type checkers only.
    return tuple(_units_of(module, tree)), frozenset(imported & set(FILES) - {"maxdl_tf"})


def _reached(module: str) -> list[Unit]:
    """The units that a command's module reaches."""
    modules = [module]
    for place in modules:
        modules += [name for name in sorted(_parsed(place)[1]) if name not in modules]
    units = [unit for place in modules for unit in _parsed(place)[0]]
    reached = [unit for unit in units if unit.module == module]
    names: set[str] = set()
    for unit in reached:
        new = unit.names - names
        names |= new
        reached += [other for other in units if other.name in new and other not in reached]
    return reached


def _wrong_flags(command: str, own: set[str], text: str) -> list[str]:
    """Flags in a message that neither the command has nor the program that the message names before them."""
    wrong = []
    for match in _FLAG.finditer(text):
        clause = re.split(r"[;:(]", text[: match.start()])[-1]
        programs = re.findall(r"maxdl-[a-z-]+[a-z]", clause)
        known = own
        if programs and programs[-1] != command.split()[0]:
            known = set().union(*(flags for name, (_, flags) in COMMANDS.items() if name.split()[0] == programs[-1]))
        if not {match[1], match[1].removeprefix("no")} & (known | _OF_ANY_COMMAND):
            wrong.append(f"--{match[1]}")
    return wrong


def _wrong_messages(command: str) -> Iterator[tuple[str, str, str]]:
    """Yields (module, function, text) of messages with a flag that the command lacks, apart from texts of --help."""
    module, own = COMMANDS[command]
    for unit in _reached(module):
        for line, text in () if unit.name.startswith("define_") else unit.texts:
            if _wrong_flags(command, own, text):
                yield unit.module, unit.name, f"line {line}: {text}"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_the_flags_that_its_messages_name(command):
    assert [found for found in _wrong_messages(command) if found[:2] not in EXCEPTIONS] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_the_flags_that_its_help_names(command):
    module, own = COMMANDS[command]
    values = importlib.import_module(module).FLAGS
    assert [(name, wrong) for name in own if (wrong := _wrong_flags(command, own, values[name].help))] == []


def test_exceptions_are_needed():
    assert {found[:2] for command in COMMANDS for found in _wrong_messages(command)} >= set(EXCEPTIONS)


def test_messages_below_the_command_are_found():
    found = {
        flag
        for unit in _reached("maxdl_tf.trainer")
        if unit.module != "maxdl_tf.trainer"
        for _, text in unit.texts
        for flag in _FLAG.findall(text)
    }
    assert {"model_dir", "mode", "override", "data_service", "strategy"} <= found


@pytest.mark.parametrize(
    "text, wrong",
    [
        ("drop --config_file", []),
        ("drop --checkpoint", ["--checkpoint"]),
        ("export it again with maxdl-export --max_pixels", []),
        ("export it again with maxdl-export --max_pixls", ["--max_pixls"]),
        ("maxdl-export wrote it; lower --min_agreement", ["--min_agreement"]),
        ("use --nooverlays or --help", []),
    ],
)
def test_a_wrong_flag_is_seen(text, wrong):
    assert _wrong_flags("maxdl-predict", COMMANDS["maxdl-predict"][1], text) == wrong
