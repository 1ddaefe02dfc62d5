"""With what a training was run, kept in its folder: `run_info.json`, an entry for each start."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from typing import Any

import tensorflow as tf

import maxdl_tf

FILE = "run_info.json"


def describe_run(config_file: str, *, step: int, devices: str) -> dict[str, Any]:
    """What one will want to know of a run later.

    Args:
      config_file: The experiment; its git repository is named where it lies in one.
      step: Where the run begins.
      devices: What it runs on, for people.
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
    """Adds a run to those in the directory's `run_info.json`; a file that cannot be read is begun anew."""
    path = os.path.join(directory, FILE)
    runs = []
    if tf.io.gfile.exists(path):
        with tf.io.gfile.GFile(path) as file:
            try:
                runs = json.loads(file.read())
            except ValueError:
                runs = []
    temporary = f"{path}.tmp{os.getpid()}"
    with tf.io.gfile.GFile(temporary, "w") as file:
        file.write(json.dumps([*runs, run], indent=2) + "\n")
    tf.io.gfile.rename(temporary, path, overwrite=True)


def git_revision(folder: str) -> str | None:
    """The commit of the git repository that a folder lies in, "-modified" behind it if files differ from it.

    None where there is none, or no git.
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
