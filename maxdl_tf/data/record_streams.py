"""Records of TFRecord files as `tf.data` streams: shuffled and endless, or once and in order.

TensorFlow's own reader stops at the first damaged record of a file. If it is set to ignore errors, it drops the rest of
the file silently. The streams here either stop with the file and the record, or skip the damaged records only.

TensorFlow's reader also believes the length that a record announces: 2^60 bytes end the process. So the lengths of all
records are compared with the size of the file before TensorFlow reads it. This takes a read of a few bytes for each
record. Remote files, for which each read is a request, are checked only if damaged records are skipped.
"""

from __future__ import annotations

import contextlib
import random
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from maxdl_tf.data import records, shards
from maxdl_tf.data.records import Damage, Run
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage
from maxdl_tf.structs import Tensor

_FILES_READ_AT_ONCE = 32
_FILES_SCANNED_AT_ONCE = 8
_BUFFER_BYTES = 1 << 18
_DAMAGES_LISTED = 10
_WHOLE_FILE = -1  # Count of a run that takes all records of a file.


class DataService(NamedTuple):
    """Machines that make the batches in place of the trainer.

    Attributes:
      address: Address of the dispatcher of the tf.data service: "grpc://host:port".
      job_name: Name that all workers of a training share and no other training uses.
    """

    address: str
    job_name: str


def endless_batches(
    file_pattern: str | Sequence[str],
    make_example: Callable[..., NamedTuple],
    *,
    batch_size: int,
    pairs: bool = False,
    shuffle_buffer: int = 1000,
    cache: bool = False,
    seed: int | None = None,
    shard_count: int = 1,
    shard_index: int = 0,
    skip_damaged: bool = False,
    service: DataService | None = None,
) -> tf.data.Dataset:
    """Makes endless shuffled batches.

    Args:
      file_pattern: One or more globs of TFRecord shards; see `shards.find_shards`.
      make_example: Function of a record, scalar string, and a seed, int64 [2]: the seed of the run and the number of
        the example in the run. With `pairs`, its third argument is another record.
      batch_size: Examples per batch. The end of an epoch and the start of the next may share a batch.
      pairs: Whether examples are made of two records. The second one is from a stream of the same records that has
        its own order, shuffle buffer and cache.
      shuffle_buffer: Number of records in the shuffle buffer.
      cache: Whether to keep the records in memory after the first epoch.
      seed: Seed of the run. Runs with equal seeds and files get equal batches; None draws a new seed.
      shard_count: Number of input pipelines that share the data, one per worker.
      shard_index: Index of this input pipeline. Workers take whole files if there are enough, else every n-th example.
      skip_damaged: Whether to skip damaged records. The files are then read once before the first batch, and the
        damaged records are listed on stderr. Otherwise the first one whose data are damaged raises
        `tf.errors.DataLossError`.
      service: Machines that make the batches. They share the files, and each of the `shard_count` pipelines takes
        whatever comes first, so two such runs differ, whatever the seed.

    Raises:
      UserError: A pattern matches no file, shards are missing, or a file is cut off or has a record of a wrong length.
    """
    deterministic = seed is not None and service is None
    if service is not None:
        shard_count, shard_index = 1, 0
        # All workers must request the same data set.
        seed = zlib.crc32(service.job_name.encode()) if seed is None else seed
    elif seed is None:
        seed = random.SystemRandom().getrandbits(31)

    files = shards.find_shards(file_pattern)
    if len(files) < shard_count:
        # Workers can share examples without gaps only in an order that all of them know: the order of the files.
        in_order = _records_in_order(files, skip_damaged).shard(shard_count, shard_index)

        def records_of(seed: int) -> tf.data.Dataset:
            return in_order

    else:
        files = files[shard_index::shard_count]
        rows, read = _readable(files, skip_damaged)

        def records_of(seed: int) -> tf.data.Dataset:
            if service is None:
                dataset = _dataset(rows).shuffle(len(rows), seed=seed)
            else:
                # A shuffle buffer would give all files to the machine that asks first.
                dataset = _dataset(random.Random(seed).sample(rows, len(rows)))
            return dataset.interleave(
                read,
                cycle_length=min(_FILES_READ_AT_ONCE, len(files)),
                num_parallel_calls=tf.data.AUTOTUNE,
                deterministic=deterministic,
            )

    def stream(seed: int) -> tf.data.Dataset:
        dataset = records_of(seed)
        if cache:
            dataset = dataset.cache()
        return dataset.shuffle(shuffle_buffer, seed=seed).repeat()

    dataset = stream(seed)
    if pairs:
        dataset = tf.data.Dataset.zip((dataset, stream(zlib.crc32(f"second stream of {seed}".encode()))))

    @tf.autograph.experimental.do_not_convert  # The search for code to convert takes a second and finds nothing.
    def make_numbered(index: Tensor, serialized: Tensor | tuple[Tensor, Tensor]) -> NamedTuple:
        numbers = tf.stack([tf.constant(seed, tf.int64), index * shard_count + shard_index])
        first, *second = tf.nest.flatten(serialized)
        return make_example(first, numbers, *second)

    dataset = dataset.enumerate().map(make_numbered, num_parallel_calls=tf.data.AUTOTUNE, deterministic=deterministic)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    if service is not None:
        dataset = dataset.apply(
            tf.data.experimental.service.distribute(
                processing_mode=tf.data.experimental.service.ShardingPolicy.DYNAMIC,
                service=service.address,
                job_name=service.job_name,
            )
        )
    return _already_sharded(dataset.prefetch(tf.data.AUTOTUNE))


