"""The segments of an image, as files and label maps give them, in one form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from maxdl_tf import panoptic_ids
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.errors import UserError
from maxdl_tf.evaluation.matching import different_ids


class SegmentInfo(NamedTuple):
    """What is said of a segment.

    Attributes:
      id: Its value in the map.
      class_id: Of the class table.
      is_crowd: Whether it stands for several things; in truth only.
      score: Confidence in 0..1; None where nothing is said.
    """

    id: int
    class_id: int
    is_crowd: bool = False
    score: float | None = None


class SegmentMap(NamedTuple):
    """A map of segments.

    Attributes:
      ids: int [height, width].
      segments: All of the map, in the order in which they were listed.
      void: What `ids` is where there is no segment.
      source: What to call it in complaints.
    """

    ids: np.ndarray
    segments: Sequence[SegmentInfo]
    void: int
    source: str

    def check(self, present: np.ndarray) -> None:
        """Compares the list with the ids that occur in the map.

        Raises:
          UserError: They are not the same.
        """
        listed = {segment.id for segment in self.segments}
        found = set(present.tolist()) - {self.void}
        if len(listed) != len(self.segments):
            raise UserError(f"{self.source}: a segment id is listed twice; ids must differ within an image")
        if self.void in listed:
            raise UserError(f"{self.source}: the id {self.void} is listed as a segment; it stands for void")
        for segment_id in sorted(found - listed):
            raise UserError(f"{self.source}: segment {segment_id} is in the PNG but not in the JSON's segments_info")
        for segment_id in sorted(listed - found):
            raise UserError(f"{self.source}: segment {segment_id} is in the JSON's segments_info but not in the PNG")

    def listed_as(self, ids: np.ndarray) -> list[SegmentInfo | None]:
        """The segment of each id; None for void."""
        by_id = {segment.id: segment for segment in self.segments}
        return [by_id.get(segment_id) for segment_id in ids.tolist()]


def from_coco(
    ids: np.ndarray, segments_info: Sequence[Mapping[str, Any]], class_of_category: Mapping[int, int], source: str
) -> SegmentMap:
    """Of a PNG's segment ids and the `segments_info` of its annotation.

    Args:
      ids: int [height, width].
      segments_info: With `id`, `category_id`, and, if they are there, `iscrowd` and `score`.
      class_of_category: Class id of each category id.
      source: What to call it in complaints.

    Raises:
      UserError: A segment lacks something, or its category is unknown.
    """
    segments = []
    for info in segments_info:
        try:
            segment_id, category = info["id"], info["category_id"]
        except (KeyError, TypeError) as error:
            raise UserError(f"{source}: a segment of segments_info has no {error}") from error
        if category not in class_of_category:
            raise UserError(
                f"{source}: segment {segment_id} is of category {category}, which the annotations do not list"
            )
        segments.append(
            SegmentInfo(segment_id, class_of_category[category], bool(info.get("iscrowd", 0)), info.get("score"))
        )
    return SegmentMap(ids, segments, 0, source)


def from_label_map(
    label_map: np.ndarray,
    dataset_info: DatasetInfo,
    source: str,
    *,
    is_truth: bool,
    scores: Mapping[int, float] | None = None,
) -> SegmentMap:
    """Of a label map, `class id * label_divisor + instance`.

    Args:
      label_map: int [height, width].
      dataset_info: The class table.
      source: What to call it in complaints.
      is_truth: Then instance 0 of a thing class is a crowd.
      scores: Of segments, by their labels.

    Raises:
      UserError: A label's class is not in the table.
    """
    segments = []
    for label in different_ids(label_map).tolist():
        class_id, instance = panoptic_ids.decode_label(label, dataset_info.label_divisor)
        if class_id == dataset_info.ignore_label:
            continue
        row = dataset_info.by_id.get(class_id)
        if row is None:
            raise UserError(f"{source}: label {label} is of class {class_id}, which {dataset_info.name!r} has not")
        segments.append(
            SegmentInfo(label, class_id, is_truth and row.is_thing and instance == 0, (scores or {}).get(label))
        )
    is_void = label_map // dataset_info.label_divisor == dataset_info.ignore_label
    return SegmentMap(np.where(is_void, dataset_info.void, label_map), segments, dataset_info.void, source)


def to_label_maps(
    truth: SegmentMap, prediction: SegmentMap, dataset_info: DatasetInfo
) -> tuple[np.ndarray, np.ndarray, DatasetInfo]:
    """Label maps of both, int32 [height, width], for pictures, and a class table whose divisor has room for them."""
    most = max(len(truth.segments), len(prediction.segments))
    table = DatasetInfo(dataset_info.name, dataset_info.classes, most + 2, dataset_info.ignore_label)
    return _label_map(truth, table), _label_map(prediction, table), table


def _label_map(segment_map: SegmentMap, table: DatasetInfo) -> np.ndarray:
    present, place = np.unique(segment_map.ids, return_inverse=True)
    labels = []
    for number, segment in enumerate(segment_map.listed_as(present), start=1):
        if segment is None:
            labels.append(table.void)
        else:
            is_one = table.by_id[segment.class_id].is_thing and not segment.is_crowd
            labels.append(panoptic_ids.encode_label(segment.class_id, number if is_one else 0, table.label_divisor))
    return np.array(labels, np.int32)[place.reshape(segment_map.ids.shape)]
