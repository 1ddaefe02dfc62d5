"""Matching of true and predicted segments by the rule of COCO's official panoptic evaluation.

The rule (Kirillov et al., CVPR 2019, section 4, and COCO's evaluation):

* A true and a predicted segment match if they have the same class and an IoU greater than 0.5. Pixels that are void in
  the truth do not count as part of the union.
* A true segment without a match is missed, unless it is a crowd. A crowd matches nothing.
* A predicted segment without a match is wrong, unless more than half of its pixels lie on void and on the crowd of its
  class. If the truth lists several crowds of one class in an image, only the last one counts, as in the official
  evaluation. A label map has at most one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from maxdl_tf.evaluation.segment_map import SegmentInfo, compact_ids

VOID = -1  # Class id of void among the segments of a matching.


class Overlap(NamedTuple):
    """Pixels that two maps of an image share.

    Attributes:
      true_ids: int64 [true segments], ids in the truth, ascending.
      ids: int64 [predicted segments], ids in the prediction, ascending.
      pixels: int64 [true segments, predicted segments], number of pixels with both ids.
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
    # A picture has 20 to 100 times fewer runs of pixels, in which neither map changes, than pixels.
    changes = truth[1:] != truth[:-1]
    changes |= prediction[1:] != prediction[:-1]
    starts = np.flatnonzero(changes) + 1
    starts = np.concatenate([np.zeros(min(1, truth.size), starts.dtype), starts])
    lengths = np.diff(starts, append=truth.size)
    true_ids, true_index = compact_ids(truth[starts])
    ids, index = compact_ids(prediction[starts])
    shape = (len(true_ids), len(ids))
    pixels = np.bincount(true_index * shape[1] + index, weights=lengths, minlength=shape[0] * shape[1])
    return Overlap(true_ids, ids, pixels.astype(np.int64).reshape(shape))


class Matching(NamedTuple):
    """Segments of an image and how they match. Void is among them, with class id `VOID`.

    Attributes:
      true_class: int64 [true segments], class ids.
      class_id: int64 [predicted segments], class ids.
      score: float64 [predicted segments]; NaN where a segment has no score.
      iou: float64 [true segments, predicted segments], whatever their classes; undefined for void.
      matched: bool [true segments, predicted segments].
      missed: bool [true segments].
      wrong: bool [predicted segments].
    """

    true_class: np.ndarray
    class_id: np.ndarray
    score: np.ndarray
    iou: np.ndarray
    matched: np.ndarray
    missed: np.ndarray
    wrong: np.ndarray


def match(overlap: Overlap, true_segments: Sequence[SegmentInfo], segments: Sequence[SegmentInfo]) -> Matching:
    """Matches segments by the rule.

    Args:
      overlap: Overlap of truth and prediction. Ids that are not listed are void.
      true_segments: True segments, in the order of their source.
      segments: Predicted segments.
    """
    true_ids, ids, pixels = overlap
    true_by_id = {segment.id: segment for segment in true_segments}
    by_id = {segment.id: segment for segment in segments}
    listed_true, listed = [true_by_id.get(i) for i in true_ids.tolist()], [by_id.get(i) for i in ids.tolist()]
    true_class, class_id = (
        np.array([VOID if segment is None else segment.class_id for segment in found], int)
        for found in (listed_true, listed)
    )
    score = np.array([np.nan if s is None or s.score is None else s.score for s in listed], np.float64)
    is_crowd = np.array([segment is not None and segment.is_crowd for segment in listed_true], bool)
    last_crowds = {segment.class_id: segment.id for segment in true_segments if segment.is_crowd}
    forgives = np.isin(true_ids, list(last_crowds.values()))

    true_area, area = pixels.sum(axis=1), pixels.sum(axis=0)
    on_void = pixels[true_class == VOID].sum(axis=0)
    union = true_area[:, np.newaxis] + area - pixels - on_void
    same_class = (true_class[:, np.newaxis] == class_id) & (class_id != VOID)
    matched = same_class & ~is_crowd[:, np.newaxis] & (2 * pixels > union)
    missed = ~((true_class == VOID) | is_crowd | matched.any(axis=1))
    on_crowd = (pixels * (same_class & forgives[:, np.newaxis])).sum(axis=0)
    wrong = ~((class_id == VOID) | matched.any(axis=0)) & (2 * (on_void + on_crowd) <= area)
    return Matching(true_class, class_id, score, pixels / np.maximum(union, 1), matched, missed, wrong)


class ClassPixels(NamedTuple):
    """Pixels of each class in one image, or in several images along leading axes, without those that are void in truth.

    Attributes:
      both: int64 [..., class ids], number of pixels whose class is right.
      either: int64 [..., class ids], number of pixels that have the class in the truth or in the prediction.
    """

    both: np.ndarray
    either: np.ndarray


def count_pixels(overlap: Overlap, matching: Matching, num_ids: int) -> ClassPixels:
    """Counts the pixels of the classes of one image. Crowds count as their class.

    Args:
      overlap: Overlap of truth and prediction.
      matching: Matching of the same segments.
      num_ids: Largest class id plus one.
    """
    # Rows of `is_true` and columns of `is_class` are one-hot; those of void are 0.
    is_true = matching.true_class[np.newaxis] == np.arange(num_ids)[:, np.newaxis]
    is_class = matching.class_id[:, np.newaxis] == np.arange(num_ids)
    pixels = is_true.astype(np.int64) @ overlap.pixels  # [class ids, predicted segments]
    both = np.einsum("cs,sc->c", pixels, is_class)
    predicted = pixels.sum(axis=0) @ is_class
    return ClassPixels(both, pixels.sum(axis=1) + predicted - both)


class PanopticCounts(NamedTuple):
    """Counts of one image, or of several images along leading axes.

    Attributes:
      iou: float64 [..., class ids], sum of the IoUs of matched segments.
      tp: int [..., class ids], number of matched segments.
      fp: int [..., class ids], number of wrong predicted segments.
      fn: int [..., class ids], number of missed true segments.
    """

    iou: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray

    def total(self) -> PanopticCounts:
        """Counts of all images together, [class ids]."""
        return PanopticCounts(*(field.reshape(-1, field.shape[-1]).sum(axis=0) for field in self))

    @property
    def num_images(self) -> int:
        return len(self.tp)


def stack_counts(counts: Sequence[PanopticCounts], num_ids: int) -> PanopticCounts:
    """Stacks the counts of images along a new first axis."""
    if not counts:
        return PanopticCounts(np.zeros((0, num_ids)), *(np.zeros((0, num_ids), np.int32) for _ in range(3)))
    return PanopticCounts(*map(np.stack, zip(*counts)))


def count_matches(matching: Matching, num_ids: int) -> PanopticCounts:
    """Counts of one image.

    Args:
      matching: Matching of its segments.
      num_ids: Largest class id plus one.
    """
    rows, columns = np.nonzero(matching.matched)
    matched_class = matching.class_id[columns]

    def count(classes: np.ndarray) -> np.ndarray:
        return np.bincount(classes, minlength=num_ids).astype(np.int32)

    return PanopticCounts(
        iou=np.bincount(matched_class, weights=matching.iou[rows, columns], minlength=num_ids),
        tp=count(matched_class),
        fp=count(matching.class_id[matching.wrong]),
        fn=count(matching.true_class[matching.missed]),
    )
