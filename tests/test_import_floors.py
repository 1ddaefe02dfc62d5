"""Holds the floors: who may import whom (CONTRIBUTING.md says why)."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers import REPOSITORY, SCRIPTS


# A module imports from lower floors and from its own group. Groups on one floor do not know each other. The list is
# CONTRIBUTING.md's table: a row is a floor, `a + b` are modules of one group, whose name is the first one's.
def _floors() -> list[list[list[str]]]:
    """Groups of each floor, from the lowest, as lists of module names."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", text, re.MULTILINE)
    assert [int(number) for number, _ in rows] == sorted(range(len(rows)), reverse=True)
    floors = [[re.findall(r"`([\w.]+)`", group) for group in groups.split(", ")] for _, groups in rows]
    return floors[::-1]


FLOORS = _floors()
COMMANDS = next(number for number, groups in enumerate(FLOORS) if ["commands"] in groups)

# Modules that only some may import: built objects are handed down, protos and options stay above.
_PROGRAMS = {"data_gen", "commands", "demo"}
_WITH_OPTIONS = {"tasks", "benchmarks"} | _PROGRAMS
RESERVED = {
    "maxdl_tf.protos": {"maxdl_tf", "config"} | _WITH_OPTIONS,
    "maxdl_tf.config": _WITH_OPTIONS,
    "maxdl_tf.command_line": _PROGRAMS,
    "maxdl_tf.command_flags": _PROGRAMS,
    "tensorflow_addons": {"training"},
}
# What tf-models-official brings along and nothing here needs.
NEVER = {"tensorflow_text", "tensorflow_datasets", "tensorflow_hub", "cv2", "pandas", "sklearn", "matplotlib"}

# Single imports against the rules above, and why they are right.
EXCEPTIONS = {
    ("maxdl_tf", "maxdl_tf.api"): "the types of names that are loaded on first use",
    ("maxdl_tf", "maxdl_tf.evaluation.quality"): "the type of a name that is loaded on first use",
    ("maxdl_tf.data.examples", "maxdl_tf.protos.example_pb2"): "the format of records, no options",
    ("maxdl_tf.export.serving_model", "maxdl_tf.protos.serving_log_pb2"): "messages of TensorFlow Serving, no options",
}


class Place(NamedTuple):
    floor: int
    group: str


def _places() -> dict[str, Place]:
    places = {
        name if name == "maxdl_tf" else f"maxdl_tf.{name}": Place(floor, group[0])
        for floor, groups in enumerate(FLOORS)
        for group in groups
        for name in group
    }
    return {**dict.fromkeys(SCRIPTS.values(), places.pop("maxdl_tf.commands")), **places}


PLACES = _places()


def place_of(module: str) -> Place | None:
    """The longest listed prefix decides, but that the package itself is listed does not place its modules."""
    parts = module.split(".")
    for length in range(len(parts), 1, -1):
        if ".".join(parts[:length]) in PLACES:
            return PLACES[".".join(parts[:length])]
    return PLACES.get(module)


class Import(NamedTuple):
    module: str
    line: int
    when_imported: bool  # Neither in a function nor only for type checkers.


def imports_of(tree: ast.Module, known_modules: set[str]) -> list[Import]:
    """All imports of a module; `from package import module` counts as an import of the module."""
    found = []

    def visit(node: ast.AST, when_imported: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, when_imported) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; write the whole name"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = whole in known_modules or node.module == "tensorflow"
                found.append(Import(whole if is_module else node.module, node.lineno, when_imported))
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            when_imported = False
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            when_imported = False
        for child in ast.iter_child_nodes(node):
            visit(child, when_imported)

    visit(tree, True)
    return found


def _comes_quickly(module: str, place: Place) -> bool:
    """Whether a module is imported before --help is printed, so that it may not wait for TensorFlow."""
    return (
        place.floor >= COMMANDS
        or place.group == "data_gen"
        or module in ("maxdl_tf.command_line", "maxdl_tf.command_flags")
    )


def complaints(module: str, source: str, known_modules: set[str]) -> list[str]:
    """What a module does against the floors, one line each."""
    place = place_of(module)
    if place is None:
        return [f"{module} has no floor; give it one in tests/test_import_floors.py"]
    tree = ast.parse(source)
    found = []
    for imported, line, when_imported in imports_of(tree, known_modules):
        if (module, imported) in EXCEPTIONS:
            continue
        at = f"{module}:{line} imports {imported}"
        top = imported.split(".")[0]
        if top == "maxdl_tf":
            target = place_of(imported)
            if target is None:
                found.append(f"{at}, which has no floor")
            elif target.floor > place.floor or (target.floor == place.floor != 0 and target.group != place.group):
                found.append(f"{at}: from floor {place.floor} ({place.group}) to {target.floor} ({target.group})")
        elif top in ("data_gen", "configs", "tests"):
            found.append(f"{at}: its name is maxdl_tf.{top}, and tests are never imported")
        for reserved, groups in RESERVED.items():
            own = reserved.rpartition(".")[2]
            if f"{imported}.".startswith(f"{reserved}.") and place.group not in groups and place.group != own:
                found.append(f"{at}, which is for {', '.join(sorted(groups))}")
        if top in NEVER:
            found.append(f"{at}, which is no requirement of ours")
        if module != "maxdl_tf.keras_api" and (top in ("keras", "tf_keras") or "tensorflow.keras" in imported):
            found.append(f"{at}: write `from maxdl_tf.keras_api import keras`")
        if when_imported and top == "tensorflow" and _comes_quickly(module, place):
            found.append(f"{at} outside a function, so that --help would wait for it")
    if module != "maxdl_tf.keras_api":
        found.extend(
            f"{module}:{node.lineno} uses tf.keras: write `from maxdl_tf.keras_api import keras`"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr == "keras" and getattr(node.value, "id", "") == "tf"
        )
    return found


