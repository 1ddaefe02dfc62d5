"""Checks one image of the COCO panoptic format against its PNG and its entry in the JSON file."""

from __future__ import annotations

import io
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from maxdl_tf import panoptic_ids
from maxdl_tf.data_gen.checks import pictures as check_pictures
from maxdl_tf.data_gen.checks.coco import ImageTask, is_integer
from maxdl_tf.data_gen.checks.findings import Finding, ImageReport, SegmentFacts
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage

_MOST_IDS_NAMED = 20  # That are in a PNG and not in the JSON; a PNG stored with loss has thousands.


@dataclass(frozen=True)
class CocoImageChecker:
    """Checks images in any process.

    Attributes:
      split: Name of the split.
      image_dir: Folder of the images.
      panoptic_dir: Folder of the PNGs.
      categories: {category id: (name, is_thing)}.
      num_slots: Segments that the network can tell apart in an image.
      label_divisor: One more than the most instances of a class in an image.
    """

    split: str
    image_dir: str
    panoptic_dir: str
    categories: dict[int, tuple[str, bool]]
    num_slots: int
    label_divisor: int

    def __call__(self, task: ImageTask) -> ImageReport:
        name = str(task.image["file_name"])
        report = ImageReport(name, source=(name, task.annotation and str(task.annotation["file_name"])))
        self._check_image(task.image, report)
        if task.annotation is not None:
            self._check_annotation(task.image, task.annotation, report)
        return report

    def _check_image(self, entry: dict[str, Any], report: ImageReport) -> None:
        def find(kind: str, what: str) -> None:
            report.findings.append(Finding(kind, self.split, report.name, what))

        try:
            content = storage.read_file(os.path.join(self.image_dir, report.name))
        except UserError as error:
            find("image-missing", str(error).split(": ", 1)[-1])
            return
        picture = check_pictures.inspect_image(content)
        for kind, what in picture.faults:
            find(kind, what)
        if picture.pixels is not None:
            report.size, report.digest, report.mode = picture.pixels.shape[:2], picture.digest, picture.mode
            if report.size != (entry["height"], entry["width"]):
                find("image-size", _sizes(report.size, entry))

    def _check_annotation(self, image: dict[str, Any], annotation: dict[str, Any], report: ImageReport) -> None:
        png_name = str(annotation["file_name"])

        def find(kind: str, what: str, segment: int | None = None) -> None:
            report.findings.append(Finding(kind, self.split, png_name, what, segment))

        segments = self._check_list(annotation["segments_info"], find)
        try:
            content = storage.read_file(os.path.join(self.panoptic_dir, png_name))
        except UserError as error:
            find("png-missing", str(error).split(": ", 1)[-1])
            return
        try:
            with Image.open(io.BytesIO(content)) as png:
                png.load()
                if png.mode != "RGB" or png.format != "PNG":
                    find("png-mode", f"a {png.format} of mode {png.mode}; wanted a PNG of mode RGB")
                    return
                ids = panoptic_ids.color_to_id(np.asarray(png))
        except Exception as error:  # Pillow's decoders raise what they like on broken files.
            find("png-undecodable", f"{len(content)} bytes that cannot be decoded: {error}")
            return
        if ids.shape != (image["height"], image["width"]):
            find("png-size", _sizes(ids.shape, image))
        self._check_drawing(ids, segments, find, report)

    def _check_list(self, entries: list[Any], find) -> dict[int, dict[str, Any]]:
        """The segments of a list by their ids, after checks that need no PNG."""
        segments: dict[int, dict[str, Any]] = {}
        of_category: Counter[int] = Counter()
        instances: Counter[int] = Counter()
        for entry in entries:
            if not isinstance(entry, dict) or not (
                is_integer(entry.get("id")) and is_integer(entry.get("category_id"))
            ):
                find("segment-incomplete", f"an entry without integers id and category_id: {str(entry)[:80]}")
                continue
            segment_id, category = entry["id"], entry["category_id"]
            if not 1 <= segment_id <= panoptic_ids.MAX_SEGMENT_ID:
                find("segment-id", f"the id {segment_id} cannot be drawn", segment_id)
                continue
            if segment_id in segments:
                what = f"listed twice, as category {segments[segment_id]['category_id']} and {category}"
                find("segment-repeated", what, segment_id)
                continue
            segments[segment_id] = entry
            crowd = entry.get("iscrowd", 0)
            if crowd not in (0, 1):
                find("crowd-value", f"iscrowd is {crowd!r}", segment_id)
            if category not in self.categories:
                find("category-unknown", f"category {category} is not in the list of categories", segment_id)
                continue
            name, is_thing = self.categories[category]
            of_category[category] += 1
            if is_thing:
                instances[category] += not crowd
            elif crowd:
                find("crowd-of-stuff", f"iscrowd is set, and {name!r} is stuff", segment_id)
            if not is_thing and of_category[category] == 2:
                find("stuff-split", f"{name!r} is stuff and has another segment in this image", segment_id)
        for category, count in instances.items():
            if count >= self.label_divisor:
                what = f"{count} instances of {self.categories[category][0]!r}; a label divisor of "
                find("too-many-instances", f"{what}{self.label_divisor} has room for {self.label_divisor - 1}")
        return segments

    def _check_drawing(self, ids: np.ndarray, segments: dict[int, dict[str, Any]], find, report: ImageReport) -> None:
        """Compares the map of segment ids with the list."""
        drawn, counts = np.unique(ids, return_counts=True)
        areas = dict(zip(drawn.tolist(), counts.tolist()))
        report.void = areas.pop(0, 0)
        if not areas:
            find("all-void", "no pixel belongs to a segment")
        unlisted = [segment_id for segment_id in areas if segment_id not in segments]
        for segment_id in unlisted[:_MOST_IDS_NAMED]:
            what = f"{areas[segment_id]} pixels in the PNG, and not in the list"
            if len(unlisted) > _MOST_IDS_NAMED and segment_id == unlisted[0]:
                what += f"; so are {len(unlisted) - 1} other ids: was the PNG scaled or stored with loss?"
            find("segment-not-listed", what, segment_id)
        boxes = check_pictures.boxes(ids)
        for segment_id, entry in segments.items():
            if segment_id not in areas:
                find("segment-not-drawn", "in the list, and nowhere in the PNG", segment_id)
                continue
            if entry.get("area", areas[segment_id]) != areas[segment_id]:
                find("area", f"{entry['area']} in the JSON, {areas[segment_id]} in the PNG", segment_id)
            if "bbox" in entry and not _same_box(entry["bbox"], boxes[segment_id]):
                what = f"{entry['bbox']} in the JSON, {list(boxes[segment_id])} (left, top, width, height) in the PNG"
                find("box", what, segment_id)
            if entry["category_id"] in self.categories:
                report.segments.append(SegmentFacts(entry["category_id"], areas[segment_id], entry.get("iscrowd") == 1))
        total = sum(entry["area"] for entry in segments.values() if is_integer(entry.get("area")))
        if total > ids.size:
            find("overlap", f"the segments' areas add up to {total}, and the PNG has {ids.size} pixels")
        objects = sum(not segment.is_crowd for segment in report.segments)
        if objects > self.num_slots:
            find("too-many-segments", f"{objects} segments, and there are {self.num_slots} slots")
        listed = np.array([segment_id for segment_id in areas if segment_id in segments])
        for segment_id, what in check_pictures.tiny_segments(listed, np.array([areas[i] for i in listed.tolist()])):
            find("segment-tiny", what, segment_id)
        for segment_id, what in check_pictures.holes(ids, 0):
            find("hole", what, segment_id)


def _sizes(got: tuple[int, int], entry: dict[str, Any]) -> str:
    return f"{got[0]} x {got[1]} (height x width); the JSON says {entry['height']} x {entry['width']}"


def _same_box(given: Any, drawn: tuple[int, int, int, int]) -> bool:
    """Whether a box is the right one; half a pixel does not matter."""
    try:
        return len(given) == 4 and all(abs(one - other) <= 0.5 for one, other in zip(given, drawn))
    except TypeError:
        return False
