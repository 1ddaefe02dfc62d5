"""The package as it is installed: imports, commands, versions, data files, and what BUILD says of it."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.resources
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import maxdl_tf
from tests.helpers import REPOSITORY, SCRIPTS
from tests.test_import_floors import FILES


def _python(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def test_importing_the_package_does_not_import_tensorflow():
    done = _python("-c", "import sys, maxdl_tf; print([name for name in sys.modules if name.startswith('tensor')])")
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


_WITHOUT_POSIX = """
import builtins, importlib, os

real_import = builtins.__import__

def without_posix(name, globals=None, *rest, **more):
    if name.split(".")[0] in {POSIX} and (globals or {{}}).get("__name__", "").startswith("maxdl_tf"):
        raise ImportError(f"no module {{name}}")
    return real_import(name, globals, *rest, **more)

builtins.__import__ = without_posix
for module in {MODULES}:
    importlib.import_module(module)
from maxdl_tf import posix, processes
vars(os).pop("sched_getaffinity", None)
assert posix.fcntl is posix.resource is None and processes.available_processes() >= 1
"""
POSIX = {"fcntl", "resource", "pwd", "grp", "spwd", "crypt", "termios", "tty", "pty", "syslog", "posix", "readline"}


def test_everything_can_be_imported_without_what_only_posix_has():
    """As on Windows. `import resource` in one module would stop each command that reaches it."""
    modules = sorted(set(FILES) - {"maxdl_tf.export.run_export"})  # It keeps its process from importing Keras.
    done = _python("-c", _WITHOUT_POSIX.format(POSIX=POSIX, MODULES=modules))
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(("name", "module"), SCRIPTS.items())
def test_help_is_quick_and_quiet(name, module):
    """Quick: TensorFlow is not imported, which takes seconds. Quiet: nothing on stderr."""
    done = _python(
        "-c",
        f"""
import sys
from {module} import run
sys.argv = ["/somewhere/bin/{name}", "--help"]
try:
    run()
finally:
    heavy = sorted({{"tensorflow", "scipy", "orbit"}} & set(sys.modules))
    print("heavy imports:", heavy)
""",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{name}: ")
    assert re.search(rf"\nExamples?:\n+ +{name} ", done.stdout), "the help has no example"
    assert "heavy imports: []" in done.stdout


def test_the_help_of_a_script_is_that_of_the_command():
    """`python maxdl_tf/trainer.py` puts maxdl_tf/ first on the path, where `data` would be a top-level module."""
    done = _python(str(REPOSITORY / "maxdl_tf" / "trainer.py"), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("trainer.py: ")
    assert "--config_file" in done.stdout

    script = "import sys; sys.path.insert(0, {!r}); from maxdl_tf import command_line"
    folder = str(REPOSITORY / "maxdl_tf")
    script += "; command_line._remove_script_folder(); print({!r} in sys.path)"
    assert _python("-c", script.format(folder, folder)).stdout.strip() == "False"


def test_the_installed_commands_are_those_of_setup_py():
    listed = re.search(r"^COMMANDS = (\{.*?^\})", (REPOSITORY / "setup.py").read_text(encoding="utf-8"), re.M | re.S)
    assert ast.literal_eval(listed.group(1)) == SCRIPTS


def test_versions_agree():
    assert importlib.metadata.version("maxdl_tf") == maxdl_tf.__version__
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", changelog, re.MULTILINE).group(1) == maxdl_tf.__version__


def test_configs_are_installed():
    def names(folder) -> set[str]:
        found = {entry.name for entry in folder.iterdir() if entry.name.endswith(".textproto")}
        return found.union(*(names(entry) for entry in folder.iterdir() if entry.is_dir()))

    installed = names(importlib.resources.files("maxdl_tf.configs"))
    assert installed and installed == {path.name for path in (REPOSITORY / "configs").rglob("*.textproto")}


class Build:
    """BUILD, run as the Python that it nearly is: {rule name: its attributes} by kind of rule."""

    def __init__(self):
        self.rules: dict[str, dict[str, dict]] = {}
        kinds = ("filegroup", "genrule", "py_library", "py_binary", "py_test")
        scope = {kind: self._collector(kind) for kind in kinds}
        ignored = dict.fromkeys(("package", "licenses", "exports_files"), lambda *_, **__: None)
        exec((REPOSITORY / "BUILD").read_text(encoding="utf-8"), {**scope, **ignored, "glob": self._glob})

    def _collector(self, kind: str):
        def collect(name: str, **attributes):
            rules = self.rules.setdefault(kind, {})
            assert name not in rules, f"BUILD names {name} twice"
            rules[name] = attributes

        return collect

    @staticmethod
    def _glob(patterns, exclude=(), allow_empty=False):
        found = {path for pattern in patterns for path in REPOSITORY.glob(pattern) if path.is_file()}
        found -= {path for pattern in exclude for path in REPOSITORY.glob(pattern)}
        found = {path for path in found if not path.name.endswith("_pb2.py")}
        assert found or allow_empty, f"BUILD: nothing is called {patterns}"
        return sorted(str(path.relative_to(REPOSITORY)) for path in found)


@pytest.fixture(scope="module")
def build():
    return Build()


def _in_build(path: Path) -> str:
    """The name that BUILD has for a source file: data_gen/ and configs/ are copied into the package."""
    name = str(path.relative_to(REPOSITORY))
    return f"maxdl_tf/{name}" if name.startswith(("data_gen/", "configs/")) else name


def test_build_lists_every_file_once(build):
    listed = [source for library in build.rules["py_library"].values() for source in library["srcs"]]
    listed += [source for test in build.rules["py_test"].values() for source in test["srcs"]]
    files = [source for source in listed if not source.startswith(":") and source != "tests/run_pytest.py"]
    assert len(files) == len(set(files)), "a file is in two rules"
    tests = {path for path in (REPOSITORY / "tests").rglob("*.py") if path.name != "run_pytest.py"}
    assert set(files) == {_in_build(path) for path in {*FILES.values(), *tests}}

    generated = build.rules["genrule"]["generated_protos"]["outs"]
    protos = {path.stem for path in (REPOSITORY / "protos").glob("*.proto")}
    assert {Path(name).name for name in generated} == {f"{stem}_pb2.py" for stem in protos}
    programs = {module.rpartition(".")[2] for module in SCRIPTS.values()} | {"demo"}
    assert set(build.rules["py_binary"]) == programs
