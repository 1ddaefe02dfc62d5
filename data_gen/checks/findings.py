"""What maxdl-check-data can find, how bad it is and how to mend it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)


class Kind(NamedTuple):
    """A kind of finding.

    Attributes:
      severity: ERROR: it stops the conversion or makes what is trained or measured wrong. WARNING: it is allowed, and
        hardly meant. NOTE: it occurs in good data sets.
      fix: What to do about it.
    """

    severity: str
    fix: str


_RECOMPUTE = "recompute it from the PNG"
_SAME_IDS = "give each segment one id, the same in the JSON and in the PNG's colors (R + 256 G + 65536 B)"
_CONVERT_AGAIN = "convert the data set again"

KINDS = {
    # The JSON file.
    "category-incomplete": Kind(ERROR, "give each category an integer id, a name and isthing 0 or 1"),
    "category-repeated": Kind(ERROR, "give each category an id of its own"),
    "category-name-repeated": Kind(WARNING, "merge the categories, or rename one"),
    "categories-differ": Kind(ERROR, "use one category list for all splits"),
    "image-incomplete": Kind(ERROR, "give each image an id, a file_name, a height and a width"),
    "image-id-repeated": Kind(ERROR, "give each image an id of its own"),
    "image-listed-twice": Kind(ERROR, "list each image file once"),
    "image-name-shared": Kind(WARNING, "rename one: records and predictions are named without the extension"),
    "image-not-annotated": Kind(ERROR, "annotate the image, or take it off the list"),
    "annotation-incomplete": Kind(ERROR, "give each annotation an image_id, a file_name and segments_info"),
    "annotation-repeated": Kind(ERROR, "merge the image's annotations"),
    "annotation-without-image": Kind(ERROR, "list the image, or remove the annotation"),
    "png-shared": Kind(ERROR, "give each annotation a PNG of its own"),
    # Image files and PNGs.
    "image-missing": Kind(ERROR, "put the file there, or take the image off the list"),
    "image-undecodable": Kind(ERROR, "copy or download the file again"),
    "image-format": Kind(ERROR, "store the image as a JPEG or PNG of 8 bits"),
    "image-format-wrong": Kind(WARNING, _CONVERT_AGAIN),
    "image-rotated": Kind(WARNING, "turn the pixels and remove the EXIF orientation: it is ignored in training"),
    "image-cmyk": Kind(WARNING, "store the image as RGB: programs differ in how they convert CMYK"),
    "image-gray": Kind(NOTE, "nothing: it is converted to RGB"),
    "image-alpha": Kind(NOTE, "nothing: transparency is dropped"),
    "image-size": Kind(ERROR, "correct height and width, or find the right file; beware of rotated images"),
    "image-not-listed": Kind(WARNING, "list the image, or remove the file"),
    "image-repeated": Kind(WARNING, "keep one of them"),
    "leak": Kind(ERROR, "remove the image from one of the splits: what was trained on cannot be measured on"),
    "png-missing": Kind(ERROR, "put the file there, or remove the annotation"),
    "png-undecodable": Kind(ERROR, "copy or download the file again"),
    "png-mode": Kind(ERROR, "store segment ids as an RGB PNG of 8 bits per channel"),
    "png-size": Kind(ERROR, "give the PNG the size of its image; scale ids by nearest neighbor only"),
    "png-not-listed": Kind(WARNING, "add its annotation, or remove the file"),
    # Segments.
    "segment-incomplete": Kind(ERROR, "give each segment an integer id and a category_id"),
    "segment-id": Kind(ERROR, "give the segment an id from 1 to 16777215; 0 is void"),
    "segment-repeated": Kind(ERROR, _SAME_IDS),
    "segment-not-listed": Kind(ERROR, f"list the segment, or make its pixels void; {_SAME_IDS}"),
    "segment-not-drawn": Kind(ERROR, f"draw the segment, or take it off the list; {_SAME_IDS}"),
    "category-unknown": Kind(ERROR, "add the category to the list, or correct category_id"),
    "area": Kind(ERROR, _RECOMPUTE),
    "overlap": Kind(ERROR, "decide which segment owns each pixel; then recompute areas from the PNG"),
    "box": Kind(WARNING, _RECOMPUTE),
    "stuff-split": Kind(WARNING, "merge them: stuff has one segment for each class of an image"),
    "crowd-of-stuff": Kind(WARNING, "set iscrowd to 0: crowds are groups of things"),
    "crowd-value": Kind(WARNING, "set iscrowd to 0 or 1"),
    "all-void": Kind(WARNING, "annotate the image, or leave it out: nothing is learned from it"),
    "too-many-segments": Kind(WARNING, "train with more slots (model.num_slots), or cut the image into parts"),
    "too-many-instances": Kind(ERROR, "convert with a larger --label_divisor"),
    "segment-tiny": Kind(NOTE, "nothing, if it is meant; specks are often left by drawing tools"),
    "hole": Kind(NOTE, "nothing, if it is meant; fill the hole if it is the segment's"),
    # TFRecords.
    "record-damaged": Kind(ERROR, f"{_CONVERT_AGAIN}, or train with on_damaged_record: SKIP"),
    "shard-missing": Kind(ERROR, f"copy all shards, or {_CONVERT_AGAIN}"),
    "shards-mixed": Kind(ERROR, "remove the shards of the older conversion"),
    "example-unreadable": Kind(ERROR, _CONVERT_AGAIN),
    "label-undecodable": Kind(ERROR, _CONVERT_AGAIN),
    "label-size": Kind(ERROR, _CONVERT_AGAIN),
    "class-unknown": Kind(ERROR, "name the right --dataset_info; else convert the data set again"),
    "stuff-instance": Kind(WARNING, "give stuff the instance 0"),
    "record-id-repeated": Kind(ERROR, "convert images of distinct names: predictions are named by them"),
}


class Finding(NamedTuple):
    """Something that is wrong in a data set, or might be.

    Attributes:
      kind: A key of KINDS.
      split: In which split.
      file: The image, PNG, JSON or TFRecord file.
      what: What was found there, with the figures.
      segment: The id of the segment, or the label; None if it is not about one.
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
        """For people: the file, and what part of it."""
        record = f" record {self.record}" if self.record is not None else ""
        segment = f" segment {self.segment}" if self.segment is not None else ""
        return f"{self.file}{record}{segment}"


