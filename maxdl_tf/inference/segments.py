"""The segments of a panoptic label map as objects, and how COCO writes them down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maxdl_tf import panoptic_ids
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.inference.segment_table import SegmentTable
from maxdl_tf.panoptic_ids import MAX_SEGMENT_ID


@dataclass(frozen=True)
class Segment:
    """One segment of an image.

    Attributes:
      id: Its value in the label map.
      class_id: Of the class table.
      is_thing: Whether it is one instance of its class.
      score: Confidence, 0..1 (architecture section 9).
      area: Pixels.
      bbox: (left, top, width, height) in pixels.
    """

    id: int
    class_id: int
    is_thing: bool
    score: float
    area: int
    bbox: tuple[int, int, int, int]


def segments_of(table: SegmentTable, dataset_info: DatasetInfo) -> list[Segment]:
    """The segments that a table lists, its fields as arrays."""
    return [
        Segment(
            id=int(table.ids[row]),
            class_id=int(table.class_ids[row]),
            is_thing=dataset_info.by_id[int(table.class_ids[row])].is_thing,
            score=float(table.scores[row]),
            area=int(table.areas[row]),
            bbox=tuple(table.boxes[row].tolist()),
        )
        for row in range(table.count)
    ]


def coco_picture(label_map: np.ndarray, dataset_info: DatasetInfo) -> np.ndarray:
    """The pixels of a COCO panoptic PNG: segment ids as colors, 0 where void.

    Segment ids are the label map's own values, so that `color_to_id` gives it back.

    Returns:
      uint8 [h, w, 3].

    Raises:
      ValueError: A label needs more than three bytes.
    """
    if label_map.size and label_map.max() > MAX_SEGMENT_ID:
        raise ValueError(
            f"label {label_map.max()} is beyond {MAX_SEGMENT_ID}, the last id that a COCO panoptic PNG can hold; "
            f"data set {dataset_info.name!r} needs a smaller label_divisor than {dataset_info.label_divisor}"
        )
    return panoptic_ids.id_to_color(np.where(label_map == dataset_info.void, 0, label_map))


def coco_segments_info(segments: Sequence[Segment], dataset_info: DatasetInfo) -> list[dict]:
    """The `segments_info` of a COCO panoptic annotation, with each segment's score."""
    return [
        {
            "id": segment.id,
            "category_id": dataset_info.by_id[segment.class_id].source_id,
            "iscrowd": 0,
            "area": segment.area,
            "bbox": list(segment.bbox),
            "score": round(segment.score, 6),
        }
        for segment in segments
    ]


def coco_categories(dataset_info: DatasetInfo) -> list[dict]:
    """The `categories` of a COCO panoptic file."""
    return [
        {"id": row.source_id, "name": row.name, "isthing": int(row.is_thing), "color": list(row.color)}
        for row in dataset_info.classes
    ]
