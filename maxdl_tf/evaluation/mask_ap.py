"""Average precision of the masks of things, by COCO's instance evaluation (pycocotools)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.evaluation.segment_map import SegmentInfo, SegmentMap

_AREAS = ("all", "small", "medium", "large")


class ThingMask(NamedTuple):
    """A thing of an image and pycocotools' run lengths of its mask."""

    segment: SegmentInfo
    rle: dict[str, Any]


class ImageThings(NamedTuple):
    """True and predicted things of one image."""

    truth: list[ThingMask]
    prediction: list[ThingMask]


@dataclass(frozen=True)
class MaskApResult:
    """Average precision in 0..1; None if there is no true thing.

    Attributes:
      ap: Mean over the IoU thresholds 0.5, 0.55 .. 0.95 and over classes.
      ap50: AP at an IoU of 0.5.
      ap75: AP at an IoU of 0.75.
      small: AP of things with less than 32 x 32 pixels.
      medium: AP of things with 32 x 32 to 96 x 96 pixels.
      large: AP of larger things.
      classes: `ap` of each thing class by its name.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    small: float | None
    medium: float | None
    large: float | None
    classes: dict[str, float | None]

    def as_dict(self) -> dict[str, Any]:
        """The attributes in a form that JSON can hold."""
        return asdict(self)

    def as_line(self) -> str:
        """A human-readable line, in percent."""
        names = ("ap", "ap50", "ap75", "small", "medium", "large")
        values = [(name, getattr(self, name)) for name in names]
        return "mask " + "  ".join(
            f"{name.upper() if name.startswith('ap') else name} {'-' if value is None else f'{100 * value:.1f}'}"
            for name, value in values
        )


def thing_masks(segment_map: SegmentMap, dataset_info: DatasetInfo) -> list[ThingMask]:
    """The masks of the things in a map."""
    from pycocotools import mask as coco_mask

    return [
        ThingMask(segment, coco_mask.encode(np.asfortranarray(segment_map.ids == segment.id, np.uint8)))
        for segment in segment_map.segments
        if dataset_info.by_id[segment.class_id].is_thing
    ]


def mask_ap(images: Sequence[ImageThings], dataset_info: DatasetInfo) -> MaskApResult:
    """COCO's instance evaluation. The 100 predictions of an image with the highest scores count.

    Args:
      images: Things of each image; predictions with scores.
      dataset_info: Class table; stuff classes do not count.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints each of its steps.
        sides = []
        for side in ImageThings._fields:
            coco = COCO()
            coco.dataset = {
                # The format needs sizes; the run lengths have their own.
                "images": [{"id": number, "height": 0, "width": 0} for number in range(len(images))],
                "categories": [{"id": class_id} for class_id in dataset_info.thing_ids],
                "annotations": _annotations([getattr(things, side) for things in images]),
            }
            coco.createIndex()
            sides.append(coco)
        evaluation = COCOeval(*sides, iouType="segm")
        evaluation.params.imgIds = list(range(len(images)))
        evaluation.params.catIds = list(dataset_info.thing_ids)
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., -1]  # [IoUs, recalls, classes, areas], of 100 predictions.
    return MaskApResult(
        ap=_mean(precision[..., 0]),
        ap50=_mean(precision[0, ..., 0]),
        ap75=_mean(precision[5, ..., 0]),
        **{name: _mean(precision[..., column]) for column, name in enumerate(_AREAS) if column},
        classes={
            dataset_info.by_id[class_id].name: _mean(precision[:, :, row, 0])
            for row, class_id in enumerate(dataset_info.thing_ids)
        },
    )


def _annotations(things_of_images: Sequence[Sequence[ThingMask]]) -> list[dict[str, Any]]:
    from pycocotools import mask as coco_mask

    things = [(number, thing) for number, things in enumerate(things_of_images) for thing in things]
    return [
        {
            "id": place,  # From 1: the evaluation takes 0 for no match.
            "image_id": number,
            "category_id": segment.class_id,
            "segmentation": rle,
            "area": int(coco_mask.area(rle)),
            "iscrowd": int(segment.is_crowd),
            "score": segment.score,
        }
        for place, (number, (segment, rle)) in enumerate(things, start=1)
    ]


def _mean(precision: np.ndarray) -> float | None:
    """The mean without classes that have no true things, for which the precision is -1."""
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else None
