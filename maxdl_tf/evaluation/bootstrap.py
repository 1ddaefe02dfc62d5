"""How far panoptic quality could be from what was measured, had other images been drawn."""

from __future__ import annotations

import numpy as np

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.evaluation.matching import PanopticCounts

_SAMPLES_AT_ONCE = 256  # Of which the counts are in memory together.


def quality_intervals(
    counts: PanopticCounts,
    dataset_info: DatasetInfo,
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, tuple[float, float]]]:
    """Bootstrap percentile intervals (Efron, Annals of Statistics 1979): images are drawn anew, with replacement.

    As many as there are, `samples` times; each time the metric is computed of them as of a data set, with the mean
    over the classes that occur in them. Classes that are rare among the images make the intervals wide, and those that
    are missing in a sample move its mean: the interval need not be centered on the figure.

    Args:
      counts: [images, class ids].
      dataset_info: The class table.
      samples: How many data sets are drawn.
      level: The share of samples inside the interval.
      seed: Of the drawing; the same one gives the same intervals.

    Returns:
      {"all", "things" or "stuff": {"pq", "sq" or "rq": (low, high)}}, in 0..1; (0, 0) where a group has no segments.
    """
    groups = {"all": dataset_info.class_order, "things": dataset_info.thing_ids, "stuff": dataset_info.stuff_ids}
    drawn: dict[str, list[np.ndarray]] = {group: [] for group in groups}
    rng = np.random.default_rng(seed)
    images = counts.num_images
    for start in range(0, samples if images else 0, _SAMPLES_AT_ONCE):
        size = min(_SAMPLES_AT_ONCE, samples - start)
        weights = rng.multinomial(images, np.full(images, 1 / images), size=size).astype(np.float64)
        iou, tp, fp, fn = (weights @ field for field in counts)  # [samples, class ids]
        has_segments = tp + fp + fn > 0
        figures = [
            _divide(iou, tp + fp / 2 + fn / 2),
            _divide(iou, tp),
            _divide(tp, tp + fp / 2 + fn / 2),
        ]
        for group, class_ids in groups.items():
            ids = list(class_ids)
            present = has_segments[:, ids].sum(axis=1)
            drawn[group].append(np.stack([_divide(f[:, ids].sum(axis=1), present) for f in figures]))
    tails = [50 * (1 - level), 50 * (1 + level)]
    intervals = {}
    for group, parts in drawn.items():
        ends = np.percentile(np.concatenate(parts, axis=1), tails, axis=1) if parts else np.zeros((2, 3))
        intervals[group] = {name: tuple(ends[:, row].tolist()) for row, name in enumerate(("pq", "sq", "rq"))}
    return intervals


def intervals_line(intervals: dict[str, dict[str, tuple[float, float]]]) -> str:
    """PQ's intervals of `quality_intervals` at a level of 0.95, for people, in percent."""
    ends = {group: figures["pq"] for group, figures in intervals.items()}
    spans = ", ".join(f"{group} {100 * low:.1f} to {100 * high:.1f}" for group, (low, high) in ends.items())
    return f"95 % intervals of PQ (bootstrap over images): {spans}"


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
