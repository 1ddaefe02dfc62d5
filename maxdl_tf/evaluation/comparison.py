"""One image compared with its truth: all that the figures of a data set are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.evaluation.errors import ErrorCounts, count_errors
from maxdl_tf.evaluation.mask_ap import ImageThings, ThingMask, thing_masks
from maxdl_tf.evaluation.matching import (
    PanopticCounts,
    PredictedSegments,
    TrueSegments,
    count_matches,
    match_segments,
    overlap_of,
)
from maxdl_tf.evaluation.segment_map import SegmentInfo, SegmentMap
from maxdl_tf.evaluation.sweep import JudgedSegments, judge


class Comparison(NamedTuple):
    """What is kept of an image.

    Attributes:
      image_id: Of the image.
      counts: [class ids].
      errors: [class ids].
      judged: Its predicted segments with their scores; None if one has no score.
      things: For mask AP; None if it is not asked for, or a predicted thing has no score.
    """

    image_id: Any
    counts: PanopticCounts
    errors: ErrorCounts
    judged: JudgedSegments | None
    things: ImageThings | None

    def quality(self) -> float | None:
        """The image's own PQ in 0..1: mean over the classes that it has segments of; None if it has none."""
        iou, tp, fp, fn = self.counts
        has_segments = tp + fp + fn > 0
        if not has_segments.any():
            return None
        return float((iou[has_segments] / (tp + fp / 2 + fn / 2)[has_segments]).mean())


def compare(
    image_id: Any, truth: SegmentMap, prediction: SegmentMap, dataset_info: DatasetInfo, *, with_masks: bool = False
) -> Comparison:
    """Compares by the official rule, see `panoptic_counts`.

    Args:
      image_id: Of the image.
      truth: Its true segments.
      prediction: Its predicted segments.
      dataset_info: The class table of both.
      with_masks: Whether to keep masks for mask AP.

    Raises:
      UserError: A map and the list of its segments contradict each other, or the sizes differ.
    """
    overlap = overlap_of(truth.ids, prediction.ids)
    truth.check(overlap.true_ids)
    prediction.check(overlap.ids)
    true_listed, listed = truth.listed_as(overlap.true_ids), prediction.listed_as(overlap.ids)
    last_crowds = {segment.class_id: segment.id for segment in truth.segments if segment.is_crowd}
    true_class, class_id = (
        _of(some, lambda segment: segment.class_id, dataset_info.ignore_label) for some in (true_listed, listed)
    )
    matching = match_segments(
        overlap.pixels,
        TrueSegments(
            true_class,
            is_void=_of(true_listed, lambda segment: False, True),
            is_crowd=_of(true_listed, lambda segment: segment.is_crowd, False),
            forgives=_of(true_listed, lambda segment: last_crowds.get(segment.class_id) == segment.id, False),
        ),
        PredictedSegments(class_id, is_void=_of(listed, lambda segment: False, True)),
    )
    num_ids = dataset_info.num_semantic_channels
    has_scores = all(segment.score is not None for segment in prediction.segments)
    judged = things = None
    if has_scores:
        judged = judge(matching, class_id, _of(listed, lambda segment: segment.score, 0.0))
        if with_masks:
            things = ImageThings(_things(truth, dataset_info), _things(prediction, dataset_info))
    return Comparison(
        image_id,
        count_matches(matching, true_class, class_id, num_ids),
        count_errors(matching, true_class, class_id, num_ids),
        judged,
        things,
    )


def _of(listed: list[SegmentInfo | None], value: Callable[[SegmentInfo], Any], void: Any) -> np.ndarray:
    return np.array([void if segment is None else value(segment) for segment in listed], type(void))


def _things(segment_map: SegmentMap, dataset_info: DatasetInfo) -> list[ThingMask]:
    things = [
        (segment.id, ThingMask(segment.class_id, {}, 0, segment.is_crowd, segment.score or 0.0))
        for segment in segment_map.segments
        if dataset_info.by_id[segment.class_id].is_thing
    ]
    return thing_masks(segment_map.ids, things)
