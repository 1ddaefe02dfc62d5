"""What the checks of maxdl-check-data share: flags, the way through the images, and the report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from maxdl_tf import processes
from maxdl_tf.data_gen.checks import report as check_report
from maxdl_tf.data_gen.checks import summary as check_summary
from maxdl_tf.data_gen.checks.findings import ERROR, ImageReport, Split, all_findings
from maxdl_tf.errors import UserError
from maxdl_tf.progress import Progress


class Options(NamedTuple):
    """The values of the flags.

    Attributes:
      num_slots: Segments that the network can tell apart in an image.
      json: File for the report.
      html: File for the report.
      pictures: On the page.
      shown: Findings of each kind on the terminal.
      processes: Parallel ones.
    """

    num_slots: int
    json: str | None
    html: str | None
    pictures: int
    shown: int
    processes: int


def define(flag_values: flags.FlagValues) -> None:
    flags.DEFINE_integer(
        "num_slots",
        128,
        "Slots of the network; images with more segments are named.",
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_string("json", None, "File to write all findings and figures to.", flag_values=flag_values)
    flags.DEFINE_string(
        "html", None, "File to write a page with pictures to, which opens from disk.", flag_values=flag_values
    )
    flags.DEFINE_integer("pictures", 24, "Pictures on the page.", lower_bound=0, flag_values=flag_values)
    flags.DEFINE_integer(
        "show", 5, "Findings of each kind to list on the terminal.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_integer(
        "processes", None, "Parallel processes; as many as there are cores if not given.", flag_values=flag_values
    )


def read(flag_values: flags.FlagValues) -> Options:
    """The values of the flags.

    Raises:
      UserError: A report could not be written.
    """
    for name in ("json", "html"):
        path = flag_values[name].value
        if path and not os.path.isdir(os.path.dirname(path) or "."):
            raise UserError(f"--{name}={path}: there is no folder {os.path.dirname(path)}; make it first")
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


def check_all(
    label: str, check: Callable[[Any], ImageReport | list[ImageReport]], tasks: Sequence[Any], unit: str, num: int
) -> Iterable[ImageReport]:
    """Runs a check in parallel processes, showing progress.

    Args:
      label: For the progress line.
      check: Called in any process with each task.
      tasks: Its arguments.
      unit: What a task is, in the plural.
      num: Processes.
    """
    with processes.results_in_order(check, tasks, num) as results, Progress(label, len(tasks), unit) as progress:
        for result in results:
            progress.advance()
            yield from result if isinstance(result, list) else [result]


def report(
    title: str,
    splits: list[Split],
    load: Callable[[Split, Any], tuple[np.ndarray | None, np.ndarray | None]],
    options: Options,
) -> int:
    """Compares the splits with each other, prints what was found and writes it to where it is wanted.

    Args:
      title: Of the page.
      splits: After the check of their images.
      load: As of `check_report.pictures`.
      options: Where to.

    Returns:
      The exit status.
    """
    for image, finding in check_summary.repeated_images(splits):
        image.findings.append(finding)
    summaries = [check_summary.summary(split, options.num_slots) for split in splits]
    result = check_report.Result(all_findings(splits), summaries)
    print(check_report.as_text(result, options.shown))
    try:
        if options.json:
            Path(options.json).write_text(json.dumps(check_report.as_dict(result), indent=1) + "\n", encoding="utf-8")
        if options.html:
            figures = check_report.pictures(splits, load, options.pictures)
            check_report.write_page(options.html, title, result, figures)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or 'the report'}: {error.strerror or error}") from error
    return 1 if result.count(ERROR) else 0
