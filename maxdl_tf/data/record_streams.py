"""TFRecord files to a stream of what a task makes of their records: shuffled and endless, or once and in order."""

from __future__ import annotations

import os
import random
import sys
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from maxdl_tf.data import damaged_records
from maxdl_tf.errors import UserError
from maxdl_tf.structs import Tensor

_FILES_READ_AT_ONCE = 32


class DataService(NamedTuple):
    """Machines that make the batches in place of the one that trains.

    Attributes:
      address: Of the dispatcher of tf.data service: "grpc://host:port".
      job_name: All workers of a training share one, and no other training has it.
    """

    address: str
    job_name: str


def endless_batches(
    file_pattern: str | Sequence[str],
    make_example: Callable[[Tensor, Tensor], NamedTuple],
    *,
    batch_size: int,
    shuffle_buffer: int = 1000,
    cache: bool = False,
    seed: int | None = None,
    shard_count: int = 1,
    shard_index: int = 0,
    skip_damaged: bool = False,
    service: DataService | None = None,
) -> tf.data.Dataset:
    """Endless shuffled batches of whatever a task makes of its records.

    Args:
      file_pattern: One or more globs of TFRecord shards.
      make_example: Takes a record, scalar string, and a seed, int64 [2]: the run's, and the example's number in it.
      batch_size: Examples in a batch; the last of one epoch and the first of the next may share a batch.
      shuffle_buffer: Examples in the shuffle buffer.
      cache: Keep the records in memory after the first pass.
      seed: Runs with the same seed (and files) get the same batches; None for other ones in each run.
      shard_count: Input pipelines that share the data, one for each worker.
      shard_index: Which of them this is. Workers take whole files if there is one for each, else every n-th example.
      skip_damaged: Read the files once before, say on stderr which records are damaged, and leave these out; otherwise
        the first one is a `tf.errors.DataLossError`.
      service: Make the batches there. Its machines share the files, and all of `shard_count` take from them what comes
        first, so that no two runs are the same, whatever the seed.

    Raises:
      UserError: If a pattern matches no file.
    """
    deterministic = seed is not None and service is None
    if service is not None:
        shard_count, shard_index = 1, 0
        # All workers must ask for the same data set.
        seed = zlib.crc32(service.job_name.encode()) if seed is None else seed
    elif seed is None:
        seed = random.SystemRandom().getrandbits(31)

    files = _checked_files(file_pattern, skip_damaged)
    if len(files) < shard_count:
        # Examples can be dealt out without gaps only in an order that all workers agree on: that of the files.
        dataset = _records_in_order(files, skip_damaged).shard(shard_count, shard_index)
    else:
        files = files[shard_index::shard_count]
        if service is not None:
            # A shuffle buffer would take all files to the one machine that asks first.
            random.Random(seed).shuffle(files)
        dataset, read = _file_dataset(files, skip_damaged)
        if service is None:
            dataset = dataset.shuffle(dataset.cardinality(), seed=seed)
        dataset = dataset.interleave(
            read,
            cycle_length=min(_FILES_READ_AT_ONCE, len(files)),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=deterministic,
        )
    if cache:
        dataset = dataset.cache()
    dataset = dataset.shuffle(shuffle_buffer, seed=seed).repeat().enumerate()

    @tf.autograph.experimental.do_not_convert  # There is nothing to convert, and looking for it takes a second.
    def make_numbered(index: Tensor, serialized: Tensor) -> NamedTuple:
        return make_example(serialized, tf.stack([tf.constant(seed, tf.int64), index * shard_count + shard_index]))

    dataset = dataset.map(make_numbered, num_parallel_calls=tf.data.AUTOTUNE, deterministic=deterministic)
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
    shard_count: int = 1,
    shard_index: int = 0,
    skip_damaged: bool = False,
) -> tf.data.Dataset:
    """What a task makes of each record, once, in the order of the files; not batched.

    Args:
      file_pattern: One or more globs of TFRecord shards.
      make_example: Takes a record, scalar string.
      max_images: Only the first ones.
      shard_count: Input pipelines that share the images, one for each worker.
      shard_index: Which of them this is.
      skip_damaged: Leave out damaged records, as `endless_batches` does.

    Raises:
      UserError: If a pattern matches no file.
    """
    dataset = _records_in_order(_checked_files(file_pattern, skip_damaged), skip_damaged)
    if max_images is not None:
        dataset = dataset.take(max_images)
    if shard_count > 1:
        dataset = dataset.shard(shard_count, shard_index)
    make_example = tf.autograph.experimental.do_not_convert(make_example)
    dataset = dataset.map(make_example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return _already_sharded(dataset)


def _records_in_order(files: list[str], skip_damaged: bool) -> tf.data.Dataset:
    if not skip_damaged:
        return tf.data.TFRecordDataset(files)
    dataset, read = _file_dataset(files, skip_damaged)
    return dataset.flat_map(read)


def _file_dataset(files: list[str], skip_damaged: bool) -> tuple[tf.data.Dataset, Callable[..., tf.data.Dataset]]:
    """The files, or what is intact of them, and what reads an element."""
    if not skip_damaged:
        return tf.data.Dataset.from_tensor_slices(files), tf.data.TFRecordDataset
    runs = damaged_records.intact_runs(files, say=lambda line: print(line, file=sys.stderr, flush=True))
    return damaged_records.dataset_of_runs(runs), damaged_records.read_run


def _checked_files(file_pattern: str | Sequence[str], skip_damaged: bool) -> list[str]:
    """The files that match; an empty one, for which TensorFlow has no error, is refused unless it is to be skipped."""
    files = matching_files(file_pattern)
    for path in files if not skip_damaged else ():
        if "://" not in path and os.path.getsize(path) == 0:
            raise UserError(
                f"{path} is empty, perhaps left by a full disk; convert the data again, or set on_damaged_record: SKIP"
            )
    return files


def matching_files(file_pattern: str | Sequence[str]) -> list[str]:
    """The files that any of the patterns matches, sorted.

    Raises:
      UserError: If a pattern matches none.
    """
    patterns = [file_pattern] if isinstance(file_pattern, str) else list(file_pattern)
    files = set()
    for pattern in patterns:
        matches = tf.io.gfile.glob(pattern)
        if not matches:
            raise UserError(
                f"file_pattern {pattern!r} matches no file; wanted TFRecord shards such as those that maxdl-convert "
                "writes (train-00000-of-00008.tfrecord): convert the data first, or correct the path"
            )
        files.update(matches)
    if not files:
        raise UserError("no file_pattern is given; name the TFRecord shards, such as 'data/train-*.tfrecord'")
    return sorted(files)


def _already_sharded(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Keeps a distribution strategy from dividing once more what was divided here."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)
