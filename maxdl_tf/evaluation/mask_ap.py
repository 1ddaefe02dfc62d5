"""Average precision of things' masks, as COCO's instance evaluation has it (pycocotools)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from maxdl_tf.class_table import DatasetInfo

_AREAS = ("all", "small", "medium", "large")


class ThingMask(NamedTuple):
    """A thing of an image.

    Attributes:
      class_id: Of the class table.
      rle: pycocotools' run lengths of its mask.
      area: Pixels.
      is_crowd: Of a true one: predictions may lie on it, and nothing has to.
      score: Of a predicted one.
    """

    class_id: int
    rle: dict[str, Any]
    area: int
    is_crowd: bool = False
    score: float = 1.0


class ImageThings(NamedTuple):
    """The things of one image, true and predicted."""

    truth: list[ThingMask]
    prediction: list[ThingMask]


@dataclass(frozen=True)
class MaskApResult:
    """Average precision in 0..1; None where there is no true thing to find.

    Attributes:
      ap: Mean over IoU thresholds 0.5, 0.55 .. 0.95 and over classes.
      ap50: At an IoU of 0.5.
      ap75: At 0.75.
      small: Of things below 32 x 32 pixels.
      medium: From there to 96 x 96 pixels.
      large: Above.
      classes: `ap` of each thing class by its name.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    small: float | None
    medium: float | None
    large: float | None
    classes: dict[str, float | None]

    def as_dict(self) -> dict:
        """For JSON."""
        return asdict(self)

    def as_line(self) -> str:
        """For people, in percent."""
        names = ("ap", "ap50", "ap75", "small", "medium", "large")
        values = [(name, getattr(self, name)) for name in names]
        return "mask " + "  ".join(
            f"{name.upper() if name.startswith('ap') else name} {'-' if value is None else f'{100 * value:.1f}'}"
            for name, value in values
        )


def thing_masks(ids: np.ndarray, things: Sequence[tuple[int, ThingMask]]) -> list[ThingMask]:
    """Fills in masks and areas.

    Args:
      ids: int [height, width].
      things: The id of each thing in it, and the thing without mask.
    """
    from pycocotools import mask as coco_mask

    found = []
    for segment_id, thing in things:
        rle = coco_mask.encode(np.asfortranarray(ids == segment_id, np.uint8))
        found.append(thing._replace(rle=rle, area=int(coco_mask.area(rle))))
    return found


def mask_ap(images: Sequence[ImageThings], dataset_info: DatasetInfo) -> MaskApResult:
    """COCO's instance evaluation of all images: at most 100 predictions of an image count, those of the best scores.

    Args:
      images: Their things.
      dataset_info: The class table; classes of stuff are left out.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells each of its steps.
        sides = []
        for side in ImageThings._fields:
            coco = COCO()
            coco.dataset = {
                # Sizes are asked for, but run lengths have their own.
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


def _annotations(images: Sequence[Sequence[ThingMask]]) -> list[dict[str, Any]]:
    things = [(number, thing) for number, image in enumerate(images) for thing in image]
    return [
        {
            "id": place,  # From 1: the evaluation takes 0 for no match.
            "image_id": number,
            "category_id": thing.class_id,
            "segmentation": thing.rle,
            "area": thing.area,
            "iscrowd": int(thing.is_crowd),
            "score": thing.score,
        }
        for place, (number, thing) in enumerate(things, start=1)
    ]


def _mean(precision: np.ndarray) -> float | None:
    """-1 stands for a class without true things."""
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else None
