"""What a training ran on: `run_info.json` in its folder, with an entry for each start."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shlex
import sys
from typing import Any

import tensorflow as tf

import maxdl_tf
from maxdl_tf.files import storage

FILE = "run_info.json"

_REVISION = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_LARGEST_GIT_FILE = 2**24  # Bytes. Only packed-refs of huge repositories come near it.
# User, password and query of a URL, each of which may be a secret.
_URL_SECRETS = re.compile(r"(?P<scheme>\w[\w+.-]*://)(?:[^/@?#\s]*@)?(?P<path>[^?#\s'\"]*)(?:[?#][^\s'\"]*)?")


def describe_run(config_file: str, *, step: int, devices: str) -> dict[str, Any]:
    """Describes a run: time, command line, devices, versions, and the git revision of its config.

    Args:
      config_file: Path of the experiment.
      step: Step that the run starts from.
      devices: Human-readable description of the devices.
    """
    return {
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command_line": without_secrets(shlex.join(sys.argv)),
        "from_step": step,
        "devices": devices,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "maxdl_tf": maxdl_tf.__version__,
        "config_file": without_secrets(config_file),
        "config_revision": git_revision(os.path.dirname(config_file) or "."),
    }


def append_run(directory: str, run: dict[str, Any]) -> None:
    """Appends a run to the directory's `run_info.json`; a file that cannot be read is replaced."""
    path = os.path.join(directory, FILE)
    runs = []
    if storage.exists(path):
        try:
            runs = json.loads(storage.read_file(path))
        except (ValueError, RecursionError):
            runs = []
    storage.write_json(path, [*(runs if isinstance(runs, list) else []), run])


def without_secrets(text: str) -> str:
    """The text with the user, password, query and fragment of each URL left out."""
    return _URL_SECRETS.sub(r"\g<scheme>\g<path>", text)


def git_revision(folder: str) -> str | None:
    """The commit that is checked out in the git repository around a folder, or None if there is none.

    It is read from git's files. `git` itself would run programs that the repository's configuration names, and the
    folder may be a download.
    """
    if not os.path.isdir(folder):  # Remote, or part of the name of a packaged experiment.
        return None
    folder = os.path.abspath(folder)
    while not os.path.lexists(os.path.join(folder, ".git")):
        folder, below = os.path.dirname(folder), folder
        if folder == below:
            return None
    git = os.path.join(folder, ".git")
    pointer = _read(git)  # A worktree or submodule has a file that names the folder.
    if pointer.startswith("gitdir: "):
        git = os.path.join(folder, pointer.removeprefix("gitdir: "))
    head = _read(os.path.join(git, "HEAD"))
    if head.startswith("ref: "):
        name = head.removeprefix("ref: ")
        common = os.path.join(git, _read(os.path.join(git, "commondir")))  # A worktree shares it with others.
        packed = re.search(rf"^(\w+) {re.escape(name)}$", _read(os.path.join(common, "packed-refs")), re.MULTILINE)
        head = _read(os.path.join(common, name)) or (packed.group(1) if packed else "")
    return head if _REVISION.fullmatch(head) else None


def _read(path: str) -> str:
    """The content of a small regular file without white space around it; an empty string if it is anything else."""
    try:
        if os.path.isfile(path) and os.path.getsize(path) <= _LARGEST_GIT_FILE:
            with open(path, encoding="utf-8", errors="replace") as file:
                return file.read(_LARGEST_GIT_FILE).strip()
    except (OSError, ValueError):  # ValueError: a path with a null character.
        pass
    return ""
