"""Panoptic quality against the score that segments must have to be kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.evaluation.matching import Matching, PanopticCounts
from maxdl_tf.evaluation.quality import quality_of

THRESHOLDS = tuple(step / 20 for step in range(20))


class JudgedSegments(NamedTuple):
    """Predicted segments that the metric counts; arrays of one length.

    Attributes:
      class_id: int32.
      score: float64.
      iou: float64, with the true segment that is matched; 0 where none is and the segment is wrong.
    """

    class_id: np.ndarray
    score: np.ndarray
    iou: np.ndarray


def judge(matching: Matching, class_id: np.ndarray, score: np.ndarray) -> JudgedSegments:
    """The predicted segments of one image.

    Args:
      matching: Of its segments.
      class_id: int [predicted segments].
      score: float [predicted segments].
    """
    counted = matching.wrong | matching.matched.any(axis=0)
    iou = (matching.iou * matching.matched).sum(axis=0)
    return JudgedSegments(class_id[counted].astype(np.int32), score[counted].astype(np.float64), iou[counted])


def sweep(
    counts: PanopticCounts,
    judged: Sequence[JudgedSegments],
    dataset_info: DatasetInfo,
    thresholds: Sequence[float] = THRESHOLDS,
) -> dict[float, dict[str, float]]:
    """The quality if segments with a score below a threshold were void, which changes no other segment.

    Args:
      counts: [images, class ids], with all segments.
      judged: Of each image.
      dataset_info: The class table.
      thresholds: In 0..1.

    Returns:
      {threshold: {"all": PQ, "things": PQ, "stuff": PQ}}, in 0..1.
    """
    class_id, score, iou = (np.concatenate(field) for field in zip(*judged)) if judged else (np.zeros(0, int),) * 3
    total = counts.total()
    num_ids = len(total.tp)
    true_segments = total.tp + total.fn
    found = {}
    for threshold in thresholds:
        kept = score >= threshold
        matched = kept & (iou > 0)
        tp = np.bincount(class_id[matched], minlength=num_ids)
        fp = np.bincount(class_id[kept & (iou == 0)], minlength=num_ids)
        summed = np.bincount(class_id[matched], weights=iou[matched], minlength=num_ids)
        rows = PanopticCounts(*(field[np.newaxis] for field in (summed, tp, fp, true_segments - tp)))
        quality = quality_of(rows, dataset_info)
        found[threshold] = {group: getattr(quality, group).pq for group in ("all", "things", "stuff")}
    return found