def examples_in_order(
    file_pattern: str | Sequence[str],
    make_example: Callable[[Tensor], NamedTuple],
    *,
    max_images: int | None = None,
    skip_damaged: bool = False,
) -> tf.data.Dataset:
    """Makes an example of each record, once, in the order of the files, without batching.

    Args:
      file_pattern: One or more globs of TFRecord shards.
      make_example: Function of a record, scalar string.
      max_images: Number of examples; None for all.
      skip_damaged: Whether to skip damaged records, as in `endless_batches`.

    Raises:
      UserError: As in `endless_batches`.
    """
    dataset = _records_in_order(shards.find_shards(file_pattern), skip_damaged)
    if max_images is not None:
        dataset = dataset.take(max_images)
    make_example = tf.autograph.experimental.do_not_convert(make_example)
    dataset = dataset.map(make_example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return _already_sharded(dataset)


def _records_in_order(files: list[str], skip_damaged: bool) -> tf.data.Dataset:
    if not skip_damaged:
        _check_lengths(files)
        return tf.data.TFRecordDataset(files)
    runs, read = _readable(files, skip_damaged)
    return _dataset(runs).flat_map(read)


def _readable(files: list[str], skip_damaged: bool) -> tuple[list[tuple], Callable[..., tf.data.Dataset]]:
    """Files, or their runs of intact records, and the function that reads one."""
    if not skip_damaged:
        _check_lengths(files)
        return [(path,) for path in files], tf.data.TFRecordDataset
    return _intact_runs(files), _read_run


def _dataset(rows: list[tuple]) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(tuple(np.array(column) for column in zip(*rows)))


def _already_sharded(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Keeps a distribution strategy from sharding the dataset again."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)


# --- damaged records ---


def _check_lengths(files: Sequence[str]) -> None:
    """Raises UserError if a local file is empty or cut off, or the length of a record is wrong."""
    local = [path for path in files if not storage.is_remote(path)]
    if any(_in_threads(records.first_wrong_length, local)):
        raise _damaged([damage for _, damages in _in_threads(records.scan, files) for damage in damages])


def _damaged(damages: Sequence[Damage]) -> UserError:
    more = f", and {len(damages) - 1} more are damaged" if len(damages) > 1 else ""
    return UserError(f"{damages[0]}{more}; convert the data again, or set on_damaged_record: SKIP to read the others")


def _in_threads(function: Callable[[str], Any], files: Sequence[str]) -> list[Any]:
    with ThreadPoolExecutor(_FILES_SCANNED_AT_ONCE) as threads:
        return list(threads.map(function, files))


def _intact_runs(files: Sequence[str]) -> list[Run]:
    """Reads the files once and lists the damaged records on stderr.

    Returns:
      The runs of intact records, in the order of the files; an intact file is one run of `_WHOLE_FILE`.

    Raises:
      UserError: No record is intact.
    """
    scans = _in_threads(_scan, files)
    runs = [run for found, _ in scans for run in found]
    damages = [damage for _, found in scans for damage in found]
    if not runs:
        raise UserError(
            f"none of {len(files)} files has an intact record; the first: {damages[0]}; convert the data again"
        )
    if damages:
        lines = [f"skipping {len(damages)} damaged records (on_damaged_record: SKIP):"]
        lines += [f"  {damage}" for damage in damages[:_DAMAGES_LISTED]]
        if len(damages) > _DAMAGES_LISTED:
            lines.append(f"  and {len(damages) - _DAMAGES_LISTED} more; maxdl-check-data tfrecords lists all")
        print("\n".join(lines), file=sys.stderr, flush=True)
    return runs


def _scan(path: str) -> tuple[list[Run], list[Damage]]:
    """`records.scan`, but TensorFlow's reader, which is faster, checks first whether any data are damaged."""
    if records.first_wrong_length(path) is None:
        try:
            tf.data.TFRecordDataset(path).reduce(tf.constant(0, tf.int64), lambda count, record: count + 1)
            return [Run(path, 0, _WHOLE_FILE)], []
        except tf.errors.DataLossError:
            pass
    return records.scan(path)


def _read_run(path: Tensor, offset: Tensor, count: Tensor) -> tf.data.Dataset:
    """The records of a run as scalar strings, read by graph operations only."""
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=path[tf.newaxis], compression_type="", buffer_size=_BUFFER_BYTES, byte_offsets=offset[tf.newaxis]
    )
    return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string)).take(count)


