"""The checkpoints in a folder, `ckpt-STEP.*`: listed, waited for, and deleted by their names alone; without TensorFlow.

Nothing outside of the folder is touched, whatever TensorFlow's file `checkpoint` names.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator

from maxdl_tf.files import storage

PREFIX = "ckpt"
_DATA = r"\.data-[0-9]{5}-of-[0-9]{5}"
_SECONDS_BETWEEN_LOOKS = 1.0  # For a new checkpoint.


def folder_of(checkpoint: str) -> str:
    """The folder of a checkpoint; the path itself if it is a folder."""
    return checkpoint if storage.is_folder(checkpoint) else os.path.dirname(checkpoint)


def checkpoint_paths(directory: str) -> list[str]:
    """Prefixes of the checkpoints in a directory, the newest (highest step) first.

    The files count, not TensorFlow's list in the file `checkpoint`, which is out of date after a crash and may name
    paths elsewhere.
    """
    prefixes = (re.fullmatch(rf"({PREFIX}-[0-9]+)\.index", name) for name in storage.list_folder(directory))
    return sorted((os.path.join(directory, match.group(1)) for match in prefixes if match), key=_step_of, reverse=True)


def new_checkpoints(directory: str, timeout_seconds: float) -> Iterator[str]:
    """Yields each checkpoint that becomes the newest one of a directory, until none does for the timeout."""
    last, end = None, time.monotonic() + timeout_seconds
    while True:
        newest = next(iter(checkpoint_paths(directory)), None)
        if newest not in (None, last):
            yield newest
            last, end = newest, time.monotonic() + timeout_seconds
        elif time.monotonic() >= end:
            return
        else:
            time.sleep(min(_SECONDS_BETWEEN_LOOKS, timeout_seconds))


def keep_newest(directory: str, keep: int, step: int) -> None:
    """Deletes all checkpoints up to a step but the newest ones, and writes TensorFlow's list of those."""
    paths = [path for path in checkpoint_paths(directory) if _step_of(path) <= step]
    _write_list(directory, paths[:keep])
    _delete(directory, paths[keep:])


def keep_only(directory: str, path: str) -> None:
    """Deletes all checkpoints but one, and writes TensorFlow's list of that one."""
    _write_list(directory, [path])
    _delete(directory, [other for other in checkpoint_paths(directory) if _step_of(other) != _step_of(path)])


def remove_leftovers(directory: str) -> None:
    """Deletes temporary files of a process that was killed. No other process may write to the directory."""
    complete = {os.path.basename(path) for path in checkpoint_paths(directory)}
    for name in storage.list_folder(directory):
        match = re.fullmatch(rf"({PREFIX}-[0-9]+)(_temp.*|{_DATA}|\.index\.tempstate.*)", name)
        if match and not (match.group(1) in complete and re.fullmatch(_DATA, match.group(2))):
            path = os.path.join(directory, name)
            (storage.remove_folder if storage.is_folder(path) else storage.remove_file)(path)
    for folder in (directory, os.path.join(directory, "eval")):
        storage.remove_partial_files(folder)


def _step_of(path: str) -> int:
    return int(path.rpartition("-")[2])


def _write_list(directory: str, paths: list[str]) -> None:
    """Writes TensorFlow's list of checkpoints, for `tf.train.latest_checkpoint`; nothing here reads it."""
    names = [os.path.basename(path) for path in paths]
    lines = [f'model_checkpoint_path: "{names[0]}"'] + [f'all_model_checkpoint_paths: "{name}"' for name in names[::-1]]
    storage.write_whole(os.path.join(directory, "checkpoint"), ("\n".join(lines) + "\n").encode())


def _delete(directory: str, paths: list[str]) -> None:
    """Deletes checkpoints, each one's index first: if this is killed, the rest are leftovers."""
    names = storage.list_folder(directory)
    for prefix in map(os.path.basename, paths):
        for ending in (r"\.index", _DATA):
            for name in names:
                if re.fullmatch(re.escape(prefix) + ending, name):
                    with contextlib.suppress(FileNotFoundError):
                        storage.remove_file(os.path.join(directory, name))
