"""Work in chunks on Apache Beam (the extra `beam`), for tasks that outgrow one machine.

Each chunk is written to a file that a worker reads, and its answer to another. So neither the pipeline nor a worker
holds all tasks, and no result passes through the pipeline. Runners may process a chunk twice, for example after a
worker is lost, so the work must be repeatable. Bad input must not raise, because runners would try again; the answer
reports it.

Chunks are pickles, which can run code, and others may write to their folder. So the pipeline carries the hash of each
chunk, and a worker reads no other content.

Workers need this package and access to all paths.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from maxdl_tf.errors import UserError
from maxdl_tf.files import disk_space, storage

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
      UserError: Beam is not installed, its options are invalid, or a worker cannot write.
      OSError: A chunk cannot be written, or an answer is missing.
    """
    beam = import_beam()
    from apache_beam.options.pipeline_options import PipelineOptions

    arguments = [f"--runner={runner}", *(option if option.startswith("--") else f"--{option}" for option in options)]
    if runner == "DirectRunner":
        # There are no triggers. The flag keeps the runner from downloading and starting another program (Prism).
        arguments.append("--allow_unsafe_triggers")
    try:
        pipeline = beam.Pipeline(options=PipelineOptions(arguments))
    except ValueError as error:
        raise UserError(f"--runner={runner} --beam_options={' '.join(options)}: {error}") from error
    digests = {}
    for name, chunk in chunks.items():
        content = pickle.dumps(chunk)
        storage.write_file(f"{folder}/{name}.chunk", content)
        digests[name] = _digest(content)
    with _worker_errors(), _on_loopback(runner), pipeline:
        _ = (
            pipeline
            | "chunks" >> beam.Create(list(digests.items()))
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
    logging.getLogger("apache_beam.io").setLevel(logging.ERROR)  # Warnings about missing file systems.
    logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)  # Errors that `run_chunks` raises.
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

    def __call__(self, chunk: tuple[str, str]) -> None:
        name, digest = chunk
        with disk_space.full_disk_errors(self._folder):
            content = storage.read_file(f"{self._folder}/{name}.chunk")
            if _digest(content) != digest:
                raise UserError(f"{self._folder}/{name}.chunk was changed by another program; run the command again")
            answer = json.dumps(self._work(name, pickle.loads(content))).encode()
            storage.write_whole(f"{self._folder}/{name}.answer", answer)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def _worker_errors() -> Iterator[None]:
    """Restores the UserError of a worker. Beam adds the name of the step, and keeps only the text of other workers."""
    try:
        yield
    except Exception as error:
        found = re.search(r"UserError: (.*)", f"{type(error).__name__}: {error}")
        if found is None:
            raise
        raise UserError(found.group(1).split(" [while running ")[0]) from error


@contextlib.contextmanager
def _on_loopback(runner: str) -> Iterator[None]:
    """Lets the DirectRunner open its ports on the loopback interface only; by itself it opens them on all."""
    if runner != "DirectRunner":
        yield
        return
    import grpc

    make_server = grpc.server

    def make_local_server(*arguments, **options):
        server = make_server(*arguments, **options)
        open_port = server.add_insecure_port
        server.add_insecure_port = lambda address: open_port(address.replace("[::]", "localhost"))
        return server

    grpc.server = make_local_server
    try:
        yield
    finally:
        grpc.server = make_server