class SegmentFacts(NamedTuple):
    """What counts of a segment.

    Attributes:
      category: Category or class id.
      area: In pixels.
      is_crowd: Of a group of things.
    """

    category: int
    area: int
    is_crowd: bool


@dataclass
class ImageReport:
    """What the check of one image gives.

    Attributes:
      name: What messages call the image.
      findings: What is wrong with it.
      size: (height, width); None if the image cannot be decoded.
      digest: Equal for images of equal pixels; None if it cannot be decoded.
      mode: Pillow's name of the colors.
      void: Pixels without a segment.
      segments: What is drawn.
      source: What the picture for the report is made of; None of a record that is damaged or no example.
    """

    name: str
    findings: list[Finding] = field(default_factory=list)
    size: tuple[int, int] | None = None
    digest: bytes | None = None
    mode: str = ""
    void: int = 0
    segments: list[SegmentFacts] = field(default_factory=list)
    source: Hashable = None


@dataclass
class Split:
    """A part of a data set, after its check.

    Attributes:
      name: Such as "train".
      categories: {category or class id: (name, is_thing)}.
      findings: Those that belong to no image.
      images: One for each image.
    """

    name: str
    categories: dict[int, tuple[str, bool]]
    findings: list[Finding] = field(default_factory=list)
    images: list[ImageReport] = field(default_factory=list)


def all_findings(splits: list[Split]) -> list[Finding]:
    """The worst kinds first, each kind in the order in which it was found."""
    found = [finding for split in splits for finding in split.findings]
    found += [finding for split in splits for image in split.images for finding in image.findings]
    order = list(KINDS)
    return sorted(found, key=lambda finding: (SEVERITIES.index(finding.severity), order.index(finding.kind)))