@contextlib.contextmanager
def naming_bad_records(files: Callable[[], Sequence[str]], parse: Callable[[Tensor], Any]) -> Iterator[None]:
    """Turns TensorFlow's errors about a record into a `UserError` that names the file and the record.

    TensorFlow reports neither, so the files are read again to find the record. Errors with other causes pass unchanged.

    Args:
      files: Function that returns the TFRecord files in use.
      parse: Function of a record that fails if the record is unusable.
    """
    try:
        yield
    except tf.errors.DataLossError as error:
        damages = [damage for _, found in _in_threads(records.scan, files()) for damage in found]
        if not damages:
            raise
        raise _damaged(damages) from error
    except tf.errors.InvalidArgumentError as error:
        fault = _first_unusable(files(), parse) if "Iterator" in str(error) else None
        if fault is None:
            raise
        raise UserError(f"{fault}; maxdl-check-data tfrecords lists all such records") from error


def _first_unusable(files: Sequence[str], parse: Callable[[Tensor], Any]) -> Damage | None:
    for path in files:
        for record in records.read_records(path):
            if isinstance(record, Damage):
                continue
            try:
                parse(tf.constant(record.data))
            except tf.errors.InvalidArgumentError as error:
                return Damage(path, record.number, record.offset, _first_line(error))
    return None


def _first_line(error: tf.errors.OpError) -> str:
    """The message of an eager operation's error without the name of the operation and the value of a condition."""
    text = error.message.replace("assertion failed: ", "").split("Summarized data: ")[-1].strip()
    text = re.sub(r"^b(['\"])(.*)\1$", r"\2", text, flags=re.MULTILINE)  # Tensors of strings are printed as bytes.
    return " ".join(text.split("{{function_node")[0].split("[Op:")[0].split()) or text.splitlines()[0]
