"""Checks of data sets by their converter: maxdl-check-data reads them as maxdl-convert does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data_gen.annotated_images import AnnotatedImage, Conversion
from maxdl_tf.data_gen.checks import command, images
from maxdl_tf.data_gen.checks.findings import ERROR, Finding, ImageReport, Loaded, Split
from maxdl_tf.data_gen.source_files import FORMATS
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage


def check(name: str, conversion: Conversion, options: command.Options) -> int:
    """Checks all images of a conversion and writes the reports; returns the exit status.

    Args:
      name: Name of the split in messages.
      conversion: Images and their converter.
      options: Values of the flags.
    """
    info = conversion.dataset_info
    split = Split(name, {row.id: (row.name, row.is_thing) for row in info.classes})
    checker = ConversionChecker(name, conversion.annotate, conversion.image_path, info, options.num_slots)
    tasks = list(enumerate(conversion.tasks))
    split.images.extend(command.check_all(f"checking {name}", checker, tasks, "images", options.processes))

    def load(split: Split, source: int) -> Loaded:
        del split
        pixels = None
        try:
            task = conversion.tasks[source]
            content = storage.read_file(conversion.image_path(task) or "")
            pixels = images.inspect_image(content, FORMATS, info.intensity).pixels
            return images.loaded(pixels, conversion.annotate(task).label, info)
        except UserError:  # The check has reported it.
            return Loaded(pixels, None)

    return command.write_reports(f"Check of {name}", [split], load, options)


@dataclass(frozen=True)
class ConversionChecker:
    """Converts images without writing them; it can be sent to other processes.

    Attributes:
      split: Name of the split.
      annotate: Function of the converter; it raises UserError for bad input.
      image_path: Function that returns the path of a task's image, or raises UserError; None if the image is missing.
      dataset_info: The class table of the converter.
      num_slots: Number of slots of the network.
    """

    split: str
    annotate: Callable[[Any], AnnotatedImage]
    image_path: Callable[[Any], str | None]
    dataset_info: DatasetInfo
    num_slots: int

    def __call__(self, numbered_task: tuple[int, Any]) -> ImageReport:
        number, task = numbered_task
        report = ImageReport(self.split, source=number)

        def find(kind: str, what: str, segment: int | None = None) -> None:
            report.findings.append(Finding(kind, self.split, report.name, what, segment))

        try:
            path = self.image_path(task)
            if path is not None:
                report.name = path
                images.check_image(storage.read_file(path), find, report, FORMATS, self.dataset_info.intensity)
        except UserError as error:
            find("image-missing", str(error).split(": ", 1)[-1])
        if not any(finding.severity == ERROR for finding in report.findings):
            try:
                label = self.annotate(task).label
            except UserError as error:
                find("not-convertible", str(error))
            else:
                images.check_label_map(label, self.dataset_info, self.num_slots, find, report)
        return report
