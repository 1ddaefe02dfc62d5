"""A folder that a command makes: it appears under its name when all of it is there, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from maxdl_tf.errors import UserError


def check_new_folder(path: str, name: str, hint: str = "") -> None:
    """Raises UserError if a folder cannot be put there.

    Args:
      path: Of the folder; it may be there if it is empty.
      name: What to call it in complaints, such as `--output`.
      hint: Said where the path is taken.
    """
    if _exists(path) and not _is_empty_folder(path):
        raise UserError(f"{name} {path} exists and is not an empty folder; name a new one{hint}")
    if "://" in path:
        return
    existing = os.path.dirname(os.path.abspath(path))
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{name} {path}: {existing} is not a folder that can be written to; name another one")


@contextmanager
def appears_when_complete(path: str) -> Iterator[str]:
    """Yields a new folder beside `path`, renamed to `path` at the end or removed after an exception."""
    if "://" in path:
        files = _gfile()
        make, rename, remove = files.makedirs, files.rename, files.rmtree
        parent, name = os.path.split(path.rstrip("/"))
    else:
        make, rename, remove = os.makedirs, os.rename, shutil.rmtree
        parent, name = os.path.split(os.path.abspath(path))
    # The dot and the suffix keep TF Serving, which looks for numbers, from taking it for a version.
    temporary = os.path.join(parent, f".{name}.incomplete-{os.getpid()}")
    try:
        make(temporary)
    except Exception as error:
        reason = getattr(error, "strerror", None) or getattr(error, "message", None) or error
        raise UserError(f"cannot write beside {path}: {reason}; name another place") from error
    try:
        yield temporary
        if os.path.isdir(path):
            os.rmdir(path)  # Empty, or something came into it meanwhile, and then this fails.
        rename(temporary, path)
    except BaseException:
        remove(temporary)
        raise


def _exists(path: str) -> bool:
    return _gfile().exists(path) if "://" in path else os.path.lexists(path)


def _is_empty_folder(path: str) -> bool:
    if "://" in path:
        return _gfile().isdir(path) and not _gfile().listdir(path)
    return os.path.isdir(path) and not os.listdir(path)


def _gfile() -> Any:
    import tensorflow as tf

    return tf.io.gfile
