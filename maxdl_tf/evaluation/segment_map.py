"""Segments of an image in one form, whether they come from COCO files or from label maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from maxdl_tf import panoptic_ids
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.errors import UserError

_COCO_VOID = 0
_LONGEST_TABLE = 1 << 17  # Ids below this are looked up in a table of that length, others are sorted.


class SegmentInfo(NamedTuple):
    """A segment of a map.

    Attributes:
      id: Value of its pixels in the map.
      class_id: Class id in the class table.
      is_crowd: Whether it covers several things; true segments only.
      score: Confidence in 0..1; None if it has none.
    """

    id: int
    class_id: int
    is_crowd: bool = False
    score: float | None = None


class SegmentMap(NamedTuple):
    """A map and the list of its segments.

    Attributes:
      ids: int [height, width]. Ids that are not in the list are void.
      segments: All segments of the map, in the order of their source.
    """

    ids: np.ndarray
    segments: Sequence[SegmentInfo]


def from_coco(
    ids: np.ndarray, segments_info: Sequence[Mapping[str, Any]], class_of_category: Mapping[int, int], source: str
) -> SegmentMap:
    """Combines the segment ids of a PNG with the `segments_info` of its annotation.

    Args:
      ids: int [height, width], 0 where void.
      segments_info: Segments with `id`, `category_id` and, optionally, `iscrowd` and `score`.
      class_of_category: Class id of each category id.
      source: Name of the file in errors.

    Raises:
      UserError: The category of a segment is unknown, or PNG and list have different ids.
    """
    segments = []
    for info in segments_info:
        segment_id, category = info["id"], info["category_id"]
        if category not in class_of_category:
            raise UserError(
                f"{source}: segment {segment_id} has category {category}, which the annotations do not list"
            )
        segments.append(
            SegmentInfo(segment_id, class_of_category[category], bool(info.get("iscrowd")), info.get("score"))
        )
    listed = {segment.id for segment in segments}
    drawn = set(different_ids(ids).tolist()) - {_COCO_VOID}
    if len(listed) != len(segments):
        raise UserError(f"{source}: segments_info lists a segment id twice; ids must differ within an image")
    if _COCO_VOID in listed:
        raise UserError(f"{source}: segments_info lists id {_COCO_VOID}, which stands for void")
    for segment_id in sorted(drawn - listed):
        raise UserError(f"{source}: segment {segment_id} is in the PNG but not in the JSON's segments_info")
    for segment_id in sorted(listed - drawn):
        raise UserError(f"{source}: segment {segment_id} is in the JSON's segments_info but not in the PNG")
    return SegmentMap(ids, segments)


def from_label_map(
    label_map: np.ndarray,
    dataset_info: DatasetInfo,
    source: str,
    *,
    has_crowds: bool = False,
    scores: Mapping[int, float] | None = None,
) -> SegmentMap:
    """Lists the segments of a label map, int [height, width]; other arguments as in `segments_of_labels`."""
    labels = different_ids(label_map)
    return SegmentMap(label_map, segments_of_labels(labels, dataset_info, source, has_crowds=has_crowds, scores=scores))


def segments_of_labels(
    labels: np.ndarray,
    dataset_info: DatasetInfo,
    source: str,
    *,
    has_crowds: bool = False,
    scores: Mapping[int, float] | None = None,
) -> list[SegmentInfo]:
    """Lists the segments of the labels that occur in a label map; void is not listed.

    Args:
      labels: int [labels], class id * label_divisor + instance.
      dataset_info: Class table.
      source: Name of the map in errors.
      has_crowds: Whether instance 0 of a thing class is a crowd, as in truth.
      scores: Score of each segment, by its label.

    Raises:
      ValueError: The class of a label is not in the table.
    """
    segments = []
    for label in labels.tolist():
        class_id, instance = panoptic_ids.decode_label(label, dataset_info.label_divisor)
        if class_id == dataset_info.ignore_label:
            continue
        row = dataset_info.by_id.get(class_id)
        if row is None:
            raise ValueError(
                f"{source} has label {label}, which is class {class_id} with label_divisor "
                f"{dataset_info.label_divisor}; data set {dataset_info.name!r} has the classes "
                f"{', '.join(map(str, dataset_info.class_order))} and {dataset_info.ignore_label} for void"
            )
        is_crowd = has_crowds and row.is_thing and instance == 0
        segments.append(SegmentInfo(label, class_id, is_crowd, scores.get(label) if scores else None))
    return segments


def to_label_maps(
    truth: SegmentMap, prediction: SegmentMap, dataset_info: DatasetInfo
) -> tuple[np.ndarray, np.ndarray, DatasetInfo]:
    """Converts both maps to label maps for pictures.

    Returns:
      Both label maps, int32 [height, width], and a class table whose label_divisor exceeds the number of segments.
    """
    most = max(len(truth.segments), len(prediction.segments))
    table = DatasetInfo(dataset_info.name, dataset_info.classes, most + 2, dataset_info.ignore_label)
    return _label_map(truth, table), _label_map(prediction, table), table


def different_ids(ids: np.ndarray) -> np.ndarray:
    """The ids that occur in a map, int64, ascending."""
    ids = np.asarray(ids).reshape(-1)
    # Neighbors in a row mostly have the same id; only one of each run is looked up.
    return compact_ids(np.append(ids[:-1][ids[1:] != ids[:-1]], ids[-1:]))[0]


def compact_ids(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the ids of an array.

    Returns:
      The different ids, ascending, and the place of each element's id among them; both int64.
    """
    ids = ids.astype(np.int64)
    if not ids.size or ids.min() < 0 or ids.max() >= _LONGEST_TABLE:
        different, place = np.unique(ids, return_inverse=True)
        return different, place.reshape(-1)
    is_present = np.zeros(ids.max() + 1, bool)
    is_present[ids] = True
    return np.flatnonzero(is_present), (np.cumsum(is_present) - 1)[ids]


def _label_map(segment_map: SegmentMap, table: DatasetInfo) -> np.ndarray:
    by_id = {segment.id: segment for segment in segment_map.segments}
    present, place = np.unique(segment_map.ids, return_inverse=True)
    labels = []
    for number, segment in enumerate(map(by_id.get, present.tolist()), start=1):
        if segment is None:
            labels.append(table.void)
        else:
            is_one = table.by_id[segment.class_id].is_thing and not segment.is_crowd
            labels.append(panoptic_ids.encode_label(segment.class_id, number if is_one else 0, table.label_divisor))
    return np.array(labels, np.int32)[place.reshape(segment_map.ids.shape)]
