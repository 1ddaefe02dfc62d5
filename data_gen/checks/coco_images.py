"""Checks of one image in the COCO panoptic format: the image, the PNG, and the entry in the JSON file."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from maxdl_tf import panoptic_ids
from maxdl_tf.data import coco_fields
from maxdl_tf.data_gen.checks import images
from maxdl_tf.data_gen.checks.findings import Finding, ImageReport, SegmentFacts
from maxdl_tf.data_gen.checks.images import Find
from maxdl_tf.data_gen.source_files import FORMATS
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage
from maxdl_tf.files.images import has_16_bits, open_image
from maxdl_tf.files.intensity import IntensityRule

_MOST_IDS_NAMED = 20  # A PNG stored with a lossy format has thousands of ids that the JSON file does not list.


class ImageTask(NamedTuple):
    """An image to check.

    Attributes:
      image: Entry of the image in `images`.
      annotation: Entry in `annotations`; None if it is missing or incomplete.
    """

    image: dict[str, Any]
    annotation: dict[str, Any] | None


@dataclass(frozen=True)
class CocoImageChecker:
    """Checks images; it can be sent to other processes.

    Attributes:
      split: Name of the split.
      image_dir: Folder of the images.
      panoptic_dir: Folder of the PNGs.
      categories: {category id: (name, is_thing)}.
      num_slots: Number of slots of the network.
      label_divisor: Label divisor of the later conversion.
      intensity: Rule of the later conversion for values of more than 8 bits.
    """

    split: str
    image_dir: str
    panoptic_dir: str
    categories: dict[int, tuple[str, bool]]
    num_slots: int
    label_divisor: int
    intensity: IntensityRule | None = None

    def __call__(self, task: ImageTask) -> ImageReport:
        name = task.image["file_name"]
        report = ImageReport(name, source=(name, task.annotation and task.annotation["file_name"]))
        self._check_image(task.image, report)
        if task.annotation is not None:
            self._check_annotation(task.image, task.annotation, report)
        return report

    def _check_image(self, entry: dict[str, Any], report: ImageReport) -> None:
        def find(kind: str, what: str) -> None:
            report.findings.append(Finding(kind, self.split, report.name, what))

        try:
            content = storage.read_file(storage.path_inside(self.image_dir, report.name))
        except UserError as error:
            find("image-missing", str(error).split(": ", 1)[-1])
            return
        images.check_image(content, find, report, FORMATS, self.intensity)
        if report.size and report.size != (entry["height"], entry["width"]):
            find("image-size", _sizes(report.size, entry))

    def _check_annotation(self, image: dict[str, Any], annotation: dict[str, Any], report: ImageReport) -> None:
        png_name = annotation["file_name"]

        def find(kind: str, what: str, segment: int | None = None) -> None:
            report.findings.append(Finding(kind, self.split, png_name, what, segment))

        segments = self._check_list(annotation["segments_info"], find)
        try:
            content = storage.read_file(storage.path_inside(self.panoptic_dir, png_name))
        except UserError as error:
            find("png-missing", str(error).split(": ", 1)[-1])
            return
        source = io.BytesIO(content)
        try:
            png = open_image(source, png_name)
        except UserError as error:
            find("png-undecodable", f"{len(content)} bytes: {str(error).split(': ', 1)[-1]}")
            return
        bits = 16 if has_16_bits(png, source) else 8
        if (png.format, png.mode, bits) != ("PNG", "RGB", 8):
            find("png-mode", f"a {png.format} of mode {png.mode}, {bits} bits; expected a PNG of mode RGB, 8 bits")
            return
        ids = panoptic_ids.color_to_id(np.asarray(png))
        if ids.shape != (image["height"], image["width"]):
            find("png-size", _sizes(ids.shape, image))
        self._check_drawing(ids, segments, find, report)

    def _check_list(self, entries: list[Any], find: Find) -> dict[int, dict[str, Any]]:
        """Checks `segments_info` without the PNG; returns the segments by id."""
        segments: dict[int, dict[str, Any]] = {}
        of_category: Counter[int] = Counter()
        instances: Counter[int] = Counter()
        for entry in entries:
            segment, faults = coco_fields.split(entry, coco_fields.SEGMENT)
            if not {"id", "category_id"} <= segment.keys():
                find("segment-incomplete", f"an entry {' and '.join(dict.fromkeys(faults.values()))}")
                continue
            segment_id, category = segment["id"], segment["category_id"]
            if not 1 <= segment_id <= panoptic_ids.MAX_SEGMENT_ID:
                find("segment-id", f"a PNG cannot store the id {segment_id}", segment_id)
                continue
            if segment_id in segments:
                what = f"listed twice, as category {segments[segment_id]['category_id']} and {category}"
                find("segment-repeated", what, segment_id)
                continue
            segments[segment_id] = {**segment, "bbox": entry.get("bbox")}
            for field, kind in (("iscrowd", "crowd-value"), ("area", "area")):
                if field in faults:
                    find(kind, faults[field], segment_id)
            crowd = segment.get("iscrowd", False)
            if category not in self.categories:
                find("category-unknown", f"category {category} is not in the list of categories", segment_id)
                continue
            name, is_thing = self.categories[category]
            of_category[category] += 1
            if is_thing:
                instances[category] += not crowd
            elif crowd:
                find("crowd-of-stuff", f"iscrowd is set, but {name!r} is stuff", segment_id)
            if not is_thing and of_category[category] == 2:
                find("stuff-split", f"{name!r} is stuff, but has another segment in this image", segment_id)
        for category, count in instances.items():
            if count >= self.label_divisor:
                what = f"{count} instances of {self.categories[category][0]!r}; label divisor "
                find("too-many-instances", f"{what}{self.label_divisor} allows instances below {self.label_divisor}")
        return segments

    def _check_drawing(
        self, ids: np.ndarray, segments: dict[int, dict[str, Any]], find: Find, report: ImageReport
    ) -> None:
        """Compares the map of segment ids with the list."""
        drawn, counts = np.unique(ids, return_counts=True)
        areas = dict(zip(drawn.tolist(), counts.tolist()))
        report.void = areas.pop(0, 0)
        unlisted = [segment_id for segment_id in areas if segment_id not in segments]
        for segment_id in unlisted[:_MOST_IDS_NAMED]:
            what = f"{areas[segment_id]} pixels in the PNG, but not in the list"
            if len(unlisted) > _MOST_IDS_NAMED and segment_id == unlisted[0]:
                what += f", like {len(unlisted) - 1} other ids: was the PNG scaled, or stored with a lossy format?"
            find("segment-not-listed", what, segment_id)
        boxes = images.boxes(ids)
        for segment_id, entry in segments.items():
            if segment_id not in areas:
                find("segment-not-drawn", "in the list, but not in the PNG", segment_id)
                continue
            if entry.get("area", areas[segment_id]) != areas[segment_id]:
                find("area", f"{entry['area']} in the JSON file, {areas[segment_id]} in the PNG", segment_id)
            if entry["bbox"] is not None and not _same_box(entry["bbox"], boxes[segment_id]):
                box = f"{list(boxes[segment_id])} (left, top, width, height)"
                find("box", f"{coco_fields.shown(entry['bbox'])} in the JSON file, {box} in the PNG", segment_id)
            if entry["category_id"] in self.categories:
                report.segments.append(
                    SegmentFacts(entry["category_id"], areas[segment_id], entry.get("iscrowd", False))
                )
        total = sum(entry.get("area", 0) for entry in segments.values())
        if total > ids.size:
            find("overlap", f"the areas of the segments add up to {total}, but the PNG has {ids.size} pixels")
        listed = {segment_id: area for segment_id, area in areas.items() if segment_id in segments}
        images.check_segments(ids, 0, listed, self.num_slots, find, report)


def _sizes(got: tuple[int, int], entry: dict[str, Any]) -> str:
    return f"{got[0]} x {got[1]} (height x width); the JSON file states {entry['height']} x {entry['width']}"


def _same_box(given: Any, drawn: tuple[int, int, int, int]) -> bool:
    """Whether two boxes agree within half a pixel."""
    try:
        return len(given) == 4 and all(abs(one - other) <= 0.5 for one, other in zip(given, drawn))
    except (TypeError, OverflowError):
        return False
