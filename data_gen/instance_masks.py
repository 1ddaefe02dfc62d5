"""Masks that may overlap, painted into one map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from maxdl_tf.errors import UserError

OVERLAPS = ("smaller_on_top", "larger_on_top", "later_on_top", "void")
NOTHING, CONTESTED = -1, -2


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """bool [height, width] of a COCO segmentation: a list of polygons, or an RLE, compressed or not.

    Raises:
      UserError: If it is none or does not fit the size.
    """
    try:
        if isinstance(segmentation, list):
            if not segmentation or any(len(polygon) < 6 or len(polygon) % 2 for polygon in segmentation):
                raise UserError("its polygons need three points at least, each an x and a y")
            rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        else:
            if list(segmentation["size"]) != [height, width]:
                raise UserError(
                    f"its RLE is of size {segmentation['size']}, the image of [{height}, {width}] (height, width)"
                )
            rle = segmentation
            if isinstance(segmentation["counts"], list):
                if sum(segmentation["counts"]) != height * width:
                    raise UserError(f"its RLE counts {sum(segmentation['counts'])} pixels of {height * width}")
                rle = coco_mask.frPyObjects(segmentation, height, width)
        return coco_mask.decode(rle).astype(bool)
    except UserError:
        raise
    except Exception as error:  # pycocotools raises plain Exceptions, too.
        raise UserError(f"its segmentation is neither polygons nor an RLE: {error}") from error


def paint(masks: Sequence[np.ndarray], size: tuple[int, int], overlap: str) -> np.ndarray:
    """The number of the mask that each pixel belongs to.

    Args:
      masks: bool [height, width] each.
      size: (height, width).
      overlap: Who gets a pixel of several masks, one of OVERLAPS: the smaller or the larger mask, of equal ones the
        later; the later one in the list; or none ("void").

    Returns:
      int32 [height, width]: 0.., NOTHING in no mask, CONTESTED where nobody gets the pixel.
    """
    order = list(range(len(masks)))
    if overlap in ("smaller_on_top", "larger_on_top"):
        sign = -1 if overlap == "smaller_on_top" else 1
        order.sort(key=lambda number: sign * np.count_nonzero(masks[number]))  # Stable: the later one stays later.
    painted = np.full(size, NOTHING, np.int32)
    for number in order:
        if overlap == "void":
            painted[masks[number]] = np.where(painted[masks[number]] == NOTHING, number, CONTESTED)
        else:
            painted[masks[number]] = number
    return painted