def _source_files() -> dict[str, Path]:
    """{module name: file} of maxdl_tf/ and data_gen/, generated protos aside."""
    files = {}
    for folder, prefix in (("maxdl_tf", ()), ("data_gen", ("maxdl_tf",)), ("configs", ("maxdl_tf",))):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            parts = (*prefix, *path.relative_to(REPOSITORY).with_suffix("").parts)
            if not path.name.endswith("_pb2.py"):
                files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


FILES = _source_files()
MODULES = set(FILES) | {f"maxdl_tf.protos.{path.stem}_pb2" for path in (REPOSITORY / "protos").glob("*.proto")}


@pytest.mark.parametrize("module", sorted(FILES))
def test_module_keeps_to_its_floor(module):
    assert complaints(module, FILES[module].read_text(encoding="utf-8"), MODULES) == []


@pytest.mark.parametrize(("module", "imported"), sorted(EXCEPTIONS))
def test_exceptions_are_needed(module, imported):
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    assert imported in {found.module for found in imports_of(tree, MODULES)}


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("maxdl_tf.layers.aspp", "from maxdl_tf.models import build", "from floor 2 (layers) to 3 (models)"),
        (
            "maxdl_tf.layers.aspp",
            "def f():\n  from maxdl_tf.models import build",
            "aspp:2 imports maxdl_tf.models.build",
        ),
        ("maxdl_tf.losses.panoptic", "import maxdl_tf.models.build", "from floor 3 (losses) to 3 (models)"),
        ("maxdl_tf.data.panoptic", "from maxdl_tf import config", "which is for"),
        ("maxdl_tf.training.loop", "from maxdl_tf.tasks import run", "from floor 5 (training) to 6 (tasks)"),
        ("maxdl_tf.export.saved_model", "from maxdl_tf.protos import model_pb2", "which is for"),
        ("maxdl_tf.models.build", "from maxdl_tf.protos.model_pb2 import ModelOptions", "which is for"),
        ("maxdl_tf.models.build", "import tensorflow_addons as tfa", "which is for training"),
        ("maxdl_tf.models.build", "import tensorflow as tf\nx = tf.keras.Model", "models.build:2 uses tf.keras"),
        ("maxdl_tf.models.build", "from tensorflow import keras", "write `from maxdl_tf.keras_api"),
        ("maxdl_tf.models.build", "import tf_keras", "write `from maxdl_tf.keras_api"),
        ("maxdl_tf.trainer", "import tensorflow as tf", "--help would wait"),
        ("maxdl_tf.data_gen.convert", "try:\n  import tensorflow\nexcept ImportError:\n  pass", "--help would wait"),
        ("maxdl_tf.data_gen.convert", "from data_gen import shapes", "its name is maxdl_tf.data_gen"),
        ("maxdl_tf.inference.predictor", "import cv2", "no requirement of ours"),
        ("maxdl_tf.newcomer", "", "has no floor"),
    ],
)
def test_a_breach_is_seen(module, source, complaint):
    found = complaints(
        module, source, MODULES | {"maxdl_tf.models.build", "maxdl_tf.tasks.run", "maxdl_tf.data_gen.shapes"}
    )
    assert len(found) >= 1 and complaint in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("maxdl_tf.trainer", "if TYPE_CHECKING:\n  import tensorflow as tf"),
        ("maxdl_tf.trainer", "def main(argv):\n  import tensorflow as tf\n  from maxdl_tf.tasks import run"),
        ("maxdl_tf.tasks.base", "from maxdl_tf import config\nfrom maxdl_tf.protos import model_pb2"),
        ("maxdl_tf.models.build", "from maxdl_tf.layers.aspp import ASPP\nfrom maxdl_tf.models import heads"),
        ("maxdl_tf.layers.aspp", "import tensorflow as tf\nfrom maxdl_tf.keras_api import keras"),
        ("maxdl_tf.training.optimizers", "import tensorflow_addons"),
    ],
)
def test_what_the_floors_allow(module, source):
    assert complaints(module, source, MODULES) == []
