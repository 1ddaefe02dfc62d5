"""What a run does about records that cannot be read: it names them and stops, or reads all others.

TensorFlow's own reader gives up a file at its first damaged record; told to ignore errors, it says nothing and leaves
out the rest of the file. Here the rest is read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import tensorflow as tf

from maxdl_tf.data import record_files
from maxdl_tf.data.record_files import Damage, Run
from maxdl_tf.errors import UserError
from maxdl_tf.structs import Tensor

_FILES_CHECKED_AT_ONCE = 8
_BUFFER_BYTES = 1 << 18
_NAMED = 10  # Damaged records, when a run starts.
_WHOLE_FILE = -1


def intact_runs(files: Sequence[str], say: Callable[[str], None]) -> list[Run]:
    """Where the intact records of some files are; reads them once, at the speed of the disk where nothing is damaged.

    Args:
      files: TFRecord files.
      say: Is told what is left out.

    Returns:
      In the order of the files; an intact file is one run, whose count is -1: all.

    Raises:
      UserError: No record is intact.
    """
    with ThreadPoolExecutor(_FILES_CHECKED_AT_ONCE) as threads:
        scans = list(threads.map(_scan_if_damaged, files))
    damages = [damage for scan in scans if scan for damage in scan.damages]
    runs = []
    for path, scan in zip(files, scans):
        runs.extend(scan.runs if scan else [Run(path, 0, _WHOLE_FILE)])
    if not runs:
        raise UserError(f"no record of {len(files)} files can be read; the first: {damages[0]}; convert the data again")
    if damages:
        say(f"{len(damages)} damaged records are left out (on_damaged_record: SKIP):")
        for damage in damages[:_NAMED]:
            say(f"  {damage}")
        if len(damages) > _NAMED:
            say(f"  and {len(damages) - _NAMED} more; maxdl-check-data tfrecords names all")
    return runs


def _scan_if_damaged(path: str) -> record_files.Scan | None:
    """None of an intact file: TensorFlow's reader is quicker where it finds nothing."""
    try:
        count = tf.data.TFRecordDataset(path).reduce(tf.constant(0, tf.int64), lambda count, record: count + 1)
        if int(count):
            return None
    except tf.errors.DataLossError:
        pass
    return record_files.scan(path)


def dataset_of_runs(runs: Sequence[Run]) -> tf.data.Dataset:
    """Elements for `read_run`."""
    paths, offsets, counts = zip(*runs)
    return tf.data.Dataset.from_tensor_slices(
        (list(paths), tf.constant(offsets, tf.int64), tf.constant(counts, tf.int64))
    )


def read_run(path: Tensor, offset: Tensor, count: Tensor) -> tf.data.Dataset:
    """The records of a run, scalar strings; in a graph, too, and without Python in it."""
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=path[tf.newaxis], compression_type="", buffer_size=_BUFFER_BYTES, byte_offsets=offset[tf.newaxis]
    )
    return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string)).take(count)


@contextlib.contextmanager
def naming_bad_records(files: Callable[[], Sequence[str]], parse: Callable[[Tensor], Any]) -> Iterator[None]:
    """Turns what TensorFlow says of a record that it cannot use into a `UserError` with file and record.

    TensorFlow knows neither; so the files are read again until the record is found. Errors with another cause stay.

    Args:
      files: Gives the TFRecord files that are read.
      parse: What is made of a record; fails on one that cannot be used.
    """
    try:
        yield
    except tf.errors.DataLossError as error:
        damages = [damage for path in files() for damage in record_files.scan(path).damages]
        if not damages:
            raise
        more = f", and {len(damages) - 1} more are damaged" if len(damages) > 1 else ""
        raise UserError(
            f"{damages[0]}{more}; convert the data again, or set on_damaged_record: SKIP to read the others"
        ) from error
    except tf.errors.InvalidArgumentError as error:
        fault = _first_unusable(files(), parse) if "Iterator" in str(error) else None
        if fault is None:
            raise
        raise UserError(f"{fault}; maxdl-check-data tfrecords names all such records") from error


def _first_unusable(files: Sequence[str], parse: Callable[[Tensor], Any]) -> Damage | None:
    for path in files:
        for record in record_files.records(path):
            if isinstance(record, Damage):
                continue
            try:
                parse(tf.constant(record.data))
            except tf.errors.InvalidArgumentError as error:
                return Damage(path, record.number, record.offset, _first_line(error))
    return None


def _first_line(error: tf.errors.OpError) -> str:
    """What an error of an eager operation says, without the operation's name."""
    text = error.message.replace("assertion failed: ", "").strip()
    return " ".join(text.split("{{function_node")[0].split("[Op:")[0].split()) or text.splitlines()[0]
