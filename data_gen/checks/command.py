"""Flags of maxdl-check-data, the parallel check of all images, and the output of the report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from absl import flags

from maxdl_tf import command_line, processes
from maxdl_tf.data_gen.checks import findings, report, statistics
from maxdl_tf.data_gen.checks.findings import ERROR, ImageReport, Split
from maxdl_tf.data_gen.checks.report import Load
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage
from maxdl_tf.progress import Progress


class Options(NamedTuple):
    """Values of the flags.

    Attributes:
      num_slots: Number of slots of the network.
      json: Path of the JSON report; None for none.
      html: Path of the HTML report; None for none.
      pictures: Largest number of pictures of faulty images in the HTML report.
      shown: Number of findings of each kind on the terminal.
      processes: Number of parallel processes.
    """

    num_slots: int
    json: str | None
    html: str | None
    pictures: int
    shown: int
    processes: int


def define_flags(flag_values: flags.FlagValues) -> None:
    flags.DEFINE_integer(
        "num_slots",
        128,
        "Number of slots of the network; images with more segments are reported.",
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_string("json", None, "Path of a JSON file for all findings and statistics.", flag_values=flag_values)
    flags.DEFINE_string("html", None, "Path of a web page for the report with pictures.", flag_values=flag_values)
    flags.DEFINE_integer(
        "pictures",
        24,
        "Largest number of pictures of faulty images on the web page, which also shows samples of others.",
        lower_bound=0,
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "show", 5, "Number of findings of each kind on the terminal.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_integer(
        "processes", None, "Number of parallel processes; the number of cores if not given.", flag_values=flag_values
    )


def read_flags(flag_values: flags.FlagValues) -> Options:
    """Returns the values of the flags.

    Raises:
      UserError: The folder of a report is missing, or a value is invalid.
    """
    for name in ("json", "html"):
        path = flag_values[name].value
        if path and not os.path.isdir(os.path.dirname(path) or "."):
            raise UserError(f"--{name}={path}: the folder {os.path.dirname(path)} does not exist; create it first")
    if flag_values.processes is not None and flag_values.processes < 1:
        raise UserError(f"--processes={flag_values.processes}: must be at least 1")
    return Options(
        flag_values.num_slots,
        flag_values.json,
        flag_values.html,
        flag_values.pictures,
        flag_values.show,
        flag_values.processes or processes.available_processes(),
    )


def split_name(path: str) -> str:
    """Name of a split in messages: the last part of a path, without extension."""
    return os.path.splitext(os.path.basename(os.path.normpath(path)))[0]


def check_all(
    label: str, check: Callable[[Any], ImageReport | list[ImageReport]], tasks: Sequence[Any], unit: str, num: int
) -> Iterable[ImageReport]:
    """Runs a check in parallel processes and shows the progress.

    Args:
      label: Label of the progress line.
      check: Picklable function of a task.
      tasks: Arguments of `check`.
      unit: Name of the tasks, in the plural.
      num: Number of processes.
    """
    with processes.results_in_order(check, tasks, num) as results, Progress(label, len(tasks), unit) as progress:
        for result in results:
            progress.advance()
            yield from result if isinstance(result, list) else [result]


def write_reports(title: str, splits: list[Split], load: Load, options: Options) -> int:
    """Compares the splits, prints the findings and writes the reports.

    Args:
      title: Title of the web page.
      splits: Results of the checks.
      load: Function that loads an image for a picture; see `report.pictures`.
      options: Values of the flags.

    Returns:
      The exit status.
    """
    for image, finding in findings.repeated_images(splits):
        image.findings.append(finding)
    for split in splits:
        split.findings.extend(findings.mostly_void(split))
    summaries = [statistics.summarize(split, options.num_slots) for split in splits]
    result = report.Result(findings.all_findings(splits), summaries)
    print(report.as_text(result, options.shown))
    with command_line.user_errors(OSError):
        if options.json:
            storage.write_json(options.json, report.as_dict(result))
        if options.html:
            pictures = report.pictures(splits, load, options.pictures)
            samples = report.samples(splits, load)
            report.write_page(options.html, title, result, pictures, samples)
    return 1 if result.count(ERROR) else 0
