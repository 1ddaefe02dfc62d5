"""The output folder of a conversion: names of shards, checks of existing files, and publication of all shards at once.

Shards grow in a hidden folder inside the output folder and leave it when the last one is complete. A killed run leaves
no file that a reader would find, and the next run removes its hidden folder.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import NamedTuple

from maxdl_tf import class_table
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage

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
    def staging(self) -> str:
        """Folder in which shards grow; the leading dot hides it from globs."""
        return f"{self.folder}/.incomplete-{self.split}"

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
        return [f"{self.split}-{shard:05d}-of-{num_shards:05d}.tfrecord" for shard in range(num_shards)]

    def existing_shards(self) -> list[str]:
        """Names of the split's shards in the folder."""
        pattern = re.compile(re.escape(self.split) + r"-\d{5}-of-\d{5}\.tfrecord")
        return [name for name in storage.list_folder(self.folder) if pattern.fullmatch(name)]


class Report(NamedTuple):
    """Result of a conversion; `str` gives the report for the user.

    Attributes:
      written: Number of examples in the shards.
      num_shards: Number of shards.
      skipped: Message of each skipped task.
      output: Output options.
    """

    written: int
    num_shards: int
    skipped: list[str]
    output: Output

    def __str__(self) -> str:
        lines = [
            f"{self.written} images in {self.num_shards} shards: {self.output.folder}/{self.output.split}-*.tfrecord"
        ]
        if self.skipped:
            lines.append(f"{len(self.skipped)} images skipped:")
            lines += [f"  {message}" for message in self.skipped[:_LISTED_AT_THE_END]]
            if len(self.skipped) > _LISTED_AT_THE_END:
                lines.append(f"  and {len(self.skipped) - _LISTED_AT_THE_END} more")
        return "\n".join(lines)


def shard_bounds(num_tasks: int, num_shards: int) -> list[tuple[int, int]]:
    """Returns (start, end) of the tasks of each shard; the sizes differ by at most one."""
    starts = [num_tasks * shard // num_shards for shard in range(num_shards + 1)]
    return list(zip(starts, starts[1:]))


def prepare(dataset_info: DatasetInfo, output: Output) -> None:
    """Creates the folders and checks that existing shards and class tables do not conflict with the new ones.

    Raises:
      UserError: Existing files conflict.
      OSError: A folder cannot be created.
    """
    if storage.exists(output.folder) and not storage.is_folder(output.folder):
        raise UserError(f"--output_dir={output.folder} is a file; name a folder")
    existing = output.existing_shards()
    if existing and not output.overwrite:
        raise UserError(
            f"{output.folder} already has {len(existing)} shards of split {output.split!r}; choose another "
            "--output_dir or --split, or pass --overwrite"
        )
    table = output.dataset_info_file
    if storage.exists(table):
        difference = _difference(class_table.load(table), dataset_info)
        if difference:
            raise UserError(
                f"{table} differs from the class table of this split: {difference}; choose another --output_dir, or "
                f"pass --dataset_info={table} if the converter has this flag"
            )
    storage.remove_folder(output.staging)
    storage.make_folder(output.staging)


def publish(dataset_info: DatasetInfo, names: list[str], output: Output) -> None:
    """Moves the class table and then the shards out of the hidden folder.

    Raises:
      OSError: A file cannot be moved.
    """
    if not storage.exists(output.dataset_info_file):
        staged = f"{output.staging}/{class_table.FILE_NAME}"
        storage.write_file(staged, class_table.to_text(dataset_info).encode())
        storage.rename(staged, output.dataset_info_file)
    for outdated in output.existing_shards():
        storage.remove_file(f"{output.folder}/{outdated}")
    for name in names:
        storage.rename(f"{output.staging}/{name}", f"{output.folder}/{name}")


def _difference(there: DatasetInfo, new: DatasetInfo) -> str | None:
    """Describes the first difference of two class tables; names of data sets and colors do not count."""
    for field in ("label_divisor", "ignore_label"):
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
