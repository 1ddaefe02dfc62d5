"""A folder that a command makes: it appears under its name when it is complete, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from maxdl_tf.errors import UserError
from maxdl_tf.files import storage


def check_new_folder(path: str, name: str, hint: str = "") -> None:
    """Raises UserError if a folder cannot be created at this path.

    Args:
      path: Path of the folder. An empty folder may exist there.
      name: Name of the path in errors, such as `--output`.
      hint: Addition to the error if the path is taken.
    """
    if _exists(path) and not (storage.is_folder(path) and not storage.list_folder(path)):
        raise UserError(f"{name} {path} exists and is not an empty folder; name a new one{hint}")
    if not storage.is_remote(path):
        check_can_be_made(os.path.dirname(os.path.abspath(path)), f"{name} {path}")


def check_can_be_made(folder: str, name: str) -> None:
    """Raises UserError if a local folder cannot be written to, or the nearest existing one above it cannot.

    Args:
      folder: Path of the folder.
      name: Beginning of the error, such as "--output predictions".
    """
    existing = os.path.abspath(folder)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{name}: {existing} is not a folder that can be written to; name another one")


@contextmanager
def appears_when_complete(path: str) -> Iterator[str]:
    """Yields a new folder beside `path`, renamed to `path` at the end or removed after an exception."""
    if storage.is_remote(path):
        import tensorflow as tf

        make, rename, remove = tf.io.gfile.makedirs, tf.io.gfile.rename, tf.io.gfile.rmtree
        parent, name = os.path.split(path.rstrip("/"))
    else:
        make, rename, remove = os.makedirs, os.rename, shutil.rmtree
        parent, name = os.path.split(os.path.abspath(path))
    # The dot and the suffix keep TF Serving from taking it for a version, which is a number.
    temporary = os.path.join(parent, f".{name}.incomplete-{os.getpid()}")
    try:
        make(temporary)
    except Exception as error:
        reason = getattr(error, "strerror", None) or getattr(error, "message", None) or error
        raise UserError(f"cannot write beside {path}: {reason}; name another place") from error
    try:
        yield temporary
        if os.path.isdir(path):
            os.rmdir(path)  # It is empty. If something came into it meanwhile, this fails.
        rename(temporary, path)
    except BaseException:
        remove(temporary)
        raise


def _exists(path: str) -> bool:
    return storage.exists(path) if storage.is_remote(path) else os.path.lexists(path)
