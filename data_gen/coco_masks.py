"""Masks of the segmentations in COCO instances: polygons and RLEs, in all forms that tools write."""

from __future__ import annotations

from typing import Any

import numpy as np

from maxdl_tf.data import coco_fields
from maxdl_tf.errors import UserError

_RUN = coco_fields.integer(0)
_NEITHER = "is neither a list of polygons nor an RLE"


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Decodes a COCO segmentation.

    Args:
      segmentation: A list of polygons [x, y, x, y, ...] or [[x, y], ...], a single polygon, or an RLE, compressed or
        not.
      height: Height of the image in pixels.
      width: Width of the image in pixels.

    Returns:
      bool [height, width].

    Raises:
      UserError: The segmentation has another format, or does not fit the image.
    """
    if isinstance(segmentation, dict):
        return _fill_runs(segmentation, height, width)
    if segmentation is None or segmentation == []:
        raise UserError("no segmentation; draw the outline of the object, or remove the annotation")
    if not isinstance(segmentation, list):
        raise UserError(f"the segmentation {coco_fields.shown(segmentation)} {_NEITHER}")
    return _fill_polygons(_polygons(segmentation), height, width)


def _polygons(segmentation: list[Any]) -> list[np.ndarray]:
    """float64 [points, 2] of each polygon."""
    is_single = not isinstance(segmentation[0], list) or all(
        isinstance(point, list) and len(point) == 2 and not isinstance(point[0], list) for point in segmentation
    )
    polygons = []
    for given in [segmentation] if is_single else segmentation:
        try:
            polygon = np.asarray(given, np.float64)
        except (TypeError, ValueError, OverflowError):
            raise UserError(f"the segmentation {coco_fields.shown(given)} {_NEITHER}") from None
        if polygon.ndim > 2 or (polygon.ndim == 2 and polygon.shape[1] != 2) or not np.isfinite(polygon).all():
            raise UserError(f"the segmentation {coco_fields.shown(given)} {_NEITHER}")
        if polygon.size < 6 or polygon.size % 2:
            raise UserError(
                f"the polygon {coco_fields.shown(given)} has {polygon.size} numbers; a polygon needs at least three "
                "points, each with an x and a y"
            )
        polygons.append(polygon.reshape(-1, 2))
    return polygons


def _fill_polygons(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    from pycocotools import mask as coco_mask

    for polygon in polygons:
        steps = np.abs(polygon - np.roll(polygon, 1, axis=0)).max(axis=1)
        # pycocotools takes memory for each step of the outline.
        if np.abs(polygon).max() > 2**20 or steps.sum() > max(100 * (height + width), height * width):
            raise UserError(
                f"a polygon reaches from {polygon.min():.6g} to {polygon.max():.6g} and has an outline of "
                f"{steps.sum():.6g} pixels; expected pixel coordinates in an image of {height} x {width}"
            )
    rles = coco_mask.frPyObjects([polygon.ravel() for polygon in polygons], height, width)
    return coco_mask.decode(coco_mask.merge(rles)).astype(bool)


def _fill_runs(segmentation: dict[str, Any], height: int, width: int) -> np.ndarray:
    found, faults = coco_fields.split(segmentation, coco_fields.RLE)
    if faults:
        raise UserError(f"the RLE {next(iter(faults.values()))}")
    if found["size"] != [height, width]:
        raise UserError(f"the RLE has the size {found['size']}, the image [{height}, {width}] (height, width)")
    counts = found["counts"]
    try:
        runs = _runs_of_text(counts) if isinstance(counts, str) else [_RUN.convert(count) for count in counts]
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"the RLE has the counts {coco_fields.shown(counts)}; expected lengths of runs") from None
    runs = np.array(runs, np.int64)
    if ((runs < 0) | (runs > height * width)).any() or runs.sum() != height * width:
        raise UserError(f"the RLE counts {runs.sum()} pixels; expected {height * width}")
    # Runs of 0 and 1 in turn, column by column.
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _runs_of_text(text: str) -> np.ndarray:
    """The lengths of runs in a compressed RLE: numbers of 5 bits per character, differences from the fourth on.

    Raises:
      ValueError: The text is not a compressed RLE.
    """
    values = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    is_last = values & 32 == 0  # The last character of a number.
    if not len(values) or values.min() < 0 or values.max() > 63 or not is_last[-1]:
        raise ValueError
    starts = np.append(0, np.flatnonzero(is_last)[:-1] + 1)
    place = np.arange(len(values)) - np.repeat(starts, np.diff(np.append(starts, len(values))))
    if place.max() > 6:  # 35 bits, more than any image has pixels.
        raise ValueError
    numbers = np.add.reduceat((values & 31) << 5 * place, starts)
    is_negative = values[is_last] & 16 != 0
    numbers = numbers - np.where(is_negative, 1 << 5 * (place[is_last] + 1), 0)
    numbers[1::2], numbers[2::2] = np.cumsum(numbers[1::2]), np.cumsum(numbers[2::2])
    return numbers
