"""Checks that COCO data and TFRecords share: of an encoded image, and of the segments of a map."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from maxdl_tf import panoptic_ids
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data_gen.checks.findings import ImageReport, Loaded, SegmentFacts
from maxdl_tf.errors import UserError
from maxdl_tf.files import images
from maxdl_tf.files.intensity import IntensityRule, NoIntensityRule, advice

Find = Callable[..., None]  # Adds a finding: find(kind, what) or find(kind, what, segment).

_TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width.
_TINY = 4  # Pixels.


class InspectedImage(NamedTuple):
    """An image file, decoded and checked.

    Attributes:
      faults: (kind, what) of each fault.
      pixels: uint8 [height, width, 3], RGB, upright; None if the file cannot be decoded.
      stored_size: (height, width) of the stored pixels, to which no EXIF orientation is applied.
      digest: Hash of size and pixels.
      mode: Color mode of the file in Pillow's terms.
      format: "jpeg", "png" or another format.
    """

    faults: list[tuple[str, str]]
    pixels: np.ndarray | None = None
    stored_size: tuple[int, int] | None = None
    digest: bytes | None = None
    mode: str = ""
    format: str = ""


def inspect_image(
    content: bytes, formats: Sequence[str] = ("jpeg", "png"), intensity: IntensityRule | None = None
) -> InspectedImage:
    """Decodes an image file and checks its format.

    Args:
      content: Content of the file.
      formats: Allowed formats; the default is those of records.
      intensity: Rule for values of more than 8 bits; without one, gray images of more bits are a fault.
    """
    try:
        image = images.decode_image(content, "image", images.MAX_DATA_PIXELS, intensity)
    except NoIntensityRule as error:
        return InspectedImage([("image-format", str(error).split(": ", 1)[-1])])
    except UserError as error:
        reason = " ".join(str(error).split(": ", 1)[-1].split())[:120]
        return InspectedImage([("image-undecodable", f"{len(content)} bytes: {reason}")])
    faults = []
    if image.format not in formats:
        faults.append(("image-format", f"a {image.format.upper()} file"))
    if image.value_range and not intensity:
        low, high = image.value_range
        faults.append(("image-format", f"values {low} to {high} of more than 8 bits; {advice(low, high)}"))
    elif image.mode in ("L", "1"):
        faults.append(("image-gray", "gray"))
    elif image.mode == "CMYK":
        faults.append(("image-cmyk", "CMYK"))
    elif image.mode in ("LA", "PA", "RGBA"):
        faults.append(("image-alpha", f"has transparency (mode {image.mode})"))
    if image.orientation != 1:
        faults.append(("image-rotated", f"EXIF orientation {image.orientation}"))
    size = image.pixels.shape[:2]
    stored_size = size[::-1] if image.orientation in _TRANSPOSED else size
    digest = hashlib.blake2b(np.ascontiguousarray(image.pixels), digest_size=16)
    digest.update(repr(image.pixels.shape).encode())
    return InspectedImage(faults, image.pixels, stored_size, digest.digest(), image.mode, image.format)


def check_image(
    content: bytes,
    find: Find,
    report: ImageReport,
    formats: Sequence[str] = ("jpeg", "png"),
    intensity: IntensityRule | None = None,
) -> InspectedImage:
    """Inspects an image file, adds the findings, and enters size, digest and mode into the report."""
    image = inspect_image(content, formats, intensity)
    for kind, what in image.faults:
        find(kind, what)
    if image.pixels is not None:
        report.size, report.digest, report.mode = image.pixels.shape[:2], image.digest, image.mode
    return image


def check_segments(
    id_map: np.ndarray, void: int, areas: dict[int, int], num_slots: int, find: Find, report: ImageReport
) -> None:
    """Adds findings about the segments of a map.

    Args:
      id_map: int [height, width], segment ids or labels.
      void: Value of pixels without a segment.
      areas: {segment: area in pixels} of the segments to check.
      num_slots: Number of slots of the network.
      find: Adds a finding.
      report: Report with the void pixels and the segments of the image.
    """
    if report.void == id_map.size:
        find("all-void", "no pixel belongs to a segment")
    if report.num_objects > num_slots:
        find("too-many-segments", f"{report.num_objects} segments, but the network has {num_slots} slots")
    for segment, area in areas.items():
        if area < _TINY:
            find("segment-tiny", f"only {area} pixel{'s' if area > 1 else ''}", segment)
    for segment, what in holes(id_map, void):
        find("hole", what, segment)


def check_label_map(
    label: np.ndarray, dataset_info: DatasetInfo, num_slots: int, find: Find, report: ImageReport
) -> None:
    """Adds findings about a label map, int [height, width], and enters its segments into the report."""
    values, counts = np.unique(label, return_counts=True)
    segments: dict[int, int] = {}
    unknown: dict[int, int] = {}
    for value, area in zip(values.tolist(), counts.tolist()):
        class_id, instance = panoptic_ids.decode_label(value, dataset_info.label_divisor)
        row = dataset_info.by_id.get(class_id)
        if class_id == dataset_info.ignore_label:
            report.void += area
            continue
        segments[value] = area
        if row is None:
            unknown[class_id] = unknown.get(class_id, 0) + area
            continue
        if instance and not row.is_thing:
            find("stuff-instance", f"{row.name!r} is stuff, but has instance {instance}", value)
        report.segments.append(SegmentFacts(class_id, area, row.is_thing and instance == 0))
    for class_id, area in unknown.items():
        find(
            "class-unknown", f"{area} pixels of class {class_id}, which the class table of {dataset_info.name!r} lacks"
        )
    largest = max((value % dataset_info.label_divisor for value in segments), default=0)
    limit = panoptic_ids.largest_instance_to_paste(dataset_info.label_divisor)
    if largest > limit:
        find("instance-not-pasted", f"instance {largest}; copy_paste of a training allows up to {limit}")
    check_segments(label, dataset_info.void, segments, num_slots, find, report)


def loaded(pixels: np.ndarray | None, label: np.ndarray, dataset_info: DatasetInfo) -> Loaded:
    """An image with a label map, int [height, width], for the pictures of the report."""
    return Loaded(pixels, np.where(label == dataset_info.void, 0, label), label, dataset_info)


def holes(id_map: np.ndarray, void: int) -> list[tuple[int, str]]:
    """Finds void regions whose neighbors all belong to one segment.

    Args:
      id_map: int [height, width].
      void: Value of pixels without a segment.

    Returns:
      (segment, what) of each segment with holes.
    """
    from scipy import ndimage

    empty = id_map == void
    if not empty.any() or empty.all():
        return []
    components, _ = ndimage.label(empty)
    found: dict[int, list[int]] = {}
    height, width = id_map.shape
    for number, (rows, columns) in enumerate(ndimage.find_objects(components), start=1):
        if rows.start == 0 or columns.start == 0 or rows.stop == height or columns.stop == width:
            continue
        around = np.s_[rows.start - 1 : rows.stop + 1, columns.start - 1 : columns.stop + 1]
        inside = components[around] == number
        neighbors = np.unique(id_map[around][ndimage.binary_dilation(inside) & ~inside])
        if len(neighbors) == 1:
            found.setdefault(int(neighbors[0]), []).append(int(inside.sum()))
    return [
        (segment, f"{len(sizes)} hole{'s' if len(sizes) > 1 else ''} of void, {sum(sizes)} pixels")
        for segment, sizes in found.items()
    ]


def boxes(id_map: np.ndarray) -> dict[int, tuple[int, int, int, int]]:
    """Returns {id: (left, top, width, height)} of all ids in a map, including 0."""
    from scipy import ndimage

    ids, places = np.unique(id_map, return_inverse=True)
    found = ndimage.find_objects(places.reshape(id_map.shape) + 1)
    return {
        int(i): (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        for i, (rows, columns) in zip(ids, found)
    }
