"""Images to TFRecord shards: in parallel, the same bytes however many processes, all shards or none.

The processes make serialized examples and need no TensorFlow; this one writes them in the order of the tasks. Shards
grow in a hidden folder inside the output folder and are moved out of it when the last one is complete, so that a run
that was killed leaves nothing that a reader would take, and the next run removes the rest.
"""

from __future__ import annotations

import collections
import concurrent.futures
import concurrent.futures.process
import contextlib
import functools
import itertools
import math
import multiprocessing
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from maxdl_tf import command_line, config
from maxdl_tf.data import example_schema
from maxdl_tf.errors import UserError
from maxdl_tf.progress import Progress
from maxdl_tf.structs import DatasetInfo

EXAMPLES_PER_SHARD = 256
_LARGEST_SHARD_COUNT = 99999
_TASKS_AHEAD = 16  # Per process: enough to keep all busy, few enough to hold their results in memory.
_LISTED_AT_THE_END = 20


class Example(Protocol):
    """What a converter makes of a task."""

    image_id: str

    def encode(self, label_format: str) -> bytes:
        """The serialized `tf.train.Example`, with label maps, if there are any, in that format (`Output`).

        Raises:
          ValueError: If something does not fit into it.
        """


class AnnotatedImage(NamedTuple):
    """An image and its label map.

    Attributes:
      image_bytes: The image file's content, RGB.
      image_format: "jpeg" or "png".
      label: int [height, width], class id * label divisor + instance.
      image_id: File name without extension.
    """

    image_bytes: bytes
    image_format: str
    label: np.ndarray
    image_id: str

    def encode(self, label_format: str) -> bytes:
        return example_schema.encode_example(*self, label_format=label_format)


