"""The output folder of a conversion: names of shards, checks of existing files, and publication of all shards at once.

Shards grow in a hidden folder inside the output folder, which one process at a time uses. When the last one is
complete, the shards of an earlier conversion move into the hidden folder, and then the new ones move out. Readers
refuse a split with missing shards (`maxdl_tf.data.shards`), so at each moment they find the earlier split, the new one,
or an error. After a kill between two moves, the next conversion of the split moves all files back before it starts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from maxdl_tf import class_table
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data.shards import shard_name
from maxdl_tf.data_gen.annotated_images import Record
from maxdl_tf.errors import UserError
from maxdl_tf.files import folder_lock, storage

EXAMPLES_PER_SHARD = 256
_LARGEST_SHARD_COUNT = 99999
_LISTED_AT_THE_END = 20


@dataclass(frozen=True)
class Output:
    """Output options of a conversion.

    Attributes:
      directory: Path of the output folder; it is created if necessary.
      split: Name of the split; shards are named `SPLIT-00000-of-00008.tfrecord`.
      num_shards: Number of shards; None for one per EXAMPLES_PER_SHARD tasks.
      processes: Number of parallel processes; 1 stays in this process.
      label_format: Format of label maps, "png" or "raw".
      skip_bad_input: Whether to skip tasks that raise UserError; otherwise the first one stops the conversion.
      overwrite: Whether to replace existing shards of the split.
      runner: Runner of Apache Beam, such as "DirectRunner"; None for local processes.
      beam_options: Flags of the runner.
    """

    directory: str
    split: str
    num_shards: int | None = None
    processes: int = 1
    label_format: str = "png"
    skip_bad_input: bool = False
    overwrite: bool = False
    runner: str | None = None
    beam_options: tuple[str, ...] = ()

    def __post_init__(self):
        if not re.fullmatch(r"\w[\w.-]*", self.split):
            raise UserError(f"--split={self.split!r}: must be letters, digits, '_', '-' and '.'; try train or val")
        if self.processes < 1:
            raise UserError(f"--processes={self.processes}: must be at least 1")

    @property
    def folder(self) -> str:
        return self.directory.rstrip("/") or "/"

    @property
    def hidden(self) -> str:
        """Folder for all files of an unfinished conversion; the leading dot hides it from globs."""
        return f"{self.folder}/.incomplete-{self.split}"

    @property
    def staging(self) -> str:
        """Folder in which shards grow."""
        return f"{self.hidden}/new"

    @property
    def replaced(self) -> str:
        """Folder of the earlier shards while the new ones take their place."""
        return f"{self.hidden}/replaced"

    @property
    def journal(self) -> str:
        """File with the names of the shards that move, while they move."""
        return f"{self.hidden}/moving.json"

    @property
    def dataset_info_file(self) -> str:
        return f"{self.folder}/{class_table.FILE_NAME}"

    def dataset_name(self, given: str | None) -> str:
        """Name of the data set in the class table: the given name, or that of the output folder."""
        if given:
            return given
        path = self.folder if storage.is_remote(self.folder) else os.path.realpath(self.folder)
        return os.path.basename(path.rstrip("/")) or "dataset"

    def earlier_class_table(self) -> DatasetInfo | None:
        """The class table of an earlier conversion to the folder, which all splits share; None if there is none."""
        return class_table.load(self.dataset_info_file) if storage.exists(self.dataset_info_file) else None

    def shard_names(self, num_tasks: int) -> list[str]:
        """Returns the names of all shards.

        Raises:
          UserError: There are no tasks, or the number of shards does not suit them.
        """
        if num_tasks == 0:
            raise UserError("the data set has no images; check the paths and --split")
        num_shards = math.ceil(num_tasks / EXAMPLES_PER_SHARD) if self.num_shards is None else self.num_shards
        largest = min(num_tasks, _LARGEST_SHARD_COUNT)
        if not 1 <= num_shards <= largest:
            raise UserError(f"--num_shards={num_shards} for {num_tasks} images: must be between 1 and {largest}")
        return [shard_name(self.split, shard, num_shards) for shard in range(num_shards)]

    def existing_shards(self) -> list[str]:
        """Names of the split's shards in the folder."""
        return [name for name in storage.list_folder(self.folder) if self.is_shard(name)]

    def is_shard(self, name: str) -> bool:
        """Whether a file name is that of a shard of the split."""
        return bool(re.fullmatch(re.escape(self.split) + r"-\d{5}-of-\d{5}\.tfrecord", name))


