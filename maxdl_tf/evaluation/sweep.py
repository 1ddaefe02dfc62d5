"""Panoptic quality by the score that a segment needs to be kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.evaluation.matching import VOID, Matching, PanopticCounts
from maxdl_tf.evaluation.quality import quality_of

THRESHOLDS = tuple(step / 20 for step in range(20))


class ScoredSegments(NamedTuple):
    """Predicted segments that count in the metric, in arrays of equal length.

    Attributes:
      class_id: int32, class ids.
      score: float64, scores in 0..1.
      iou: float64, IoU with the matched true segment; 0 where the segment is wrong.
    """

    class_id: np.ndarray
    score: np.ndarray
    iou: np.ndarray


def scored_segments(matching: Matching) -> ScoredSegments | None:
    """The predicted segments of one image that match or are wrong; None if a predicted segment has no score."""
    if np.isnan(matching.score[matching.class_id != VOID]).any():
        return None
    counted = matching.wrong | matching.matched.any(axis=0)
    iou = (matching.iou * matching.matched).sum(axis=0)
    return ScoredSegments(matching.class_id[counted].astype(np.int32), matching.score[counted], iou[counted])


def threshold_sweep(
    counts: PanopticCounts,
    images: Sequence[ScoredSegments],
    dataset_info: DatasetInfo,
    thresholds: Sequence[float] = THRESHOLDS,
) -> dict[float, dict[str, float]]:
    """Panoptic quality if segments with a score below a threshold were void; other segments keep their pixels.

    Args:
      counts: Counts of the images with all segments, [images, class ids].
      images: Predicted segments of each image.
      dataset_info: Class table.
      thresholds: Thresholds in 0..1.

    Returns:
      {threshold: {"all": PQ, "things": PQ, "stuff": PQ}}, in 0..1.
    """
    class_id, score, iou = (np.concatenate(field) for field in zip(*images)) if images else (np.zeros(0, int),) * 3
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
        kept_counts = PanopticCounts(*(field[np.newaxis] for field in (summed, tp, fp, true_segments - tp)))
        quality = quality_of(kept_counts, dataset_info)
        found[threshold] = {group: getattr(quality, group).pq for group in ("all", "things", "stuff")}
    return found
