"""Files and folders on this machine, or remote ones that tf.io.gfile reaches (gs://..., hdfs://...).

TensorFlow is imported only for remote paths, so that processes which convert local data stay light.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import functools
import glob
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from typing import IO, Any

from maxdl_tf.errors import UserError

_RESOURCE_EXHAUSTED = 8  # TensorFlow's error code of a full disk.


def is_remote(path: str | os.PathLike) -> bool:
    """Whether the path has a scheme, such as gs://."""
    return "://" in os.fspath(path)


def read_file(path: str | os.PathLike, at_most: int = -1) -> bytes:
    """The content of a file, or its first `at_most` bytes.

    Raises:
      UserError: As in `open_file`.
    """
    with open_file(path) as file:
        return file.read(at_most)


@contextlib.contextmanager
def open_file(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Opens a file for reading. It must be a regular file: a pipe or a device may never end.

    Raises:
      UserError: The file cannot be opened or read, or is not a regular file.
    """
    try:
        if is_remote(path):
            with _gfile().GFile(os.fspath(path), "rb") as file:
                yield file
        else:
            mode = os.stat(path).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # Opening a folder fails by itself.
                raise UserError(f"{path}: a pipe, socket or device; expected a regular file")
            with open(path, "rb") as file:
                yield file
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError) or type(error).__name__ == "NotFoundError":
            raise UserError(f"{path}: there is no such file") from None
        # Names with a zero byte, or with half of a surrogate pair, raise ValueError.
        if isinstance(error, (OSError, ValueError)) or hasattr(error, "error_code"):
            raise UserError(f"{path}: cannot be read: {_reason(error)}") from error
        raise


def read_text(path: str | os.PathLike) -> str:
    """The content of a text file in UTF-8.

    Raises:
      UserError: The file cannot be read or is not text.
    """
    try:
        return read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8: {error}") from error


def find_files(folder: str, suffixes: tuple[str, ...]) -> list[str]:
    """The files in a folder and all folders below it, as sorted paths relative to the folder. Hidden files are skipped.

    Links to folders are followed, but each folder is searched once, so that links in a circle repeat no files.

    Args:
      folder: Path of the folder.
      suffixes: Endings of the names in lower case; names of any case match.

    Raises:
      UserError: A folder cannot be listed.
    """
    found = []
    for place, names in _walk_remote(folder) if is_remote(folder) else _walk(folder):
        for name in names:
            if name.lower().endswith(suffixes) and not name.startswith("."):
                found.append(f"{place}/{name}" if place else name)
    return sorted(found)


def _walk(root: str) -> Iterator[tuple[str, list[str]]]:
    """(path relative to `root`, file names) of each local folder. Real folders come before those behind links."""

    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be listed: {_reason(error)}") from error

    searched, starts = set(), [root]
    for start in starts:  # Grows.
        for place, folders, names in os.walk(start, onerror=fail):
            folder = os.stat(place)
            if (folder.st_dev, folder.st_ino) in searched:
                folders.clear()
                continue
            searched.add((folder.st_dev, folder.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            starts += [path for path in (os.path.join(place, name) for name in folders) if os.path.islink(path)]
            below = os.path.relpath(place, root)
            yield ("" if below == "." else below.replace(os.sep, "/")), names


def _walk_remote(root: str) -> Iterator[tuple[str, list[str]]]:
    for place, folders, names in _gfile().walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield place[len(root) :].strip("/"), names


def path_inside(folder: str | os.PathLike, name: str) -> str:
    """The path of a file in a folder, by a name from a file of unknown origin, such as `file_name` in COCO files.

    Raises:
      UserError: The name is empty or leads out of the folder.
    """
    folder = os.fspath(folder)
    relative = os.path.normpath(name)
    if os.path.isabs(name) and not is_remote(folder):
        relative = os.path.relpath(name, os.path.abspath(folder))
    if not name or "\0" in name or is_remote(name) or os.path.isabs(relative) or relative.split(os.sep)[0] == os.pardir:
        raise UserError(f"file name {name!r} leads out of the folder {folder}; give a folder that contains it")
    return os.path.join(folder, relative)


def check_folder(path: str, name: str) -> str:
    """Returns the path if it is a folder.

    Args:
      path: Path to check.
      name: Name of the path in errors, such as `--image_dir`.

    Raises:
      UserError: It is not a folder.
    """
    if not is_folder(path):
        raise UserError(f"{name}={path} is not a folder; check the path")
    return path


def _raises_os_error(function: Callable) -> Callable:
    """Turns the errors of tf.io.gfile into OSError, which local files raise. Each names the path."""

    @functools.wraps(function)
    def call(*arguments):
        try:
            return function(*arguments)
        except OSError as error:
            if error.errno and error.filename is None:  # Errors of writes have none.
                error.filename = arguments[0]
            raise
        except Exception as error:
            if hasattr(error, "error_code"):
                code = errno.ENOSPC if error.error_code == _RESOURCE_EXHAUSTED else errno.EIO
                raise OSError(code, _reason(error), arguments[0]) from error
            raise

    return call


@_raises_os_error
def is_folder(path: str) -> bool:
    return _gfile().isdir(path) if is_remote(path) else os.path.isdir(path)


@_raises_os_error
def exists(path: str) -> bool:
    return _gfile().exists(path) if is_remote(path) else os.path.exists(path)


@_raises_os_error
def list_folder(path: str) -> list[str]:
    """The sorted names in a folder; none if it does not exist."""
    if not is_folder(path):
        return []
    names = _gfile().listdir(path) if is_remote(path) else os.listdir(path)
    return sorted(name.rstrip("/") for name in names)


@_raises_os_error
def matching_files(pattern: str) -> list[str]:
    """The sorted files that match a glob; `**` in a local one stands for any number of folders.

    A file that exists is taken by its name, and so are folders in front of a glob: both names may contain [ ] * ?.
    """
    if is_remote(pattern):
        return [pattern] * (not is_folder(pattern)) if exists(pattern) else sorted(_gfile().glob(pattern))
    if os.path.exists(pattern):
        return [pattern] * os.path.isfile(pattern)
    root, parts = "", pattern.split(os.sep)
    while parts and parts[0] != "**" and os.path.isdir(root + parts[0] + os.sep):
        root += parts.pop(0) + os.sep
    if "**" in parts:  # Not by glob, which follows links in a circle.
        found = [root + path for path in find_files(root or os.curdir, ("",)) if _matches(path.split("/"), parts)]
    else:
        found = glob.glob(glob.escape(root) + os.sep.join(parts))
    return sorted(path for path in found if os.path.isfile(path))


def _matches(names: list[str], patterns: list[str]) -> bool:
    """Whether the names of folders and a file match the parts of a glob, of which `**` stands for any number."""
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_matches(names[start:], patterns[1:]) for start in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], patterns[0]) and _matches(names[1:], patterns[1:])


@_raises_os_error
def make_folder(path: str) -> None:
    """Creates a folder and those above it, unless they exist."""
    if is_remote(path):
        _gfile().makedirs(path)
    else:
        os.makedirs(path, exist_ok=True)


@_raises_os_error
def write_file(path: str, content: bytes) -> None:
    if is_remote(path):
        with _gfile().GFile(path, "wb") as file:
            file.write(content)
    else:
        with open(path, "wb") as file:
            file.write(content)


def write_whole(path: str, content: bytes) -> None:
    """Writes a file whole or not at all, even if two processes write it at once.

    Pipes and devices, such as /dev/stdout, get the content; a file in their place would replace them.

    Raises:
      OSError: The file cannot be written.
    """
    if is_stream(path):
        write_file(path, content)
        return
    # Hidden and short, whatever the length of the name.
    partial = os.path.join(os.path.dirname(path), f".{uuid.uuid4().hex}.partial")
    try:
        write_file(partial, content)
        rename(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            remove_file(partial)
        if isinstance(error, OSError) and error.errno:
            error.filename, error.filename2 = path, None
        raise


def is_stream(path: str) -> bool:
    """Whether an existing path is that of a pipe or a device, or below /dev, as /dev/stdout is even if it is a file."""
    if is_remote(path) or not os.path.exists(path) or os.path.isdir(path):
        return False
    return os.path.abspath(path).startswith("/dev/") or not os.path.isfile(path)


def remove_partial_files(folder: str) -> None:
    """Removes what `write_whole` left in a folder when it was killed. No other process may write there.

    Raises:
      OSError: A file cannot be removed.
    """
    for name in list_folder(folder):
        if re.fullmatch(r"\.[0-9a-f]{32}\.partial", name):
            remove_file(os.path.join(folder, name))


def write_json(path: str, content: Any) -> None:
    """Writes an indented JSON file by `write_whole`, into a folder that is created if it is missing."""
    make_folder(os.path.dirname(path) or ".")
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


@_raises_os_error
def rename(source: str, target: str) -> None:
    """Moves a file to another path and replaces a file there."""
    if is_remote(source):
        _gfile().rename(source, target, overwrite=True)
    else:
        os.replace(source, target)


@_raises_os_error
def remove_file(path: str) -> None:
    if is_remote(path):
        _gfile().remove(path)
    else:
        os.unlink(path)


@_raises_os_error
def remove_folder(path: str) -> None:
    """Removes a folder and its content, or only the link to one; does nothing if it does not exist."""
    if not is_remote(path) and os.path.islink(path):
        os.unlink(path)
    elif not is_remote(path):
        shutil.rmtree(path, ignore_errors=True)
    elif _gfile().isdir(path):
        _gfile().rmtree(path)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)


def _gfile() -> Any:
    import tensorflow as tf

    return tf.io.gfile