@dataclass
class Tally:
    """Counts of a conversion.

    Attributes:
      written: Number of examples in the shards.
      skipped: Message of each skipped task.
      pixels: Number of pixels of the label maps.
      void: Number of void ones among them.
      with_objects: Number of label maps with an instance.
    """

    written: int = 0
    skipped: list[str] = dataclasses.field(default_factory=list)
    pixels: int = 0
    void: int = 0
    with_objects: int = 0

    def add(self, record: Record) -> None:
        self.written += 1
        self.pixels += record.pixels
        self.void += record.void
        self.with_objects += record.has_objects

    def merge(self, other: Tally) -> None:
        self.written += other.written
        self.skipped += other.skipped
        self.pixels += other.pixels
        self.void += other.void
        self.with_objects += other.with_objects


class Report(NamedTuple):
    """Result of a conversion; `str` gives the report for the user.

    Attributes:
      written: Number of examples in the shards.
      num_shards: Number of shards.
      skipped: Message of each skipped task.
      output: Output options.
      void: Share of void among all pixels.
      lacks_objects: Whether there are thing classes, but no label map has an instance.
    """

    written: int
    num_shards: int
    skipped: list[str]
    output: Output
    void: float = 0.0
    lacks_objects: bool = False

    def __str__(self) -> str:
        shards = f"{self.output.folder}/{self.output.split}-*.tfrecord"
        lines = [f"{self.written} images in {self.num_shards} shards: {shards}"]
        if self.skipped:
            lines.append(f"{len(self.skipped)} images skipped:")
            lines += [f"  {message}" for message in self.skipped[:_LISTED_AT_THE_END]]
            if len(self.skipped) > _LISTED_AT_THE_END:
                lines.append(f"  and {len(self.skipped) - _LISTED_AT_THE_END} more")
        if self.void > 0.5:
            lines.append(
                f"warning: {self.void:.0%} of all pixels are void, from which training learns nothing; to see them: "
                f"maxdl-check-data tfrecords --file_pattern '{shards}' --html check.html"
            )
        if self.lacks_objects:
            lines.append(
                "warning: no image has an instance of a thing class, so training learns no objects; check whether the "
                "objects are crowds, outside of the images or missing, and state classes without instances as stuff"
            )
        return "\n".join(lines)


