"""What a training ran on: `run_info.json` in its folder, with an entry for each start."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from typing import Any

import tensorflow as tf

import maxdl_tf
from maxdl_tf.files import storage

FILE = "run_info.json"


def describe_run(config_file: str, *, step: int, devices: str) -> dict[str, Any]:
    """Describes a run: time, devices, versions, and the git revision of its config.

    Args:
      config_file: Path of the experiment.
      step: Step that the run starts from.
      devices: Human-readable description of the devices.
    """
    return {
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "from_step": step,
        "devices": devices,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "maxdl_tf": maxdl_tf.__version__,
        "config_file": config_file,
        "config_revision": git_revision(os.path.dirname(config_file) or "."),
    }


def append_run(directory: str, run: dict[str, Any]) -> None:
    """Appends a run to the directory's `run_info.json`; a file that cannot be read is replaced."""
    path = os.path.join(directory, FILE)
    runs = []
    if storage.exists(path):
        try:
            runs = json.loads(storage.read_file(path))
        except ValueError:
            runs = []
    storage.write_json(path, [*runs, run])


def git_revision(folder: str) -> str | None:
    """The commit of the git repository around a folder, followed by "-modified" if files differ from it.

    None if there is no repository, no commit or no git.
    """
    try:
        described = subprocess.run(
            ["git", "-C", folder, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=-modified"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
