"""Names of shards, such as `train-00000-of-00008.tfrecord`, and the search for the shards of a pattern.

A split with missing shards is refused: a killed conversion or an interrupted copy would otherwise pass for the whole.
Needs no TensorFlow, except for `scheme://` paths.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from maxdl_tf.errors import UserError
from maxdl_tf.files import storage

_NAME = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<ending>\..+)?")


class ShardSet(NamedTuple):
    """The shards that one conversion wrote.

    Attributes:
      folder: Path of their folder.
      split: Name of the split.
      count: Number of shards that belong to the set.
      ending: End of the file names, such as ".tfrecord".
      missing: Paths of the shards that are not in the folder.
    """

    folder: str
    split: str
    count: int
    ending: str
    missing: list[str]

    @property
    def pattern(self) -> str:
        """Glob of the set."""
        return os.path.join(self.folder, f"{self.split}-?????-of-{self.count:05d}{self.ending}")


def shard_name(split: str, number: int, count: int, ending: str = ".tfrecord") -> str:
    return f"{split}-{number:05d}-of-{count:05d}{ending}"


def sets_of(files: Sequence[str]) -> list[ShardSet]:
    """The sets that files belong to, in order, compared with all names in the folders. Other files belong to none."""
    names_in: dict[str, set[str]] = {}
    sets = {}
    for path in files:
        folder, name = os.path.split(path)
        match = _NAME.fullmatch(name)
        if not match:
            continue
        key = (folder, match["split"], int(match["count"]), match["ending"] or "")
        if key in sets:
            continue
        if folder not in names_in:
            names_in[folder] = set(storage.list_folder(folder or "."))
        _, split, count, ending = key
        names = (shard_name(split, number, count, ending) for number in range(count))
        sets[key] = ShardSet(*key, [os.path.join(folder, name) for name in names if name not in names_in[folder]])
    return list(sets.values())


def mixed(sets: Sequence[ShardSet]) -> Iterator[list[ShardSet]]:
    """Yields the sets with the same names but other counts, which are the results of several conversions."""
    for first in dict.fromkeys((found.folder, found.split, found.ending) for found in sets):
        same = [found for found in sets if (found.folder, found.split, found.ending) == first]
        if len(same) > 1:
            yield same


def matching_shards(pattern: str, option: str) -> list[str]:
    """Finds the files of one pattern, which must not match two splits as `train-*` matches train and train-small.

    Args:
      pattern: Path or glob of TFRecord shards.
      option: Name of the pattern in errors.

    Raises:
      UserError: No file matches, or those of two splits, of which one name continues the other.
    """
    matches = storage.matching_files(pattern)
    if not matches:
        raise UserError(
            f"{option} {pattern!r} matches no file; expected TFRecord shards such as those of maxdl-convert "
            "(train-00000-of-00008.tfrecord): convert the data first, or correct the path"
        )
    found = (_NAME.fullmatch(os.path.basename(path)) for path in matches)
    splits = sorted({match["split"] for match in found if match})
    for split, longer in ((first, second) for first in splits for second in splits):
        if longer.startswith(f"{split}-"):
            raise UserError(
                f"{option} {pattern!r} matches the shards of {split} and of {longer}; give a pattern for one split, "
                f"such as '{split}-?????-of-*', or one for each"
            )
    return matches


def find_shards(file_pattern: str | Sequence[str], option: str = "file_pattern") -> list[str]:
    """Finds the files of one or more patterns.

    Args:
      file_pattern: Paths or globs of TFRecord shards. The path of a file is taken as it is. A glob may match a part
        of a set, but the whole set must be in the folder.
      option: Name of the patterns in errors.

    Returns:
      The sorted paths, each once.

    Raises:
      UserError: A pattern matches no file or two splits, shards are missing, or shards of two conversions match.
      OSError: A remote folder cannot be read.
    """
    patterns = [file_pattern] if isinstance(file_pattern, str) else list(file_pattern)
    if not patterns:
        raise UserError(f"{option} is empty; name the TFRecord shards, such as 'data/train-*.tfrecord'")
    files, chosen_by_glob = set(), []
    for pattern in patterns:
        matches = matching_shards(pattern, option)
        files.update(matches)
        if matches != [pattern]:
            chosen_by_glob += matches
    sets = sets_of(chosen_by_glob)
    for same in mixed(sets):
        raise UserError(
            f"{option} matches shards of two conversions, {same[0].pattern} and {same[1].pattern}; remove those of one"
        )
    for found in sets:
        if found.missing:
            raise UserError(
                f"{found.pattern}: {len(found.missing)} of {found.count} shards are missing, such as "
                f"{found.missing[0]}; convert the split again, copy the missing shards, or name single files"
            )
    return sorted(files)
