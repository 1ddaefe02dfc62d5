"""All figures of a data set, made of the comparisons of its images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.evaluation.bootstrap import intervals_line, quality_intervals
from maxdl_tf.evaluation.comparison import Comparison
from maxdl_tf.evaluation.errors import ErrorCost, ErrorCounts, error_costs
from maxdl_tf.evaluation.mask_ap import MaskApResult, mask_ap
from maxdl_tf.evaluation.matching import stack_counts
from maxdl_tf.evaluation.quality import PanopticQualityResult, quality_of
from maxdl_tf.evaluation.sweep import sweep
from maxdl_tf.files import storage


@dataclass(frozen=True)
class DatasetEvaluation:
    """What was found.

    Attributes:
      quality: Panoptic quality.
      intervals: Of its groups' figures, see `quality_intervals`.
      errors: What each kind of error costs, see `error_analysis`.
      sweep: PQ by score threshold, see `threshold_sweep`; None where segments have no scores.
      mask_ap: None if not asked for.
      comparisons: Of the images.
    """

    quality: PanopticQualityResult
    intervals: dict[str, dict[str, tuple[float, float]]]
    errors: dict[str, ErrorCost]
    sweep: dict[float, dict[str, float]] | None
    mask_ap: MaskApResult | None
    comparisons: Sequence[Comparison]

    def as_dict(self) -> dict:
        """For JSON."""
        return {
            **self.quality.as_dict(),
            "intervals": self.intervals,
            "errors": {kind: cost._asdict() for kind, cost in self.errors.items()},
            "threshold_sweep": self.sweep and [{"score": score, **row} for score, row in self.sweep.items()],
            "mask_ap": self.mask_ap and self.mask_ap.as_dict(),
        }

    def as_table(self) -> str:
        """For people."""
        lines = [self.quality.as_table(), intervals_line(self.intervals)]
        if self.mask_ap:
            lines.append(self.mask_ap.as_line())
        return "\n".join(lines)

    def write_json(self, path: str) -> None:
        """Writes `as_dict` into a file, whole or not at all.

        Raises:
          OSError: It cannot be written.
        """
        storage.write_whole(path, (json.dumps(self.as_dict(), indent=2) + "\n").encode())

    def best(self, count: int) -> list[Comparison]:
        """The images of the largest PQ, the best one first; images without segments are left out."""
        return sorted(self._measured(), key=lambda found: -found.quality())[:count]

    def worst(self, count: int) -> list[Comparison]:
        """The images of the smallest PQ, the worst one first; none that is among the best as well."""
        measured = sorted(self._measured(), key=lambda found: found.quality())
        return measured[: min(count, len(measured) - min(count, len(measured)))] if count else []

    def _measured(self) -> list[Comparison]:
        return [found for found in self.comparisons if found.quality() is not None]


def evaluate(comparisons: Sequence[Comparison], dataset_info: DatasetInfo, *, with_mask_ap: bool) -> DatasetEvaluation:
    """The figures of images.

    Args:
      comparisons: One for each image, with masks if they are asked for.
      dataset_info: The class table.
      with_mask_ap: Whether to compute mask AP, for which all predicted segments need scores.
    """
    counts = stack_counts([found.counts for found in comparisons], dataset_info.num_semantic_channels)
    errors = ErrorCounts(*map(np.stack, zip(*(found.errors for found in comparisons))))
    judged = [found.judged for found in comparisons]
    return DatasetEvaluation(
        quality=quality_of(counts, dataset_info),
        intervals=quality_intervals(counts, dataset_info),
        errors=error_costs(counts, errors, dataset_info),
        sweep=None if any(found is None for found in judged) else sweep(counts, judged, dataset_info),
        mask_ap=mask_ap([found.things for found in comparisons], dataset_info) if with_mask_ap else None,
        comparisons=comparisons,
    )
