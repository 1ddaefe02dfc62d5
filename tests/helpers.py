"""Helpers of the tests: goldens, reference material and running commands."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from absl.testing import flagsaver

from maxdl_tf import command_line

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"
# {command: module} as pip installed them from the list in setup.py.
SCRIPTS = {
    script.name: script.module
    for script in importlib.metadata.distribution("maxdl_tf").entry_points
    if script.group == "console_scripts"
}
OWN_GOLDENS = REPOSITORY / "tests" / "golden"


def shared_path(*parts: str) -> Path:
    """A file or folder of the reference material beside the checkout; skips the test where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs the reference material {'/'.join(('../shared', *parts))}, which is not here")
    return path


class Golden:
    """A golden .npz: inputs, weights and outputs of the reference under slash-separated keys."""

    def __init__(self, path: Path):
        with np.load(path) as archive:
            self._arrays = {key: archive[key] for key in archive.files}

    def __getitem__(self, key: str) -> np.ndarray:
        return self._arrays[key]

    def __contains__(self, key: str) -> bool:
        return key in self._arrays

    def keys(self):
        return self._arrays.keys()

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        """All arrays below `prefix/`, by the rest of their key."""
        start = prefix + "/"
        return {key[len(start) :]: value for key, value in self._arrays.items() if key.startswith(start)}

    @property
    def info(self) -> dict:
        """The constructor arguments of the reference, where the file has them."""
        return json.loads(str(self["info"]))


def shared_golden(name: str) -> Golden:
    """`../shared/reference/golden/NAME.npz`; skips the test where it is absent."""
    return Golden(shared_path("reference", "golden", name + ".npz"))


def own_golden(name: str) -> Golden:
    """`tests/golden/NAME.npz`: a small golden that is part of this repository."""
    return Golden(OWN_GOLDENS / f"{name}.npz")


def any_golden(name: str) -> Golden:
    """The golden of this repository or, if it has none of that name, the one of `../shared`."""
    return own_golden(name) if (OWN_GOLDENS / f"{name}.npz").exists() else shared_golden(name)


def command(module: str, *arguments, **environment) -> subprocess.CompletedProcess:
    """Runs a command of the package, such as `data_gen.convert`, which must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", f"maxdl_tf.{module}", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
    )
    assert done.returncode == 0, f"maxdl_tf.{module} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def in_process(module, *arguments, program: str = "command") -> int:
    """Exit status of a command, a module with `main` and `FLAGS`, in this process; its flags are reset afterwards."""
    run = getattr(module, "run", None) or functools.partial(command_line.run, module.main, module.FLAGS)
    saved = flagsaver.save_flag_values(module.FLAGS)
    try:
        with pytest.raises(SystemExit) as exit_, mock.patch.object(sys, "argv", [program, *map(str, arguments)]):
            run()
    finally:
        flagsaver.restore_flag_values(saved, module.FLAGS)
    return exit_.value.code or 0


def command_here(module, *arguments, program: str = "command") -> subprocess.CompletedProcess:
    """Runs a command as `in_process` does and captures its output; unlike in `command`, it may fail."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        status = in_process(module, *arguments, program=program)
    return subprocess.CompletedProcess(arguments, status, output.getvalue(), errors.getvalue())
