"""Work in chunks on Apache Beam (the extra `beam`), for what outgrows a machine.

What a worker needs of a chunk lies in a file of its own, and what it says of it comes back in another: neither the
pipeline's description nor a worker holds all tasks, and no result has to pass through the pipeline. Runners may give a
chunk to two workers or again to one that was lost, so that working on it twice must do no harm. Bad input is no
exception, after which runners would try again; workers say so in their answer.

Workers need this package, and paths that they can reach.
"""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from maxdl_tf.errors import UserError
from maxdl_tf.files import storage

RUNNERS = ("DirectRunner", "DataflowRunner", "FlinkRunner", "SparkRunner")


def define_flags(flag_values: flags.FlagValues, instead_of: str) -> None:
    """Adds --runner and --beam_options to a command's flags; `instead_of` is what happens without them."""
    flags.DEFINE_enum(
        "runner",
        None,
        RUNNERS,
        f"Runner of Apache Beam (pip install 'maxdl_tf[beam]') to work on instead of {instead_of}; what is written is "
        "the same.",
        flag_values=flag_values,
    )
    flags.DEFINE_multi_string(
        "beam_options",
        [],
        "A flag for the runner, such as --beam_options=project=my-project.",
        flag_values=flag_values,
    )


def check_flags(flag_values: flags.FlagValues) -> None:
    """UserError if the flags make no sense together."""
    if flag_values.beam_options and not flag_values.runner:
        raise UserError("--beam_options are for a --runner; name one, or leave them away")


def run_chunks(
    work: Callable[[str, Any], Any],
    chunks: Mapping[str, Any],
    folder: str,
    runner: str,
    options: Sequence[str] = (),
) -> list[Any]:
    """Has workers do chunks of work, and waits for the end.

    Args:
      work: Called in a worker with a chunk's name and the chunk; it is pickled. It answers with what JSON can hold.
      chunks: What is to be done, by name; each is pickled.
      folder: One for files that are needed meanwhile, which all workers can reach; the caller removes it.
      runner: One of RUNNERS.
      options: Flags for it, such as `--project=...`; the dashes may be left away.

    Returns:
      The answers, in the order of the chunks.

    Raises:
      UserError: If Beam is not installed or its options make no sense.
      OSError: If an answer is missing.
    """
    beam = import_beam()
    from apache_beam.options.pipeline_options import PipelineOptions

    arguments = [f"--runner={runner}", *(option if option.startswith("--") else f"--{option}" for option in options)]
    if runner == "DirectRunner":
        # There are no triggers here. The flag keeps it from fetching another program (Prism) and running that.
        arguments.append("--allow_unsafe_triggers")
    logging.getLogger("apache_beam.io").setLevel(logging.ERROR)  # It warns of each file system that is not installed.
    try:
        pipeline = beam.Pipeline(options=PipelineOptions(arguments))
    except ValueError as error:
        raise UserError(f"--runner={runner} --beam_options={' '.join(options)}: {error}") from error
    for name, chunk in chunks.items():
        storage.write_file(f"{folder}/{name}.chunk", pickle.dumps(chunk))
    with pipeline:
        _ = (
            pipeline
            | "chunks" >> beam.Create(list(chunks))
            | "spread" >> beam.Reshuffle()
            | "work" >> beam.Map(_Worker(work, folder))
        )
    missing = [name for name in chunks if not storage.exists(f"{folder}/{name}.answer")]
    if missing:
        raise OSError(f"{runner} left {len(missing)} of {len(chunks)} parts undone, such as {missing[0]}")
    return [json.loads(storage.read_file(f"{folder}/{name}.answer")) for name in chunks]


def import_beam() -> Any:
    """The module apache_beam.

    Raises:
      UserError: If it is not installed.
    """
    try:
        import apache_beam
    except ImportError as error:
        raise UserError(
            f"--runner needs Apache Beam, which cannot be imported ({error}); pip install 'maxdl_tf[beam]', or leave "
            "--runner away"
        ) from error
    return apache_beam


class _Worker:
    """Does the chunk of a name."""

    def __init__(self, work: Callable[[str, Any], Any], folder: str):
        self._work = work
        self._folder = folder

    def __call__(self, name: str) -> None:
        chunk = pickle.loads(storage.read_file(f"{self._folder}/{name}.chunk"))
        answer = json.dumps(self._work(name, chunk)).encode()
        storage.write_whole(f"{self._folder}/{name}.answer", answer)
