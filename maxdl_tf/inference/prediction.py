"""Predictions as objects, and in the forms that other tools read: COCO panoptic, COCO instances, `supervision`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from maxdl_tf import panoptic_ids
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.drawing import label_maps
from maxdl_tf.errors import UserError
from maxdl_tf.panoptic_ids import MAX_SEGMENT_ID

if TYPE_CHECKING:
    from maxdl_tf.inference.numpy_pipeline import Segments
    from maxdl_tf.inference.segmenter import SegmentTable

_BAND_ROWS = 256  # Rows converted at a time, which saves memory.


@dataclass(frozen=True)
class Segment:
    """One segment of an image.

    Attributes:
      id: Value of its pixels in the label map.
      class_id: Class, an id of the class table.
      is_thing: Whether it is one instance of its class.
      score: Confidence, 0..1 (architecture section 9).
      area: Number of pixels.
      bbox: (left, top, width, height) in pixels.
    """

    id: int
    class_id: int
    is_thing: bool
    score: float
    area: int
    bbox: tuple[int, int, int, int]


class Prediction(NamedTuple):
    """Panoptic segmentation of one image.

    Attributes:
      label_map: int32 [height, width] of the image's size, class id * label_divisor + instance.
      segments: Segments of `label_map`, without void, ordered by id.
      image: uint8 [height, width, 3], the image.
      dataset_info: Class table of `label_map`.
    """

    label_map: np.ndarray
    segments: list[Segment]
    image: np.ndarray
    dataset_info: DatasetInfo

    def __repr__(self) -> str:
        height, width = self.label_map.shape
        segments = ", ".join(
            f"{self.dataset_info.by_id[segment.class_id].name} {segment.score:.2f}" for segment in self.segments
        )
        return f"<Prediction of {height} x {width} pixels, {len(self.segments)} segments: {segments or 'none'}>"

    def overlay(self) -> Image.Image:
        """Returns the image under the colors of its segments, as a PIL image of the same size."""
        return Image.fromarray(label_maps.panoptic_picture(self.image, self.label_map, self.dataset_info))

    def without_unsure_segments(self, min_score: float) -> Prediction:
        """Returns the prediction without segments whose score is below `min_score`; their pixels become void.

        This is the last step: no other segment takes the pixels, and area limits do not apply again.
        """
        unsure = [segment for segment in self.segments if segment.score < min_score]
        if not unsure:
            return self
        label_map = self.label_map.copy()
        for segment in unsure:
            left, top, width, height = segment.bbox
            box = label_map[top : top + height, left : left + width]
            box[box == segment.id] = self.dataset_info.void
        kept = [segment for segment in self.segments if segment.score >= min_score]
        return self._replace(label_map=label_map, segments=kept)


def segments_of(table: SegmentTable | Segments, dataset_info: DatasetInfo) -> list[Segment]:
    """The segments that a table lists. The fields of the table are arrays.

    Raises:
      UserError: A class of the model is missing in `dataset_info`.
    """
    for class_id in table.class_ids[: table.count].tolist():
        if class_id not in dataset_info.by_id:
            raise UserError(
                f"the model has a class {class_id}, which its class table {dataset_info.name!r} lacks; give the "
                "model's table, or export it again"
            )
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

    Segment ids are the values of the label map, so `color_to_id` restores it.

    Returns:
      uint8 [h, w, 3].

    Raises:
      UserError: A label does not fit into three bytes.
    """
    if label_map.size and label_map.max() > MAX_SEGMENT_ID:
        raise UserError(
            f"label {label_map.max()} is greater than {MAX_SEGMENT_ID}, the last id in a COCO panoptic PNG; "
            f"data set {dataset_info.name!r} needs a smaller label_divisor than {dataset_info.label_divisor}"
        )
    picture = np.empty((*label_map.shape, 3), np.uint8)
    for top in range(0, len(label_map), _BAND_ROWS):
        band = label_map[top : top + _BAND_ROWS]
        picture[top : top + _BAND_ROWS] = panoptic_ids.id_to_color(np.where(band == dataset_info.void, 0, band))
    return picture


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


def to_coco_instances(prediction: Prediction, image_id: int | str) -> list[dict]:
    """The things of an image as entries of a COCO results file, which pycocotools' `COCO.loadRes` reads.

    Args:
      prediction: Prediction of the image. The `source_id`s of its class table are the category ids.
      image_id: Id of the image in the annotations.

    Returns:
      A dictionary for each thing, with `segmentation` as compressed RLE of the image's size and `bbox` (left, top,
      width, height) in pixels. Stuff is omitted.
    """
    from pycocotools import mask as coco_mask

    instances = []
    for segment in prediction.segments:
        if not segment.is_thing:
            continue
        size = list(prediction.label_map.shape)
        rle = coco_mask.frPyObjects({"size": size, "counts": _run_lengths(prediction.label_map, segment)}, *size)
        instances.append(
            {
                "image_id": image_id,
                "category_id": prediction.dataset_info.by_id[segment.class_id].source_id,
                "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
                "bbox": list(segment.bbox),
                "area": segment.area,
                "score": round(segment.score, 6),
            }
        )
    return instances


def _run_lengths(label_map: np.ndarray, segment: Segment) -> list[int]:
    """Numbers of pixels outside, inside, outside, ... of a segment, column by column; as in COCO's uncompressed RLE.

    Only the box of the segment is read: a large image may have thousands of them.
    """
    left, top, width, height = segment.bbox
    inside = np.equal(label_map[top : top + height, left : left + width].T, segment.id)
    column, row = np.nonzero(np.diff(np.pad(inside, [(0, 0), (1, 1)]).astype(np.int8)))
    borders, times = np.unique((left + column) * len(label_map) + top + row, return_counts=True)
    borders = borders[times == 1]  # A run may go on in the next column.
    lengths = np.diff([0, *borders, label_map.size]).tolist()
    return lengths if lengths[-1] else lengths[:-1]


def to_supervision(prediction: Prediction, *, things_only: bool = False) -> Any:
    """The segments of an image as `supervision.Detections`, for its annotators, trackers and filters.

    Example:
      detections = to_supervision(predictor(image))
      supervision.MaskAnnotator().annotate(image, detections)

    Args:
      prediction: Prediction of the image. Each of its n segments takes a mask of the image's size.
      things_only: Whether to omit stuff.

    Returns:
      `supervision.Detections`: `xyxy` float32 [n, 4] in pixels, right and bottom behind the last pixel; `mask`
      bool [n, h, w]; `confidence` float32 [n]; `class_id` int [n], of the class table; `data["class_name"]` str [n].

    Raises:
      UserError: The package `supervision` is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise UserError("to_supervision needs the package supervision; pip install supervision") from error
    chosen = [segment for segment in prediction.segments if segment.is_thing or not things_only]
    boxes = np.array([segment.bbox for segment in chosen], np.float32).reshape(-1, 4)
    mask = np.zeros((len(chosen), *prediction.label_map.shape), bool)
    for place, segment in enumerate(chosen):
        np.equal(prediction.label_map, segment.id, out=mask[place])
    return supervision.Detections(
        xyxy=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
        mask=mask,
        confidence=np.array([segment.score for segment in chosen], np.float32),
        class_id=np.array([segment.class_id for segment in chosen], int),
        data={
            "class_name": np.array([prediction.dataset_info.by_id[segment.class_id].name for segment in chosen], str)
        },
    )
