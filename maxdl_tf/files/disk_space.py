"""Checks, before hours of training, that a run can write its files."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator

from maxdl_tf.errors import UserError
from maxdl_tf.files import storage

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_CURVES = 20_000_000  # Bytes reserved for TensorBoard's files.


def check_writable(directory: str) -> None:
    """Creates a directory if it is missing, and writes a small file in it, which vanishes even if this is killed.

    Raises:
      UserError: The directory cannot be created or written to.
    """
    if storage.is_remote(directory):
        _check_remote(directory)
        return
    try:
        os.makedirs(directory, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory, buffering=0) as probe:
            probe.write(b"x" * 4096)
            os.fsync(probe.fileno())
    except OSError as error:
        raise UserError(_complaint(directory, error)) from error


def check_file(path: str, name: str) -> None:
    """Checks that a file can be written, or replaced. Pipes and devices are not tried.

    Args:
      path: Path of the file.
      name: Name of the path in errors, such as `--json`.

    Raises:
      UserError: The path is that of a folder, or its folder cannot be written to.
    """
    if storage.is_folder(path):
        raise UserError(f"{name}={path} is a folder; give the path of a file")
    if not storage.is_stream(path):
        check_writable(os.path.dirname(path) or ".")


def check_space(directory: str, size: int, count: int) -> None:
    """Checks that checkpoints and TensorBoard's files fit into a directory.

    The free space that a file system reports ignores quotas and reserved blocks. So the space of one checkpoint is
    reserved and released. Remote directories are not checked.

    Args:
      directory: Path of an existing directory.
      size: Bytes of one checkpoint.
      count: Number of checkpoints to be added.

    Raises:
      UserError: The checkpoints do not fit.
    """
    if storage.is_remote(directory) or count < 1:
        return
    free = shutil.disk_usage(directory).free
    if free < size * count + _CURVES:
        raise UserError(
            f"{directory} has {_readable(free)} free; {count} checkpoints of {_readable(size)} and "
            f"{_readable(_CURVES)} of curves will be written; make room, choose another --model_dir, or lower "
            "training.checkpoints_to_keep"
        )
    try:
        with tempfile.TemporaryFile(dir=directory) as probe:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(probe.fileno(), 0, size)
    except OSError as error:
        if error.errno not in _FULL:
            return  # The file system cannot reserve space.
        raise UserError(
            f"{directory} cannot take a checkpoint of {_readable(size)}: {error.strerror}; make room, or choose "
            "another --model_dir"
        ) from error


def _check_remote(directory: str) -> None:
    import tensorflow as tf

    path = os.path.join(directory, f".maxdl_probe_{uuid.uuid4().hex}")
    try:
        tf.io.gfile.makedirs(directory)
        with tf.io.gfile.GFile(path, "w") as file:
            file.write("x")
        tf.io.gfile.remove(path)
    except tf.errors.OpError as error:
        raise UserError(f"cannot write to {directory}: {error.message}; check the path and your permissions") from error


@contextlib.contextmanager
def full_disk_errors(path: str) -> Iterator[None]:
    """Turns the error of a full disk, a reached quota or a read-only file system into UserError.

    Args:
      path: Path that is written to, for errors that do not name a file. Most do not.
    """
    try:
        yield
    except Exception as error:
        complaint = full_disk(error, path)
        if complaint is None:
            raise
        raise UserError(complaint) from error


def full_disk(error: Exception, path: str = "a file") -> str | None:
    """Describes the error of a full disk, a reached quota or a read-only file system; None for other errors."""
    if isinstance(error, OSError):
        reason = error.strerror if error.errno in _FULL else None
        path = error.filename or path
    else:  # TensorFlow reports a full disk and a full memory by one class; the text begins with the name of a node.
        reasons = "|".join(map(os.strerror, _FULL))
        found = re.search(rf"^(?:{{{{.*}}}} )?(.+); ({reasons})", str(getattr(error, "message", "")))
        path, reason = found.groups() if found else (path, None)
    return f"cannot write {path}: {reason}; make room, or choose another path" if reason else None


def _complaint(directory: str, error: OSError) -> str:
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"{directory} cannot be a directory, because it is a file; remove it, or choose another path"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"cannot write to {directory}: {error.strerror}; make room, or choose another path"
    return f"cannot write to {directory}: {error.strerror}; check the path and your permissions"


def _readable(size: int) -> str:
    number = float(size)
    for unit in ("bytes", "KB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            return f"{number:.3g} {unit}"
        number /= 1000
    raise AssertionError("unreachable")
