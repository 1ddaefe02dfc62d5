"""The shards of `shard_writer` as an Apache Beam pipeline: same names, same order, same bytes.

Each shard is written whole by one worker, and gets its name only when it is complete. Only the command, when all are
there, moves them to where readers look.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from maxdl_tf import beam_pipeline, command_line
from maxdl_tf.data_gen.shard_output import Output, shard_bounds
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage

_STOP = "stop"  # A file: there was bad input, and the other workers need not begin another shard.


def write_staged(
    tasks: Sequence[Any], make: Callable[[Any], bytes | UserError], names: Sequence[str], output: Output
) -> tuple[int, list[str]]:
    """Writes the shards; returns the number of examples and what was skipped.

    Args:
      tasks: One per example; they are pickled.
      make: Makes a task's record in any worker, or says what is wrong with it; it is pickled.
      names: Of the shards, in order.
      output: Where and how.

    Raises:
      UserError: If there is no Beam, its options make no sense, or bad input is not to be skipped.
      OSError: If a shard cannot be written.
    """
    bounds = shard_bounds(len(tasks), len(names))
    shards = {name: tasks[start:end] for name, (start, end) in zip(names, bounds)}
    beam_pipeline.import_beam()  # So that its absence is told before anything is said to be done.
    print(f"converting {output.split}: {len(tasks)} images in {len(names)} shards on Beam's {output.runner}")
    write = ShardWriter(make, output.staging, output.skip_bad_input)
    answers = beam_pipeline.run_chunks(write, shards, output.staging, output.runner, output.beam_options)
    for answer in answers:
        if answer["fault"]:
            raise UserError(answer["fault"])
    return sum(answer["written"] for answer in answers), [line for answer in answers for line in answer["skipped"]]


class ShardWriter:
    """Writes the shard of a name and of its tasks, in a worker.

    Args:
      make: Makes a task's record, or says what is wrong with it.
      staging: Folder of the shards.
      skip_bad_input: Leave it out, instead of ending.
    """

    def __init__(self, make: Callable[[Any], bytes | UserError], staging: str, skip_bad_input: bool):
        self._make = make
        self._staging = staging
        self._skip_bad_input = skip_bad_input

    def __call__(self, name: str, tasks: Sequence[Any]) -> dict[str, Any]:
        """How many examples were written, what was skipped, and the fault that ended it or None."""
        with command_line.quiet_imports():
            import tensorflow as tf

        written, skipped = 0, []
        if storage.exists(f"{self._staging}/{_STOP}"):
            return {"written": 0, "skipped": [], "fault": None}
        partial = f"{self._staging}/{name}.{uuid.uuid4().hex}.partial"  # Two workers may be given the same shard.
        with tf.io.TFRecordWriter(partial) as writer:
            for task in tasks:
                record = self._make(task)
                if isinstance(record, bytes):
                    writer.write(record)
                    written += 1
                elif self._skip_bad_input:
                    skipped.append(str(record))
                else:
                    storage.write_file(f"{self._staging}/{_STOP}", b"")
                    return {"written": written, "skipped": [], "fault": str(record)}
        storage.rename(partial, f"{self._staging}/{name}")
        return {"written": written, "skipped": skipped, "fault": None}
