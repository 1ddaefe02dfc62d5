"""Findings of maxdl-check-data: their kinds, severities and fixes, and the results of the checks."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from maxdl_tf.class_table import DatasetInfo

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)


class Kind(NamedTuple):
    """A kind of finding.

    Attributes:
      severity: ERROR: stops the conversion, or makes training or evaluation wrong. WARNING: allowed, but hardly
        intended. NOTE: occurs in good data sets.
      fix: Advice on how to fix it.
    """

    severity: str
    fix: str


_RECOMPUTE = "recompute it from the PNG"
_SAME_IDS = "give each segment one id, the same in the JSON and in the PNG's colors (R + 256 G + 65536 B)"
_CONVERT_AGAIN = "convert the data set again"

KINDS = {
    # The JSON file.
    "category-incomplete": Kind(ERROR, "give each category an integer id, a name and isthing 0 or 1"),
    "category-repeated": Kind(ERROR, "give each category a unique id"),
    "category-name-repeated": Kind(WARNING, "merge the categories, or rename one"),
    "categories-differ": Kind(ERROR, "use one category list for all splits"),
    "image-incomplete": Kind(ERROR, "give each image an id, a file_name, a height and a width"),
    "image-id-repeated": Kind(ERROR, "give each image a unique id"),
    "image-listed-twice": Kind(ERROR, "list each image file once"),
    "image-name-shared": Kind(WARNING, "rename one: names of records and predictions have no extension"),
    "image-not-annotated": Kind(ERROR, "annotate the image, or remove it from the list"),
    "annotation-incomplete": Kind(ERROR, "give each annotation an image_id, a file_name and segments_info"),
    "annotation-repeated": Kind(ERROR, "merge the image's annotations"),
    "annotation-without-image": Kind(ERROR, "list the image, or remove the annotation"),
    "png-shared": Kind(ERROR, "give each annotation its own PNG"),
    # Image files and PNGs.
    "image-missing": Kind(ERROR, "add the file, or remove the image from the list"),
    "image-undecodable": Kind(ERROR, "copy or download the file again"),
    "image-format": Kind(ERROR, "store the image as a JPEG or PNG of 8 bits, or give a rule for more bits"),
    "image-format-wrong": Kind(WARNING, _CONVERT_AGAIN),
    "image-rotated": Kind(
        WARNING, "check that the annotation fits the upright image; maxdl-convert stores upright pixels"
    ),
    "image-cmyk": Kind(WARNING, "store the image as RGB: programs convert CMYK differently"),
    "image-gray": Kind(NOTE, "none needed: the image is converted to RGB"),
    "image-alpha": Kind(NOTE, "none needed: transparency is dropped"),
    "image-size": Kind(ERROR, "correct height and width, or find the right file; the image may be rotated"),
    "image-not-listed": Kind(WARNING, "list the image, or remove the file"),
    "image-repeated": Kind(WARNING, "keep one of them"),
    "leak": Kind(ERROR, "remove the image from one of the splits: evaluation on training images is biased"),
    "png-missing": Kind(ERROR, "add the file, or remove the annotation"),
    "png-undecodable": Kind(ERROR, "copy or download the file again"),
    "png-mode": Kind(ERROR, "store segment ids as an RGB PNG of 8 bits per channel"),
    "png-size": Kind(ERROR, "give the PNG the size of its image; scale ids by nearest neighbor only"),
    "png-not-listed": Kind(WARNING, "add its annotation, or remove the file"),
    # Segments.
    "segment-incomplete": Kind(ERROR, "give each segment an integer id and a category_id"),
    "segment-id": Kind(ERROR, "give the segment an id from 1 to 16777215; 0 is void"),
    "segment-repeated": Kind(ERROR, _SAME_IDS),
    "segment-not-listed": Kind(ERROR, f"list the segment, or make its pixels void; {_SAME_IDS}"),
    "segment-not-drawn": Kind(ERROR, f"draw the segment, or remove it from the list; {_SAME_IDS}"),
    "category-unknown": Kind(ERROR, "add the category to the list, or correct category_id"),
    "area": Kind(ERROR, _RECOMPUTE),
    "overlap": Kind(ERROR, "decide which segment owns each pixel; then recompute areas from the PNG"),
    "box": Kind(WARNING, _RECOMPUTE),
    "stuff-split": Kind(WARNING, "merge the segments: stuff has one segment per class and image"),
    "crowd-of-stuff": Kind(WARNING, "set iscrowd to 0: crowds are groups of things"),
    "crowd-value": Kind(ERROR, "set iscrowd to 0 or 1"),
    "all-void": Kind(WARNING, "annotate the image, or remove it: training learns nothing from it"),
    "too-many-segments": Kind(WARNING, "train with more slots (model.num_slots), or split the image"),
    "too-many-instances": Kind(ERROR, "convert with a larger --label_divisor"),
    "instance-not-pasted": Kind(NOTE, "convert with a larger --label_divisor before a training with copy_paste"),
    "segment-tiny": Kind(NOTE, "none needed if intended; drawing tools often leave specks"),
    "hole": Kind(NOTE, "none needed if intended; otherwise fill the hole"),
    # Label maps, as the converter makes them.
    "not-convertible": Kind(ERROR, "correct the file, or skip such images with --on_error skip of maxdl-convert"),
    "mostly-void": Kind(WARNING, "check which pixels are void: training learns nothing from them"),
    # TFRecords.
    "record-damaged": Kind(ERROR, f"{_CONVERT_AGAIN}, or train with on_damaged_record: SKIP"),
    "shard-missing": Kind(ERROR, f"copy all shards, or {_CONVERT_AGAIN}"),
    "shards-mixed": Kind(ERROR, "remove the shards of the older conversion"),
    "example-unreadable": Kind(ERROR, _CONVERT_AGAIN),
    "label-undecodable": Kind(ERROR, _CONVERT_AGAIN),
    "label-size": Kind(ERROR, _CONVERT_AGAIN),
    "class-unknown": Kind(ERROR, "pass the right --dataset_info, or convert the data set again"),
    "stuff-instance": Kind(WARNING, "give stuff instance 0"),
    "record-id-repeated": Kind(ERROR, "convert images with distinct names: predictions are named after them"),
}


class Finding(NamedTuple):
    """A fault, or a possible fault, of a data set.

    Attributes:
      kind: Kind of the finding, a key of KINDS.
      split: Name of the split.
      file: Name of the image, PNG, JSON or TFRecord file.
      what: Description with the values found.
      segment: Id of the segment, or label; None if the finding is not about a segment.
      record: Number of the record in a TFRecord file, from 0.
    """

    kind: str
    split: str
    file: str
    what: str
    segment: int | None = None
    record: int | None = None

    @property
    def severity(self) -> str:
        return KINDS[self.kind].severity

    @property
    def fix(self) -> str:
        return KINDS[self.kind].fix

    @property
    def place(self) -> str:
        """Human-readable place: the file, and the record or segment in it."""
        record = f" record {self.record}" if self.record is not None else ""
        segment = f" segment {self.segment}" if self.segment is not None else ""
        return f"{self.file}{record}{segment}"


class SegmentFacts(NamedTuple):
    """Properties of a segment.

    Attributes:
      category: Category id or class id.
      area: Area in pixels.
      is_crowd: Whether the segment is a crowd.
    """

    category: int
    area: int
    is_crowd: bool


@dataclass
class ImageReport:
    """Result of the check of one image.

    Attributes:
      name: Name of the image in messages.
      findings: Findings about the image.
      size: (height, width); None if the image cannot be decoded.
      digest: Hash of size and pixels; None if the image cannot be decoded.
      mode: Color mode in Pillow's terms.
      void: Number of pixels without a segment.
      segments: The segments of the label map.
      source: Key for the pictures of the report; None for a record without an example.
    """

    name: str
    findings: list[Finding] = field(default_factory=list)
    size: tuple[int, int] | None = None
    digest: bytes | None = None
    mode: str = ""
    void: int = 0
    segments: list[SegmentFacts] = field(default_factory=list)
    source: Hashable = None

    @property
    def num_objects(self) -> int:
        """Number of segments that need a slot: all but crowds."""
        return sum(not segment.is_crowd for segment in self.segments)


@dataclass
class Split:
    """Result of the check of a split.

    Attributes:
      name: Name of the split, such as "train".
      categories: {category or class id: (name, is_thing)}.
      findings: Findings that do not belong to an image.
      images: Report of each image.
    """

    name: str
    categories: dict[int, tuple[str, bool]]
    findings: list[Finding] = field(default_factory=list)
    images: list[ImageReport] = field(default_factory=list)


class Loaded(NamedTuple):
    """An image of a report.

    Attributes:
      pixels: uint8 [height, width, 3], RGB; None if unreadable.
      id_map: int [height, width], segment ids or labels, 0 for void; None if unreadable.
      label_map: int [height, width], labels of `dataset_info`; None if unreadable.
      dataset_info: The class table of `label_map`.
    """

    pixels: np.ndarray | None
    id_map: np.ndarray | None
    label_map: np.ndarray | None = None
    dataset_info: DatasetInfo | None = None


def all_findings(splits: Sequence[Split]) -> list[Finding]:
    """Returns the findings of all splits, the worst kinds first, each kind in the order of discovery."""
    found = [finding for split in splits for finding in split.findings]
    found += [finding for split in splits for image in split.images for finding in image.findings]
    order = list(KINDS)
    return sorted(found, key=lambda finding: (SEVERITIES.index(finding.severity), order.index(finding.kind)))


def repeated_images(splits: Sequence[Split]) -> Iterator[tuple[ImageReport, Finding]]:
    """Finds images with equal pixels: a repetition in the same split, a leak in another one.

    Yields:
      The later image and the finding.
    """
    first_of: dict[bytes, list[tuple[str, ImageReport]]] = {}
    for split in splits:
        for image in split.images:
            if image.digest is None:
                continue
            earlier = first_of.setdefault(image.digest, [])
            for other_split in dict.fromkeys(name for name, _ in earlier):
                other = next(report for name, report in earlier if name == other_split)
                kind = "image-repeated" if other_split == split.name else "leak"
                what = f"has the pixels of {other.name} in {other_split}"
                yield image, Finding(kind, split.name, image.name, what)
            earlier.append((split.name, image))


def mostly_void(split: Split) -> Iterator[Finding]:
    """Finds a split that is void on more than half of its pixels."""
    void = sum(image.void for image in split.images)
    pixels = void + sum(segment.area for image in split.images for segment in image.segments)
    if 2 * void > pixels:
        yield Finding("mostly-void", split.name, split.name, f"{100 * void / pixels:.0f} % of all pixels are void")
