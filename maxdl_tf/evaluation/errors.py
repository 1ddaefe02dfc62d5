"""Which kind of error costs how much panoptic quality.

Each unmatched segment that the rule counts is an error of one kind, looked for in this order:

wrong class  a wrong predicted segment and a missed true one of another class, with an IoU above 0.5
bad mask     a wrong predicted segment and a missed true one of the same class, with an IoU from 0.1 to 0.5; pairs of
             the largest IoU first, each segment in one pair only
missed       any other missed true segment
false        any other wrong predicted segment
rough mask   not an unmatched segment: a matched one whose IoU is below 1

IoUs leave void out, as those of the metric do. What a kind costs is the panoptic quality that there would be if its
errors alone were mended, minus the one that there is:

wrong class  the prediction takes the class of the true segment: a match with the IoU that the pair has
bad mask     the pair becomes a match of IoU 1
missed       the true segment gets a match of IoU 1
false        the prediction disappears
rough mask   the match gets IoU 1

A class that only has false segments disappears from the mean with them, as it does in the metric. Costs of kinds do
not add up to what is missing to 100: mending two kinds gains more than the sum of both, or less.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.evaluation.matching import Matching, PanopticCounts
from maxdl_tf.evaluation.quality import PanopticQualityResult, quality_of

KINDS = ("missed", "false", "wrong class", "bad mask", "rough mask")
_MIN_IOU = 0.1  # Below it two segments have nothing to do with each other.


class ErrorCounts(NamedTuple):
    """Errors of an image or of several along further axes in front; fields are [..., class ids].

    Attributes:
      missed: int, by the class of the true segment.
      false: int, by the class of the prediction.
      wrong_class_true: int, pairs by the class of the true segment.
      wrong_class_predicted: int, the same pairs by the class of the prediction.
      wrong_class_iou: float64, the IoUs of these pairs, summed, by the class of the true segment.
      bad_mask: int, pairs.
      rough_mask: int, matched segments.
    """

    missed: np.ndarray
    false: np.ndarray
    wrong_class_true: np.ndarray
    wrong_class_predicted: np.ndarray
    wrong_class_iou: np.ndarray
    bad_mask: np.ndarray
    rough_mask: np.ndarray


class ErrorCost(NamedTuple):
    """What a kind of error costs.

    Attributes:
      count: How many errors there are.
      all: Panoptic quality that mending it gains, mean over all classes, in 0..1.
      things: The same of thing classes.
      stuff: The same of stuff classes.
      of_class: The same of each class, by its id; classes without segments are left out.
    """

    count: int
    all: float
    things: float
    stuff: float
    of_class: dict[int, float]


def count_errors(matching: Matching, true_class: np.ndarray, class_id: np.ndarray, num_ids: int) -> ErrorCounts:
    """The errors of one image; arguments as those of `count_matches`."""
    true_matched, matched = np.nonzero(matching.matched)
    rough_mask = class_id[matched[matching.iou[true_matched, matched] < 1]]
    missed, wrong = matching.missed.copy(), matching.wrong.copy()
    is_pair = missed[:, np.newaxis] & wrong
    same_class = true_class[:, np.newaxis] == class_id
    rows, columns = np.nonzero(is_pair & ~same_class & (matching.iou > 0.5))
    missed[rows] = wrong[columns] = False
    iou = matching.iou[rows, columns]

    bad_mask = []
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
    """What each of `KINDS` costs.

    Args:
      counts: [images, class ids].
      errors: The same.
      dataset_info: The class table.
    """
    total, errors = counts.total(), ErrorCounts(*(field.sum(axis=0) for field in errors))
    now = _quality(total, dataset_info)
    numbers = (errors.missed, errors.false, errors.wrong_class_true, errors.bad_mask, errors.rough_mask)
    return {
        kind: _cost(int(number.sum()), now, _quality(mended(total, errors, kind), dataset_info))
        for kind, number in zip(KINDS, numbers)
    }


def mended(total: PanopticCounts, errors: ErrorCounts, kind: str) -> PanopticCounts:
    """The counts that there would be without one kind of error; [class ids] each."""
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
