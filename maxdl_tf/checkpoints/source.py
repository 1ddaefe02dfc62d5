"""Finds the checkpoint in a folder, an archive, a prefix or an index file; without TensorFlow."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from maxdl_tf.checkpoints import archives
from maxdl_tf.errors import UserError

_INDEX = ".index"
_PREFIX_IN_LIST = re.compile(r'^model_checkpoint_path: "(.*)"$', re.MULTILINE)


class CheckpointSource(NamedTuple):
    """A checkpoint whose index and data files exist.

    Attributes:
      prefix: Prefix of its files, `.../ckpt-1000`.
      label: Name in messages, which does not show where an archive was unpacked.
    """

    prefix: str
    label: str


def check_no_pattern(path: str) -> None:
    """Raises UserError if TensorFlow cannot restore variables from a path, because it takes the path as a pattern.

    Of the special characters, only a bracket and a backslash keep a pattern from matching its own text.

    Args:
      path: Prefix of a checkpoint, folder of checkpoints, or folder of a SavedModel, as TensorFlow will get it.
    """
    found = [character for character in ("[", "\\") if character in path and character != os.sep]
    if found:
        raise UserError(
            f"{path}: TensorFlow cannot restore weights from a path with {found[0]}, which it takes as a pattern; "
            "rename the folder, or make a link to it"
        )


@contextmanager
def open_checkpoint(path: str) -> Iterator[CheckpointSource]:
    """Yields the checkpoint of a path.

    Args:
      path: A prefix, an index file, a folder with checkpoints, or a tar archive of such a folder. An archive is
        unpacked into a temporary folder, which is removed afterwards. Of several numbered checkpoints, the one with the
        highest number is used; otherwise the one that the file `checkpoint` names.

    Raises:
      UserError: There is no checkpoint, it is incomplete, the path is ambiguous, or the archive must not be unpacked.
    """
    if os.path.isfile(path) and path.endswith(archives.SUFFIXES):
        with tempfile.TemporaryDirectory(prefix="maxdl_import_") as folder:
            archives.unpack(path, folder)
            prefix = _choose(path, sorted(Path(folder).rglob("*" + _INDEX)))
            label = f"{os.path.relpath(prefix, folder)} of {path}"
            _check_complete(prefix, label)
            yield CheckpointSource(prefix, label)
    elif os.path.isdir(path):
        prefix = _choose(path, sorted(Path(path).glob("*" + _INDEX)))
        _check_complete(prefix, prefix)
        check_no_pattern(prefix)
        yield CheckpointSource(prefix, prefix)
    else:
        prefix = path.removesuffix(_INDEX)
        if not os.path.isfile(prefix + _INDEX):
            raise UserError(
                f"{path} is no checkpoint; wanted a folder, a prefix such as .../ckpt-1000, its {_INDEX} file or an "
                f"archive ({', '.join(archives.SUFFIXES)}) on this machine; check the path"
            )
        _check_complete(prefix, prefix)
        check_no_pattern(prefix)
        yield CheckpointSource(prefix, prefix)


def _choose(path: str, indexes: Sequence[Path]) -> str:
    """The prefix of the checkpoint to use, of all checkpoints in `path`."""
    prefixes = [str(index).removesuffix(_INDEX) for index in indexes]
    if not prefixes:
        raise UserError(f"{path} has no checkpoint; wanted files like ckpt-1000{_INDEX}")
    if len(prefixes) == 1:
        return prefixes[0]
    numbered = [re.fullmatch(r"(.*)-(\d+)", prefix) for prefix in prefixes]
    if all(numbered) and len({match.group(1) for match in numbered}) == 1:
        return max(numbered, key=lambda match: int(match.group(2))).group(0)
    listed = {prefix for folder in {index.parent for index in indexes} for prefix in _listed(folder)} & set(prefixes)
    if len(listed) == 1:
        return listed.pop()
    names = ", ".join(os.path.basename(prefix) for prefix in prefixes[:3])
    raise UserError(f"{path} has {len(prefixes)} checkpoints ({names}, ...); choose one by its prefix")


def _listed(folder: Path) -> list[str]:
    """The checkpoint that TensorFlow's file `checkpoint` calls the latest one, wherever it once lay."""
    path = folder / "checkpoint"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return [str(folder / os.path.basename(match)) for match in _PREFIX_IN_LIST.findall(text)]


def _check_complete(prefix: str, label: str) -> None:
    """Raises UserError if a data file is missing."""
    folder, name = os.path.split(prefix)
    pattern = re.compile(re.escape(name) + r"\.data-(\d{5})-of-(\d{5})")
    shards = [pattern.fullmatch(other) for other in os.listdir(folder or ".")]
    there = {(int(match.group(1)), int(match.group(2))) for match in shards if match}
    count = max((count for _, count in there), default=1)
    missing = [f"{name}.data-{number:05}-of-{count:05}" for number in range(count) if (number, count) not in there]
    if missing:
        raise UserError(f"checkpoint {label} is not complete: {missing[0]} is not beside its index; copy it there")