class ClassifiedImage(NamedTuple):
    """An image that has a class as a whole.

    Attributes:
      image_bytes: The image file's content, RGB.
      image_format: "jpeg" or "png".
      size: (height, width).
      class_id: From 1.
      class_name: For people.
      image_id: What messages call the image.
    """

    image_bytes: bytes
    image_format: str
    size: tuple[int, int]
    class_id: int
    class_name: str
    image_id: str

    def encode(self, label_format: str) -> bytes:
        del label_format  # It has no label map.
        return example_schema.encode_classified_example(*self)


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
    """

    directory: str
    split: str
    num_shards: int | None = None
    processes: int = 1
    label_format: str = "png"
    skip_bad_input: bool = False
    overwrite: bool = False

    def __post_init__(self):
        if not re.fullmatch(r"\w[\w.-]*", self.split):
            raise UserError(f"--split={self.split!r}: must be letters, digits, '_', '-' and '.'; try train or val")
        if self.processes < 1:
            raise UserError(f"--processes={self.processes}: must be at least 1")

    @property
    def folder(self) -> Path:
        return Path(self.directory)

    @property
    def staging(self) -> Path:
        """Where shards grow; the leading dot hides it from globs."""
        return self.folder / f".incomplete-{self.split}"

    def existing_shards(self) -> list[Path]:
        pattern = re.compile(re.escape(self.split) + r"-\d{5}-of-\d{5}\.tfrecord")
        return sorted(path for path in self.folder.glob("*.tfrecord") if pattern.fullmatch(path.name))


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
            f"{self.written} images in {self.num_shards} shards: {self.output.folder / self.output.split}-*.tfrecord"
        ]
        if self.skipped:
            lines.append(f"{len(self.skipped)} images skipped:")
            lines += [f"  {message}" for message in self.skipped[:_LISTED_AT_THE_END]]
            if len(self.skipped) > _LISTED_AT_THE_END:
                lines.append(f"  and {len(self.skipped) - _LISTED_AT_THE_END} more")
        return "\n".join(lines)


def available_processes() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_shards(
    tasks: Sequence[Any], annotate: Callable[[Any], Example], dataset_info: DatasetInfo, output: Output
) -> Report:
    """Converts all tasks, showing progress on stderr, and leaves the class table beside the shards.

    Args:
      tasks: One per example; each is sent to a process by pickling.
      annotate: Makes a task's example in any process, so it must pickle; raises UserError about bad input.
      dataset_info: The class table, which must agree with the one that other splits left in the output folder.
      output: Where and how.

    Raises:
      UserError: If the input is bad and not to be skipped, or the output cannot be written. No shard is there then.
    """
    num_shards = _num_shards(len(tasks), output.num_shards)
    new_folders = [path for path in (output.folder, *output.folder.parents) if not path.exists()]
    try:
        _prepare(dataset_info, output)
        report = _write_staged(tasks, annotate, num_shards, output)
        _publish(dataset_info, output)
    except OSError as error:
        raise UserError(
            f"cannot write to {output.folder}: {error.strerror or error}; free space or choose another --output_dir"
        ) from error
    finally:
        shutil.rmtree(output.staging, ignore_errors=True)
        for folder in new_folders:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    return report


def _num_shards(num_tasks: int, wanted: int | None) -> int:
    if num_tasks == 0:
        raise UserError("there is nothing to convert: the data set has no images")
    num_shards = math.ceil(num_tasks / EXAMPLES_PER_SHARD) if wanted is None else wanted
    largest = min(num_tasks, _LARGEST_SHARD_COUNT)
    if not 1 <= num_shards <= largest:
        raise UserError(f"--num_shards={num_shards} for {num_tasks} images: must be 1 to {largest}")
    return num_shards


def _prepare(dataset_info: DatasetInfo, output: Output) -> None:
    """Makes the folders and checks that nothing in them contradicts what is to be written."""
    if output.folder.exists() and not output.folder.is_dir():
        raise UserError(f"--output_dir={output.folder} is a file; name a folder")
    existing = output.existing_shards()
    if existing and not output.overwrite:
        raise UserError(
            f"{output.folder} already has {len(existing)} shards of split {output.split!r}; choose another "
            "--output_dir or --split, or say --overwrite"
        )
    table = output.folder / config.DATASET_INFO_FILE
    if table.exists():
        difference = _difference(config.load_dataset_info(str(table)), dataset_info)
        if difference:
            raise UserError(
                f"{table} does not agree with this split: {difference}; choose another --output_dir, or pass "
                f"--dataset_info={table} to a converter that takes it"
            )
    shutil.rmtree(output.staging, ignore_errors=True)
    output.staging.mkdir(parents=True)


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


def _write_staged(tasks: Sequence[Any], annotate: Callable[[Any], Example], num_shards: int, output: Output) -> Report:
    make_record = functools.partial(_make_record, annotate, output.label_format)
    skipped: list[str] = []
    written = 0
    with _records_in_order(make_record, tasks, min(output.processes, len(tasks))) as records:
        progress = Progress(f"converting {output.split}", total=len(tasks))
        with command_line.quiet_imports():  # After the processes have started: they need not wait for it.
            import tensorflow as tf
        try:
            with progress:
                for shard in range(num_shards):
                    name = f"{output.split}-{shard:05d}-of-{num_shards:05d}.tfrecord"
                    size = len(tasks) * (shard + 1) // num_shards - len(tasks) * shard // num_shards
                    with tf.io.TFRecordWriter(str(output.staging / name)) as writer:
                        for record in itertools.islice(records, size):
                            if isinstance(record, bytes):
                                writer.write(record)
                                written += 1
                            elif output.skip_bad_input:
                                skipped.append(str(record))
                            else:
                                raise record
                            progress.advance(note=f"{len(skipped)} skipped" if skipped else None)
        except tf.errors.OpError as error:
            raise OSError(error.message) from error
        except concurrent.futures.process.BrokenProcessPool as error:
            raise UserError(
                "a converting process was ended from outside, perhaps for lack of memory; try fewer --processes"
            ) from error
    if not written:
        raise UserError(f"all {len(tasks)} images were skipped, nothing is written; the first: {skipped[0]}")
    return Report(written, num_shards, skipped, output)


def _publish(dataset_info: DatasetInfo, output: Output) -> None:
    """Moves the shards to where readers look, the class table first."""
    table = output.folder / config.DATASET_INFO_FILE
    if not table.exists():
        staged = output.staging / config.DATASET_INFO_FILE
        staged.write_text(config.dataset_info_to_text(dataset_info), encoding="utf-8")
        staged.rename(table)
    for outdated in output.existing_shards():
        outdated.unlink()
    for shard in sorted(output.staging.glob("*.tfrecord")):
        shard.rename(output.folder / shard.name)


# --- the processes ---


def _make_record(annotate: Callable[[Any], Example], label_format: str, task: Any) -> bytes | UserError:
    """A serialized example, or what is wrong with the input."""
    try:
        annotated = annotate(task)
        try:
            return annotated.encode(label_format)
        except ValueError as error:
            raise UserError(f"{annotated.image_id}: {error}") from error
    except UserError as error:
        return error


@contextlib.contextmanager
def _records_in_order(
    make_record: Callable[[Any], Any], tasks: Sequence[Any], processes: int
) -> Iterator[Iterator[bytes | UserError]]:
    """Starts the processes at once; the context is an iterator of the tasks' records, in order."""
    if processes == 1:
        yield map(make_record, tasks)
        return
    # Not forked: a copy of a process that has started TensorFlow's threads may hang.
    pool = concurrent.futures.ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_start_process, initargs=(make_record,)
    )
    remaining = iter(tasks)
    ahead = collections.deque(pool.submit(_run, task) for task in itertools.islice(remaining, processes * _TASKS_AHEAD))

    def records():
        while ahead:
            yield ahead.popleft().result()
            ahead.extend(pool.submit(_run, task) for task in itertools.islice(remaining, 1))

    try:
        yield records()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_make_record_here: Callable[[Any], Any] | None = None


def _start_process(make_record: Callable[[Any], Any]) -> None:
    global _make_record_here
    _make_record_here = make_record
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot stop its processes; they would wait for tasks for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _run(task: Any) -> bytes | UserError:
    return _make_record_here(task)
