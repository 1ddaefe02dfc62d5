"""The shards of `shard_writer` as an Apache Beam pipeline: same names, same order, same bytes.

Each shard is one element of the pipeline and is written whole by one worker. What a worker needs of the tasks lies in a
file of its own in the hidden folder where shards grow, so that neither the pipeline's description nor a worker holds
all of them. A worker that is repeated, as runners do, writes the same file again; a shard gets its name only when it is
complete. Bad input is no exception, which runners would try again: it is written down beside the shard and told by the
command, which alone moves the shards to where readers look.

Workers need this package, and paths that they can reach.
"""

from __future__ import annotations

import json
import logging
import pickle
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from maxdl_tf import command_line
from maxdl_tf.data_gen import storage
from maxdl_tf.data_gen.shard_output import Output, shard_bounds
from maxdl_tf.errors import UserError

RUNNERS = ("DirectRunner", "DataflowRunner", "FlinkRunner", "SparkRunner")
_STOP = "stop"  # A file: there was bad input, and the other workers need not begin another shard.


def write_staged(
    tasks: Sequence[Any], make: Callable[[Any], bytes | UserError], names: Sequence[str], output: Output
) -> tuple[int, list[str]]:
    """Writes the shards; returns the number of examples and what was skipped.

    Args:
      tasks: One per example, pickled.
      make: Makes a task's record in any worker, or says what is wrong with it; it is pickled.
      names: Of the shards, in order.
      output: Where and how.

    Raises:
      UserError: If there is no Beam, its options make no sense, or bad input is not to be skipped.
      OSError: If a shard cannot be written.
    """
    beam = import_beam()
    for name, (start, end) in zip(names, shard_bounds(len(tasks), len(names))):
        storage.write_file(_tasks_file(output.staging, name), pickle.dumps(tasks[start:end]))
    print(f"converting {output.split}: {len(tasks)} images in {len(names)} shards on Beam's {output.runner}")
    run_pipeline(
        lambda pipeline: (
            pipeline
            | "shards" >> beam.Create(list(names))
            | "spread" >> beam.Reshuffle()
            | "write" >> beam.Map(ShardWriter(make, output.staging, output.skip_bad_input))
        ),
        output.runner,
        output.beam_options,
    )
    return _outcome(names, output)


def import_beam() -> Any:
    """The module apache_beam.

    Raises:
      UserError: If it is not installed.
    """
    try:
        with command_line.quiet_imports():
            import apache_beam

            return apache_beam
    except ImportError as error:
        raise UserError(
            f"--runner needs Apache Beam, which cannot be imported ({error}); pip install 'maxdl_tf[beam]', or leave "
            "--runner away"
        ) from error


def run_pipeline(build: Callable[[Any], Any], runner: str, options: Sequence[str]) -> None:
    """Builds a pipeline, runs it and waits for its end.

    Args:
      build: Is called with the pipeline.
      runner: Its name, one of RUNNERS.
      options: Flags for it, such as `--project=...`.

    Raises:
      UserError: If an option is not known to it.
    """
    beam = import_beam()
    from apache_beam.options.pipeline_options import PipelineOptions

    flags = [option if option.startswith("--") else f"--{option}" for option in options]
    if runner == "DirectRunner":
        # There are no triggers here. The flag keeps it from fetching another program (Prism) and running that.
        flags.append("--allow_unsafe_triggers")
    logging.getLogger("apache_beam.io").setLevel(logging.ERROR)  # It warns of each file system that is not installed.
    with command_line.user_errors(ValueError):
        pipeline = beam.Pipeline(options=PipelineOptions([f"--runner={runner}", *flags]))
    with pipeline:
        build(pipeline)


class ShardWriter:
    """Writes the shard of a name, in a worker.

    Args:
      make: Makes a task's record, or says what is wrong with it.
      staging: Folder of the shards and of the files of their tasks.
      skip_bad_input: Leave it out, instead of ending.
    """

    def __init__(self, make: Callable[[Any], bytes | UserError], staging: str, skip_bad_input: bool):
        self._make = make
        self._staging = staging
        self._skip_bad_input = skip_bad_input

    def __call__(self, name: str) -> None:
        with command_line.quiet_imports():
            import tensorflow as tf

        if storage.exists(f"{self._staging}/{_STOP}"):
            return
        written, skipped, fault = 0, [], None
        partial = f"{self._staging}/{name}.{uuid.uuid4().hex}.partial"  # Two workers may be given the same shard.
        with tf.io.TFRecordWriter(partial) as writer:
            for task in pickle.loads(storage.read_file(_tasks_file(self._staging, name))):
                record = self._make(task)
                if isinstance(record, bytes):
                    writer.write(record)
                    written += 1
                elif self._skip_bad_input:
                    skipped.append(str(record))
                else:
                    fault = str(record)
                    break
        storage.rename(partial, f"{self._staging}/{name}")
        said = {"written": written, "skipped": skipped, "fault": fault}
        storage.write_file(_outcome_file(self._staging, name), json.dumps(said).encode())
        if fault:
            storage.write_file(f"{self._staging}/{_STOP}", b"")


def _outcome(names: Sequence[str], output: Output) -> tuple[int, list[str]]:
    outcomes = [
        json.loads(storage.read_file(_outcome_file(output.staging, name)))
        for name in names
        if storage.exists(_outcome_file(output.staging, name))
    ]
    for outcome in outcomes:
        if outcome["fault"]:
            raise UserError(outcome["fault"])
    if len(outcomes) < len(names):
        raise OSError(f"{len(names) - len(outcomes)} of {len(names)} shards were not written by the runner")
    return sum(outcome["written"] for outcome in outcomes), [line for out in outcomes for line in out["skipped"]]


def _tasks_file(staging: str, name: str) -> str:
    return f"{staging}/{name}.tasks"


def _outcome_file(staging: str, name: str) -> str:
    return f"{staging}/{name}.json"
