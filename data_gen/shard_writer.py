"""Images to TFRecord shards: in parallel, with the same bytes for any number of processes, all shards or none.

Local processes make the serialized examples and do not import TensorFlow. The main process writes them in the order of
the tasks, which takes a small part of the time (docs/data.md has numbers). Apache Beam writes the same shards if one
machine is too slow; one worker writes a shard as a whole, and the shard gets its name when it is complete.
"""

from __future__ import annotations

import functools
import itertools
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from maxdl_tf import beam_pipeline, command_line
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data_gen.annotated_images import Annotated, Record, make_record
from maxdl_tf.data_gen.shard_output import Output, Report, Tally, prepared, publish, shard_bounds
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage
from maxdl_tf.processes import results_in_order
from maxdl_tf.progress import Progress

_STOP = "stop"  # Marker file: the input is bad, so other workers need not start another shard.


def write_shards(
    tasks: Sequence[Any], annotate: Callable[[Any], Annotated], dataset_info: DatasetInfo, output: Output
) -> Report:
    """Converts all tasks, shows the progress on stderr, and writes the class table next to the shards.

    Args:
      tasks: One picklable object per example.
      annotate: Picklable function that converts a task; it raises UserError for bad input.
      dataset_info: The class table, which must agree with that of other splits in the output folder.
      output: Output options.

    Raises:
      UserError: The input is bad and not skipped, or the output cannot be written. No shard exists then.
    """
    names = output.shard_names(len(tasks))
    write_staged = _write_with_beam if output.runner else _write_locally
    try:
        with prepared(dataset_info, output):
            make = functools.partial(
                make_record, annotate, output.label_format, dataset_info.void, dataset_info.label_divisor
            )
            tally = write_staged(tasks, make, names, output)
            if not tally.written:
                raise UserError(
                    f"all {len(tasks)} images were skipped, nothing is written; the first: {tally.skipped[0]}"
                )
            publish(dataset_info, names, output)
    except OSError as error:
        path = error.filename or output.folder
        raise UserError(
            f"cannot write to {path}: {error.strerror or error}; free space or choose another --output_dir"
        ) from error
    void_share = tally.void / max(tally.pixels, 1)
    lacks_objects = tally.pixels > 0 and not tally.with_objects and any(row.is_thing for row in dataset_info.classes)
    return Report(tally.written, len(names), tally.skipped, output, void_share, lacks_objects)


def _write_locally(
    tasks: Sequence[Any], make: Callable[[Any], Record | UserError], names: Sequence[str], output: Output
) -> Tally:
    """Writes the shards with local processes."""
    tally = Tally()
    with results_in_order(make, tasks, output.processes) as records:
        progress = Progress(f"converting {output.split}", total=len(tasks))
        with command_line.quiet_imports():  # After the start of the processes, which need not wait for it.
            import tensorflow as tf
        try:
            with progress:
                for name, (start, end) in zip(names, shard_bounds(len(tasks), len(names))):
                    with tf.io.TFRecordWriter(f"{output.staging}/{name}") as writer:
                        for record in itertools.islice(records, end - start):
                            if isinstance(record, Record):
                                writer.write(record.content)
                                tally.add(record)
                            elif output.skip_bad_input:
                                tally.skipped.append(str(record))
                            else:
                                raise record
                            progress.advance(note=f"{len(tally.skipped)} skipped" if tally.skipped else None)
        except tf.errors.OpError as error:
            raise OSError(error.message) from error
    return tally


def _write_with_beam(
    tasks: Sequence[Any], make: Callable[[Any], Record | UserError], names: Sequence[str], output: Output
) -> Tally:
    """Writes the shards with Apache Beam."""
    bounds = shard_bounds(len(tasks), len(names))
    shards = {name: tasks[start:end] for name, (start, end) in zip(names, bounds)}
    beam_pipeline.import_beam()  # A missing Beam is an error before the next line announces the conversion.
    print(f"converting {output.split}: {len(tasks)} images in {len(names)} shards on Beam's {output.runner}")
    write = BeamShardWriter(make, output.staging, output.skip_bad_input)
    answers = beam_pipeline.run_chunks(write, shards, output.staging, output.runner, output.beam_options)
    total = Tally()
    for answer in answers:
        if answer["fault"]:
            raise UserError(answer["fault"])
        total.merge(Tally(**answer["tally"]))
    return total


class BeamShardWriter:
    """Writes one shard in a worker of Apache Beam.

    Args:
      make: Picklable function that returns the record of a task, or the error if its input is bad.
      staging: Folder of the shards.
      skip_bad_input: Whether to skip bad input; otherwise the first bad task stops the conversion.
    """

    def __init__(self, make: Callable[[Any], Record | UserError], staging: str, skip_bad_input: bool):
        self._make = make
        self._staging = staging
        self._skip_bad_input = skip_bad_input

    def __call__(self, name: str, tasks: Sequence[Any]) -> dict[str, Any]:
        """Writes the shard; returns the fields of its `Tally`, and the fault or None."""
        with command_line.quiet_imports():
            import tensorflow as tf

        tally = Tally()
        if storage.exists(f"{self._staging}/{_STOP}"):
            return {"tally": asdict(tally), "fault": None}
        partial = f"{self._staging}/{name}.{uuid.uuid4().hex}.partial"  # Two workers may get the same shard.
        with tf.io.TFRecordWriter(partial) as writer:
            for task in tasks:
                record = self._make(task)
                if isinstance(record, Record):
                    writer.write(record.content)
                    tally.add(record)
                elif self._skip_bad_input:
                    tally.skipped.append(str(record))
                else:
                    storage.write_file(f"{self._staging}/{_STOP}", b"")
                    return {"tally": asdict(tally), "fault": str(record)}
        storage.rename(partial, f"{self._staging}/{name}")
        return {"tally": asdict(tally), "fault": None}
