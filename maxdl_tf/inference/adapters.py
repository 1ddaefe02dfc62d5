"""Predictions in the forms that other tools read: COCO instances and `supervision` detections."""

from __future__ import annotations

from typing import Any

import numpy as np

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.errors import UserError
from maxdl_tf.inference.predictor import Prediction


def to_coco_instances(prediction: Prediction, image_id: int | str, dataset_info: DatasetInfo) -> list[dict]:
    """The things of an image as entries of a COCO results file, which pycocotools' `COCO.loadRes` reads.

    Args:
      prediction: Of the image.
      image_id: As in the annotations.
      dataset_info: Class table of the prediction; its `source_id`s are the category ids.

    Returns:
      A dictionary for each thing, with `segmentation` as compressed RLE of the image's size and `bbox` (left, top,
      width, height) in pixels. Stuff is left out.
    """
    from pycocotools import mask as coco_mask

    instances = []
    for segment in prediction.segments:
        if not segment.is_thing:
            continue
        rle = coco_mask.encode(np.asfortranarray(prediction.label_map == segment.id, np.uint8))
        instances.append(
            {
                "image_id": image_id,
                "category_id": dataset_info.by_id[segment.class_id].source_id,
                "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
                "bbox": list(segment.bbox),
                "area": segment.area,
                "score": round(segment.score, 6),
            }
        )
    return instances


def to_supervision(prediction: Prediction, dataset_info: DatasetInfo, *, things_only: bool = False) -> Any:
    """The segments of an image as `supervision.Detections`, for its annotators, trackers and filters.

        detections = to_supervision(predictor(image), predictor.dataset_info)
        supervision.MaskAnnotator().annotate(image, detections)

    Args:
      prediction: Of the image. Each of its n segments takes a mask of the image's size.
      dataset_info: Class table of the prediction.
      things_only: Whether to leave stuff out.

    Returns:
      `supervision.Detections`: `xyxy` float32 [n, 4] in pixels, right and bottom beyond the last pixel; `mask`
      bool [n, h, w]; `confidence` float32 [n]; `class_id` int [n], of the class table; `data["class_name"]` str [n].

    Raises:
      UserError: The package supervision is not installed.
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
        data={"class_name": np.array([dataset_info.by_id[segment.class_id].name for segment in chosen], str)},
    )
