"""Images to TFRecord shards: in parallel, the same bytes however many processes, all shards or none.

The processes make serialized examples and need no TensorFlow; this one writes them in the order of the tasks, which
takes a small part of the time that they take (docs/data.md has figures). Where one machine is not enough,
`beam_shards` writes the same shards.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

from maxdl_tf import command_line
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data_gen import beam_shards
from maxdl_tf.data_gen.examples import Example, make_record
from maxdl_tf.data_gen.shard_output import Output, Report, prepare, publish, shard_bounds
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage
from maxdl_tf.processes import results_in_order
from maxdl_tf.progress import Progress


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
    names = output.shard_names(len(tasks))
    write_staged = beam_shards.write_staged if output.runner else _write_staged
    new_folders = _missing_folders(output.folder)
    try:
        prepare(dataset_info, output)
        written, skipped = write_staged(
            tasks, functools.partial(make_record, annotate, output.label_format), names, output
        )
        if not written:
            raise UserError(f"all {len(tasks)} images were skipped, nothing is written; the first: {skipped[0]}")
        publish(dataset_info, names, output)
    except OSError as error:
        raise UserError(
            f"cannot write to {output.folder}: {error.strerror or error}; free space or choose another --output_dir"
        ) from error
    finally:
        storage.remove_folder(output.staging)
        for folder in new_folders:
            if os.path.isdir(folder) and not os.listdir(folder):
                os.rmdir(folder)
    return Report(written, len(names), skipped, output)


def _missing_folders(folder: str) -> list[str]:
    """Those that have to be made, from the innermost outward; of remote ones, which are no real folders, none."""
    missing = []
    while not storage.is_remote(folder) and folder and not os.path.exists(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    return missing


def _write_staged(
    tasks: Sequence[Any], make: Callable[[Any], bytes | UserError], names: Sequence[str], output: Output
) -> tuple[int, list[str]]:
    """Writes the shards with processes of our own; returns the number of examples and what was skipped."""
    skipped: list[str] = []
    written = 0
    with results_in_order(make, tasks, output.processes) as records:
        progress = Progress(f"converting {output.split}", total=len(tasks))
        with command_line.quiet_imports():  # After the processes have started: they need not wait for it.
            import tensorflow as tf
        try:
            with progress:
                for name, (start, end) in zip(names, shard_bounds(len(tasks), len(names))):
                    with tf.io.TFRecordWriter(f"{output.staging}/{name}") as writer:
                        for record in itertools.islice(records, end - start):
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
    return written, skipped
