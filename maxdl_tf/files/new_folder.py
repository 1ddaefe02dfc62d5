"""A folder that a command makes: it appears under its name when it is complete, or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from maxdl_tf.errors import UserError
from maxdl_tf.files import folder_lock, storage


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
    """Yields a new folder beside `path`, renamed to `path` at the end or removed after an exception.

    It grows in the hidden folder `.NAME.incomplete`, which is locked. If this run is killed, the next one removes it.
    Remote folders cannot be locked: there each run has a hidden folder of its own, and a killed one leaves it.

    Raises:
      UserError: Another process makes this folder, or it cannot be written.
    """
    parent, name = os.path.split(path.rstrip("/"))
    if name in ("", ".", ".."):
        parent, name = os.path.split(os.path.abspath(path))
    # The dot keeps TF Serving from taking it for a version, which is a number.
    hidden = os.path.join(parent, f".{name}.incomplete")
    if storage.is_remote(path):
        hidden += f"-{uuid.uuid4().hex}"
    growing = os.path.join(hidden, "new")
    with folder_lock.FolderLock(hidden, path):
        try:
            storage.remove_folder(growing)
            with _errors_of(path):
                storage.make_folder(growing)
            yield growing
            with _errors_of(path):
                _publish(growing, path)
        finally:
            storage.remove_folder(hidden)


def _publish(folder: str, path: str) -> None:
    if storage.is_remote(path):
        import tensorflow as tf

        tf.io.gfile.rename(folder, path)
        return
    if os.path.isdir(path):
        os.rmdir(path)  # It is empty. If something came into it meanwhile, this fails.
    os.rename(folder, path)


@contextmanager
def _errors_of(path: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not (isinstance(error, OSError) or hasattr(error, "error_code")):
            raise
        reason = getattr(error, "strerror", None) or getattr(error, "message", None) or error
        raise UserError(f"cannot write {path}: {reason}; name another place") from error


def _exists(path: str) -> bool:
    return storage.exists(path) if storage.is_remote(path) else os.path.lexists(path)