def shard_bounds(num_tasks: int, num_shards: int) -> list[tuple[int, int]]:
    """Returns (start, end) of the tasks of each shard; the sizes differ by at most one."""
    starts = [num_tasks * shard // num_shards for shard in range(num_shards + 1)]
    return list(zip(starts, starts[1:]))


@contextlib.contextmanager
def prepared(dataset_info: DatasetInfo, output: Output) -> Iterator[None]:
    """Creates and locks the folders, and removes the hidden one at the end.

    Raises:
      UserError: Existing shards or the class table conflict with the new ones, or another process converts this split.
      OSError: A folder cannot be created.
    """
    if storage.exists(output.folder) and not storage.is_folder(output.folder):
        raise UserError(f"--output_dir={output.folder} is a file; name a folder")
    if os.path.islink(output.hidden):  # Its target must not be emptied.
        os.unlink(output.hidden)
    with folder_lock.FolderLock(output.hidden, f"split {output.split!r} of --output_dir={output.folder}"):
        try:
            _move_back(output)
            existing = output.existing_shards()
            if existing and not output.overwrite:
                raise UserError(
                    f"{output.folder} already has {len(existing)} shards of split {output.split!r}; choose another "
                    "--output_dir or --split, or pass --overwrite"
                )
            _check_class_table(dataset_info, output)
            for folder in (output.staging, output.replaced):
                storage.remove_folder(folder)
                storage.make_folder(folder)
            yield
        finally:
            _move_back(output)
            storage.remove_folder(output.hidden)


def publish(dataset_info: DatasetInfo, names: list[str], output: Output) -> None:
    """Moves the class table and then the shards out of the hidden folder.

    Raises:
      UserError: Another split has written a different class table since `prepared`.
      OSError: A file cannot be moved. All files are back in their places after `prepared`, which must surround this.
    """
    _check_class_table(dataset_info, output)
    new = list(names)
    if not storage.exists(output.dataset_info_file):
        text = class_table.to_text(dataset_info)
        storage.write_file(f"{output.staging}/{class_table.FILE_NAME}", text.encode())
        new.insert(0, class_table.FILE_NAME)
    earlier = output.existing_shards()
    storage.write_whole(output.journal, json.dumps({"earlier": earlier, "new": new}).encode())
    for name in earlier:
        storage.rename(f"{output.folder}/{name}", f"{output.replaced}/{name}")
    for name in new:
        storage.rename(f"{output.staging}/{name}", f"{output.folder}/{name}")


def _move_back(output: Output) -> None:
    """Undoes a publication that did not end. This may be killed at any move and start again."""
    if not storage.exists(output.journal):
        return
    earlier, new = _read_journal(output)
    published, replaced = storage.list_folder(output.folder), storage.list_folder(output.replaced)
    if set(new) & set(storage.list_folder(output.staging)):
        splits_share_table = any(name.endswith(".tfrecord") and name not in new + earlier for name in published)
        for name in new:
            is_shared = name == class_table.FILE_NAME and splits_share_table
            if name in published and (name in replaced or name not in earlier) and not is_shared:
                storage.rename(f"{output.folder}/{name}", f"{output.staging}/{name}")
        for name in replaced:
            storage.rename(f"{output.replaced}/{name}", f"{output.folder}/{name}")
    storage.remove_file(output.journal)


def _read_journal(output: Output) -> tuple[list[str], list[str]]:
    """The names of the earlier shards and of the new files."""
    try:
        journal = json.loads(storage.read_file(output.journal))
        names = journal["earlier"], journal["new"]
        if all(output.is_shard(name) or name == class_table.FILE_NAME for name in names[0] + names[1]):
            return names
    except (ValueError, TypeError, KeyError):
        pass
    raise UserError(
        f"{output.journal} is damaged; check whether shards are missing in {output.folder} and {output.replaced}, and "
        f"remove {output.hidden}"
    )


def _check_class_table(dataset_info: DatasetInfo, output: Output) -> None:
    """Raises UserError if the folder has another class table."""
    table = output.dataset_info_file
    if storage.exists(table):
        difference = _difference(class_table.load(table), dataset_info)
        if difference:
            raise UserError(
                f"{table} differs from the class table of this split: {difference}; convert all splits with the same "
                "classes and the same rule, or choose another --output_dir"
            )


def _difference(there: DatasetInfo, new: DatasetInfo) -> str | None:
    """Describes the first difference of two class tables; names of data sets and colors do not count."""
    for field in ("label_divisor", "ignore_label", "intensity"):
        if getattr(there, field) != getattr(new, field):
            return f"its {field} is {getattr(there, field)}, here it is {getattr(new, field)}"
    for class_id in sorted({*there.by_id, *new.by_id}):
        rows = [
            (row.name, "thing" if row.is_thing else "stuff", row.source_id) if row else "absent"
            for row in (info.by_id.get(class_id) for info in (there, new))
        ]
        if rows[0] != rows[1]:
            return f"its class {class_id} is {rows[0]}, here it is {rows[1]}"
    return None
