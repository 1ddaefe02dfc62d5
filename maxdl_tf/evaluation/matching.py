"""Counts that panoptic quality is made of: which segments of two maps match, by the rule of COCO's official evaluation.

The rule (Kirillov et al., CVPR 2019, section 4, and COCO's evaluation):

* A true and a predicted segment match where their categories are the same and their IoU is greater than 0.5. Pixels
  that are void in truth are left out of the union.
* A true segment without a match is missed, unless it is a crowd. Crowds match nothing.
* A predicted segment without a match is wrong, unless more than half of its pixels lie on void and on the crowd of
  its category. Where the truth lists several crowds of one category in an image, the official evaluation looks at the
  last one listed only, and so do we where crowds are told apart; a label map keeps them as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Ids below this are counted with tables of that length, others by sorting.
_LONGEST_TABLE = 1 << 17


class Overlap(NamedTuple):
    """What two maps of an image share.

    Attributes:
      true_ids: int64 [true segments], ascending; void among them.
      ids: int64 [predicted segments], the same of the prediction.
      pixels: int64 [true segments, predicted segments], how many have this id in truth and that one in prediction.
    """

    true_ids: np.ndarray
    ids: np.ndarray
    pixels: np.ndarray


def overlap_of(truth: np.ndarray, prediction: np.ndarray) -> Overlap:
    """Counts the pixels of each pair of ids.

    Args:
      truth: int [height, width].
      prediction: int, the same shape.

    Raises:
      ValueError: The shapes differ.
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.shape != prediction.shape:
        raise ValueError(f"truth is {truth.shape} and prediction {prediction.shape}; resize the prediction first")
    truth, prediction = truth.reshape(-1), prediction.reshape(-1)
    # Runs of pixels along rows in which neither map changes are 20 to 100 times fewer than pixels.
    changes = truth[1:] != truth[:-1]
    changes |= prediction[1:] != prediction[:-1]
    starts = np.flatnonzero(changes) + 1
    starts = np.concatenate([np.zeros(min(1, truth.size), starts.dtype), starts])
    lengths = np.diff(starts, append=truth.size)
    true_ids, true_index = _compact(truth[starts])
    ids, index = _compact(prediction[starts])
    shape = (len(true_ids), len(ids))
    pixels = np.bincount(true_index * shape[1] + index, weights=lengths, minlength=shape[0] * shape[1])
    return Overlap(true_ids, ids, pixels.astype(np.int64).reshape(shape))


def different_ids(ids: np.ndarray) -> np.ndarray:
    """The ids that occur in a map, int64, ascending."""
    ids = np.asarray(ids).reshape(-1)
    return _compact(ids[np.flatnonzero(np.concatenate([ids[:1] == ids[:1], ids[1:] != ids[:-1]]))])[0]


class TrueSegments(NamedTuple):
    """What the rows of an overlap are.

    Attributes:
      class_id: int [true segments]; any value where void.
      is_void: bool [true segments].
      is_crowd: bool [true segments].
      forgives: bool [true segments], the crowds on which predictions of their class may lie.
    """

    class_id: np.ndarray
    is_void: np.ndarray
    is_crowd: np.ndarray
    forgives: np.ndarray


class PredictedSegments(NamedTuple):
    """What the columns of an overlap are.

    Attributes:
      class_id: int [predicted segments]; any value where void.
      is_void: bool [predicted segments].
    """

    class_id: np.ndarray
    is_void: np.ndarray


class Matching(NamedTuple):
    """How the segments of an image are judged.

    Attributes:
      iou: float64 [true segments, predicted segments], whatever their classes; void's row and column mean nothing.
      matched: bool [true segments, predicted segments].
      missed: bool [true segments].
      wrong: bool [predicted segments].
    """

    iou: np.ndarray
    matched: np.ndarray
    missed: np.ndarray
    wrong: np.ndarray


def match_segments(pixels: np.ndarray, true: TrueSegments, predicted: PredictedSegments) -> Matching:
    """Applies the rule to `Overlap.pixels`."""
    true_area, area = pixels.sum(axis=1), pixels.sum(axis=0)
    on_void = pixels[true.is_void].sum(axis=0)
    union = true_area[:, np.newaxis] + area - pixels - on_void
    same_class = (true.class_id[:, np.newaxis] == predicted.class_id) & ~predicted.is_void
    can_match = same_class & ~(true.is_crowd | true.is_void)[:, np.newaxis]
    matched = can_match & (2 * pixels > union)
    missed = ~(true.is_void | true.is_crowd | matched.any(axis=1))
    on_crowd = (pixels * (same_class & true.forgives[:, np.newaxis])).sum(axis=0)
    wrong = ~(predicted.is_void | matched.any(axis=0)) & (2 * (on_void + on_crowd) <= area)
    return Matching(pixels / np.maximum(union, 1), matched, missed, wrong)


class PanopticCounts(NamedTuple):
    """Of one image, or of several along further axes in front.

    Attributes:
      iou: float64 [..., class ids], the IoUs of matched segments, summed.
      tp: int [..., class ids], matched segments.
      fp: int [..., class ids], wrong predicted segments.
      fn: int [..., class ids], missed true segments.
    """

    iou: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray

    def total(self) -> PanopticCounts:
        """Of all images together."""
        return PanopticCounts(*(field.reshape(-1, field.shape[-1]).sum(axis=0) for field in self))

    @property
    def num_images(self) -> int:
        return len(self.tp)


def stack_counts(counts: Sequence[PanopticCounts], num_ids: int) -> PanopticCounts:
    """Images along a new first axis."""
    if not counts:
        return PanopticCounts(np.zeros((0, num_ids)), *(np.zeros((0, num_ids), np.int32) for _ in range(3)))
    return PanopticCounts(*map(np.stack, zip(*counts)))


def count_matches(matching: Matching, true_class: np.ndarray, class_id: np.ndarray, num_ids: int) -> PanopticCounts:
    """The counts of one image.

    Args:
      matching: Of its segments.
      true_class: int [true segments].
      class_id: int [predicted segments].
      num_ids: One more than the largest class id.
    """
    rows, columns = np.nonzero(matching.matched)

    def count(classes: np.ndarray) -> np.ndarray:
        return np.bincount(classes, minlength=num_ids).astype(np.int32)

    return PanopticCounts(
        iou=np.bincount(class_id[columns], weights=matching.iou[rows, columns], minlength=num_ids),
        tp=count(class_id[columns]),
        fp=count(class_id[matching.wrong]),
        fn=count(true_class[matching.missed]),
    )


def _compact(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different ids, ascending, and the place of each among them, both int64."""
    ids = ids.astype(np.int64)
    if not ids.size or ids.min() < 0 or ids.max() >= _LONGEST_TABLE:
        different, place = np.unique(ids, return_inverse=True)
        return different, place.reshape(-1)
    is_present = np.zeros(ids.max() + 1, bool)
    is_present[ids] = True
    return np.flatnonzero(is_present), (np.cumsum(is_present) - 1)[ids]
