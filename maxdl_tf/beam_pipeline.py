"""Work in chunks on Apache Beam (the extra `beam`), for tasks that outgrow one machine.

Each chunk is written to a file that a worker reads, and its answer to another. So neither the pipeline nor a worker
holds all tasks, and no result passes through the pipeline. Runners may process a chunk twice, for example after a
worker is lost, so the work must be repeatable. Bad input must not raise, because runners would try again; the answer
reports it.

Workers need this package and access to all paths.
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
    """Adds --runner and --beam_options to the flags of a command; `instead_of` names the default place of the work."""
    flags.DEFINE_enum(
        "runner",
        None,
        RUNNERS,
        f"Runner of Apache Beam (pip install 'maxdl_tf[beam]') to use instead of {instead_of}. The output is the same.",
        flag_values=flag_values,
    )
    flags.DEFINE_multi_string(
        "beam_options",
        [],
        "Flag of the runner, such as --beam_options=project=my-project.",
        flag_values=flag_values,
    )


def check_flags(flag_values: flags.FlagValues) -> None:
    """Raises UserError if the flags do not go together."""
    if flag_values.beam_options and not flag_values.runner:
        raise UserError("--beam_options are for a --runner; name one, or drop them")


def run_chunks(
    work: Callable[[str, Any], Any],
    chunks: Mapping[str, Any],
    folder: str,
    runner: str,
    options: Sequence[str] = (),
) -> list[Any]:
    """Runs chunks of work on Beam workers and waits for the end.

    Args:
      work: Function of a chunk's name and the chunk, called in a worker. It is pickled and returns JSON values.
      chunks: Chunks by name; each is pickled.
      folder: Folder for temporary files, which all workers can reach. The caller removes it.
      runner: One of RUNNERS.
      options: Flags of the runner, such as `--project=...`; the dashes are optional.

    Returns:
      The answers, in the order of the chunks.

    Raises:
      UserError: Beam is not installed, or its options are invalid.
      OSError: An answer is missing.
    """
    beam = import_beam()
    from apache_beam.options.pipeline_options import PipelineOptions

    arguments = [f"--runner={runner}", *(option if option.startswith("--") else f"--{option}" for option in options)]
    if runner == "DirectRunner":
        # There are no triggers. The flag keeps the runner from downloading and starting another program (Prism).
        arguments.append("--allow_unsafe_triggers")
    logging.getLogger("apache_beam.io").setLevel(logging.ERROR)  # Warnings about missing file systems.
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
        raise OSError(f"{runner} left {len(missing)} of {len(chunks)} chunks unfinished, such as {missing[0]}")
    return [json.loads(storage.read_file(f"{folder}/{name}.answer")) for name in chunks]


def import_beam() -> Any:
    """The module apache_beam.

    Raises:
      UserError: It is not installed.
    """
    try:
        import apache_beam
    except ImportError as error:
        raise UserError(
            f"--runner needs Apache Beam, which cannot be imported ({error}); pip install 'maxdl_tf[beam]', or drop "
            "--runner"
        ) from error
    return apache_beam


class _Worker:
    """Processes the chunk with a given name."""

    def __init__(self, work: Callable[[str, Any], Any], folder: str):
        self._work = work
        self._folder = folder

    def __call__(self, name: str) -> None:
        chunk = pickle.loads(storage.read_file(f"{self._folder}/{name}.chunk"))
        answer = json.dumps(self._work(name, chunk)).encode()
        storage.write_whole(f"{self._folder}/{name}.answer", answer)
