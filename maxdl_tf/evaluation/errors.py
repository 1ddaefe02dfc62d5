"""Kinds of errors and the panoptic quality that each of them costs.

Each wrong or missed segment is an error of the first kind below that applies. Pairs of a wrong predicted segment and a
missed true one come first:

wrong class  The classes differ and the IoU is above 0.5.
bad mask     The classes are the same and the IoU is from 0.1 to 0.5. Pairs with a larger IoU come first; a segment is
             in one pair only.
missed       Any other missed true segment.
false        Any other wrong predicted segment.
rough mask   A matched segment with an IoU below 1.

As in the metric, IoUs leave void out. The cost of a kind is the gain in panoptic quality if only its errors were fixed:

wrong class  The prediction gets the class of the true segment, which gives a match with the IoU of the pair.
bad mask     The pair becomes a match with an IoU of 1.
missed       The true segment gets a match with an IoU of 1.
false        The prediction disappears.
rough mask   The match gets an IoU of 1.

If a class has only false segments, it leaves the mean with them, as in the metric. Costs of kinds do not add up: fixing
two kinds can gain more or less than the sum of both.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.evaluation.matching import Matching, PanopticCounts
from maxdl_tf.evaluation.quality import PanopticQualityResult, quality_of

KINDS = ("missed", "false", "wrong class", "bad mask", "rough mask")
_MIN_IOU = 0.1  # Two segments with a smaller IoU are unrelated.


class ErrorCounts(NamedTuple):
    """Errors of one image, or of several images along leading axes.

    Attributes:
      missed: int [..., class ids], by the class of the true segment.
      false: int [..., class ids], by the class of the prediction.
      wrong_class_true: int [..., class ids], pairs by the class of the true segment.
      wrong_class_predicted: int [..., class ids], the same pairs by the class of the prediction.
      wrong_class_iou: float64 [..., class ids], sum of the IoUs of these pairs, by the class of the true segment.
      bad_mask: int [..., class ids], pairs.
      rough_mask: int [..., class ids], matched segments.
    """

    missed: np.ndarray
    false: np.ndarray
    wrong_class_true: np.ndarray
    wrong_class_predicted: np.ndarray
    wrong_class_iou: np.ndarray
    bad_mask: np.ndarray
    rough_mask: np.ndarray


class ErrorCost(NamedTuple):
    """Cost of a kind of error.

    Attributes:
      count: Number of errors.
      all: Gain in panoptic quality from fixing them, mean over all classes, in 0..1.
      things: Gain of thing classes.
      stuff: Gain of stuff classes.
      of_class: Gain of each class by its id, without classes that have no segments.
    """

    count: int
    all: float
    things: float
    stuff: float
    of_class: dict[int, float]


def count_errors(matching: Matching, num_ids: int) -> ErrorCounts:
    """The errors of one image.

    Args:
      matching: Matching of its segments.
      num_ids: Largest class id plus one.
    """
    true_class, class_id = matching.true_class, matching.class_id
    true_matched, matched = np.nonzero(matching.matched)
    rough_mask = class_id[matched[matching.iou[true_matched, matched] < 1]]
    missed, wrong = matching.missed.copy(), matching.wrong.copy()
    same_class = true_class[:, np.newaxis] == class_id
    rows, columns = np.nonzero(missed[:, np.newaxis] & wrong & ~same_class & (matching.iou > 0.5))
    missed[rows] = wrong[columns] = False
    iou = matching.iou[rows, columns]

    bad_mask = []  # True classes.
    pair_iou = np.where(missed[:, np.newaxis] & wrong & same_class & (matching.iou >= _MIN_IOU), matching.iou, 0.0)
    while pair_iou.size and pair_iou.max() > 0:
        row, column = np.unravel_index(pair_iou.argmax(), pair_iou.shape)
        pair_iou[row] = pair_iou[:, column] = 0.0
        missed[row] = wrong[column] = False
        bad_mask.append(true_class[row])

    def count(classes) -> np.ndarray:
        return np.bincount(np.asarray(classes, np.int64), minlength=num_ids).astype(np.int32)

    return ErrorCounts(
        missed=count(true_class[missed]),
        false=count(class_id[wrong]),
        wrong_class_true=count(true_class[rows]),
        wrong_class_predicted=count(class_id[columns]),
        wrong_class_iou=np.bincount(true_class[rows], weights=iou, minlength=num_ids),
        bad_mask=count(bad_mask),
        rough_mask=count(rough_mask),
    )


def error_costs(counts: PanopticCounts, errors: ErrorCounts, dataset_info: DatasetInfo) -> dict[str, ErrorCost]:
    """The cost of each of `KINDS`.

    Args:
      counts: Counts of the images, [images, class ids].
      errors: Errors of the images, [images, class ids].
      dataset_info: Class table.
    """
    total, errors = counts.total(), ErrorCounts(*(field.sum(axis=0) for field in errors))
    now = _quality(total, dataset_info)
    numbers = (errors.missed, errors.false, errors.wrong_class_true, errors.bad_mask, errors.rough_mask)
    return {
        kind: _cost(int(number.sum()), now, _quality(_fixed(total, errors, kind), dataset_info))
        for kind, number in zip(KINDS, numbers)
    }


def _fixed(total: PanopticCounts, errors: ErrorCounts, kind: str) -> PanopticCounts:
    """The counts without the errors of one kind, [class ids]."""
    iou, tp, fp, fn = total
    if kind == "missed":
        return PanopticCounts(iou + errors.missed, tp + errors.missed, fp, fn - errors.missed)
    if kind == "false":
        return PanopticCounts(iou, tp, fp - errors.false, fn)
    if kind == "wrong class":
        found = errors.wrong_class_true
        return PanopticCounts(iou + errors.wrong_class_iou, tp + found, fp - errors.wrong_class_predicted, fn - found)
    if kind == "bad mask":
        found = errors.bad_mask
        return PanopticCounts(iou + found, tp + found, fp - found, fn - found)
    return PanopticCounts(tp.astype(np.float64), tp, fp, fn)


def _quality(total: PanopticCounts, dataset_info: DatasetInfo) -> PanopticQualityResult:
    return quality_of(PanopticCounts(*(field[np.newaxis] for field in total)), dataset_info)


def _cost(count: int, now: PanopticQualityResult, then: PanopticQualityResult) -> ErrorCost:
    pairs = zip(now.classes, then.classes)
    return ErrorCost(
        count,
        *(getattr(then, group).pq - getattr(now, group).pq for group in ("all", "things", "stuff")),
        {c.id: after.pq - c.pq for c, after in pairs if c.has_segments and after.has_segments},
    )
