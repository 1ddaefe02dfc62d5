"""Where shards go: their names, what may be there already, and how they appear all at once.

Shards grow in a hidden folder inside the output folder and are moved out of it when the last one is complete, so that a
run that was killed leaves nothing that a reader would take, and the next run removes the rest.
"""

from __future__ import annotations

import math
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
    """Where shards go and how they are written.

    Attributes:
      directory: Made if it is not there.
      split: Shards are named `SPLIT-00000-of-00008.tfrecord`.
      num_shards: None: one for every EXAMPLES_PER_SHARD tasks.
      processes: With 1, everything happens in this process.
      label_format: "png" or "raw".
      skip_bad_input: Leave out what raises UserError, instead of ending the conversion.
      overwrite: Replace shards of the split that are there.
      runner: Of Apache Beam, such as "DirectRunner"; None: processes of our own.
      beam_options: Flags for that runner.
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
        """Where shards grow; the leading dot hides it from globs."""
        return f"{self.folder}/.incomplete-{self.split}"

    @property
    def dataset_info_file(self) -> str:
        return f"{self.folder}/{class_table.FILE_NAME}"

    def shard_names(self, num_tasks: int) -> list[str]:
        """The names of all shards.

        Raises:
          UserError: If there can be no shards, or not as many as wanted.
        """
        if num_tasks == 0:
            raise UserError("there is nothing to convert: the data set has no images")
        num_shards = math.ceil(num_tasks / EXAMPLES_PER_SHARD) if self.num_shards is None else self.num_shards
        largest = min(num_tasks, _LARGEST_SHARD_COUNT)
        if not 1 <= num_shards <= largest:
            raise UserError(f"--num_shards={num_shards} for {num_tasks} images: must be 1 to {largest}")
        return [f"{self.split}-{shard:05d}-of-{num_shards:05d}.tfrecord" for shard in range(num_shards)]

    def existing_shards(self) -> list[str]:
        """The names of the split's shards that are in the folder."""
        pattern = re.compile(re.escape(self.split) + r"-\d{5}-of-\d{5}\.tfrecord")
        return [name for name in storage.list_folder(self.folder) if pattern.fullmatch(name)]


class Report(NamedTuple):
    """What a conversion did; as text, what to tell the user.

    Attributes:
      written: Examples in the shards.
      num_shards: Number of shards.
      skipped: A message for each task that was left out.
      output: Where the shards are.
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
    """The first task of each shard and the one after its last; sizes differ by one at most."""
    starts = [num_tasks * shard // num_shards for shard in range(num_shards + 1)]
    return list(zip(starts, starts[1:]))


def prepare(dataset_info: DatasetInfo, output: Output) -> None:
    """Makes the folders and checks that nothing in them contradicts what is to be written.

    Raises:
      UserError: If something does.
      OSError: If they cannot be made.
    """
    if storage.exists(output.folder) and not storage.is_folder(output.folder):
        raise UserError(f"--output_dir={output.folder} is a file; name a folder")
    existing = output.existing_shards()
    if existing and not output.overwrite:
        raise UserError(
            f"{output.folder} already has {len(existing)} shards of split {output.split!r}; choose another "
            "--output_dir or --split, or say --overwrite"
        )
    table = output.dataset_info_file
    if storage.exists(table):
        difference = _difference(class_table.load(table), dataset_info)
        if difference:
            raise UserError(
                f"{table} does not agree with this split: {difference}; choose another --output_dir, or pass "
                f"--dataset_info={table} to a converter that takes it"
            )
    storage.remove_folder(output.staging)
    storage.make_folder(output.staging)


def publish(dataset_info: DatasetInfo, names: list[str], output: Output) -> None:
    """Moves the shards of these names to where readers look, the class table first.

    Raises:
      OSError: If that fails.
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
    """The first thing in which two class tables differ, other than their names and colors."""
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
