"""Comparison of images with their truth, and the metrics of a data set that follow from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.evaluation.errors import ErrorCost, ErrorCounts, count_errors, error_costs
from maxdl_tf.evaluation.mask_ap import ImageThings, MaskApResult, mask_ap, thing_masks
from maxdl_tf.evaluation.matching import (
    ClassPixels,
    PanopticCounts,
    count_matches,
    count_pixels,
    match,
    overlap_of,
    stack_counts,
)
from maxdl_tf.evaluation.network_summary import NetworkSummary
from maxdl_tf.evaluation.quality import (
    Intervals,
    PanopticQualityResult,
    intervals_line,
    quality_intervals,
    quality_of,
)
from maxdl_tf.evaluation.segment_map import SegmentMap, from_label_map
from maxdl_tf.evaluation.submission import SubmissionWriter
from maxdl_tf.evaluation.sweep import ScoredSegments, scored_segments, threshold_sweep

if TYPE_CHECKING:
    from maxdl_tf.evaluation.model_images import EvaluatedImage


class Comparison(NamedTuple):
    """What is kept of the comparison of one image.

    Attributes:
      image_id: Id of the image.
      counts: Counts of panoptic quality, [class ids].
      pixels: Pixels of the classes, for mIoU.
      errors: Errors by kind, [class ids].
      scored: Predicted segments with their scores; None if one has no score.
      things: Masks for mask AP; None if they are not kept or a predicted segment has no score.
    """

    image_id: Any
    counts: PanopticCounts
    pixels: ClassPixels
    errors: ErrorCounts
    scored: ScoredSegments | None
    things: ImageThings | None

    def quality(self) -> float | None:
        """PQ of the image alone in 0..1, mean over the classes with segments; None if it has no segments."""
        iou, tp, fp, fn = self.counts
        has_segments = tp + fp + fn > 0
        if not has_segments.any():
            return None
        return float((iou[has_segments] / (tp + fp / 2 + fn / 2)[has_segments]).mean())


def compare(
    image_id: Any, truth: SegmentMap, prediction: SegmentMap, dataset_info: DatasetInfo, *, with_masks: bool = False
) -> Comparison:
    """Compares one image by the official rule, see `matching`.

    Args:
      image_id: Id of the image.
      truth: True segments.
      prediction: Predicted segments.
      dataset_info: Class table of both.
      with_masks: Whether to keep masks for mask AP.

    Raises:
      ValueError: The maps have different sizes.
    """
    overlap = overlap_of(truth.ids, prediction.ids)
    matching = match(overlap, truth.segments, prediction.segments)
    num_ids = dataset_info.num_semantic_channels
    scored = scored_segments(matching)
    things = None
    if with_masks and scored is not None:
        things = ImageThings(thing_masks(truth, dataset_info), thing_masks(prediction, dataset_info))
    return Comparison(
        image_id,
        count_matches(matching, num_ids),
        count_pixels(overlap, matching, num_ids),
        count_errors(matching, num_ids),
        scored,
        things,
    )


@dataclass(frozen=True)
class DatasetEvaluation:
    """Metrics of a data set.

    Attributes:
      quality: Panoptic quality.
      intervals: 95 % intervals of the quality of groups, see `quality_intervals`.
      errors: Cost of each kind of error, see `error_costs`.
      sweep: PQ by score threshold, see `threshold_sweep`; None if segments have no scores.
      mask_ap: Average precision of things; None if it is not measured.
      comparisons: Comparison of each image.
      pictures: Pictures of the best and the worst images, uint8 [height, width, 3], by image id.
    """

    quality: PanopticQualityResult
    intervals: Intervals
    errors: dict[str, ErrorCost]
    sweep: dict[float, dict[str, float]] | None
    mask_ap: MaskApResult | None
    comparisons: Sequence[Comparison]
    pictures: Mapping[Any, np.ndarray] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The metrics in a form that JSON can hold."""
        return {
            **self.quality.as_dict(),
            "intervals": self.intervals,
            "errors": {kind: cost._asdict() for kind, cost in self.errors.items()},
            "threshold_sweep": self.sweep and [{"score": score, **row} for score, row in self.sweep.items()],
            "mask_ap": self.mask_ap and self.mask_ap.as_dict(),
        }

    def as_table(self) -> str:
        """A human-readable table, in percent."""
        lines = [self.quality.as_table(), intervals_line(self.intervals)]
        if self.mask_ap:
            lines.append(self.mask_ap.as_line())
        return "\n".join(lines)

    def curves(self) -> dict[str, float]:
        """Panoptic quality by TensorBoard's tags."""
        return self.quality.curves()

    def best(self, count: int) -> list[Comparison]:
        """The images with the largest PQ, best first: at most half of the images that have segments, rounded up."""
        ranked = sorted(self._measured(), key=lambda image: -image.quality())
        return ranked[: min(count, (len(ranked) + 1) // 2)]

    def worst(self, count: int) -> list[Comparison]:
        """The images with the smallest PQ, worst first: at most half of those that have segments, none of the best."""
        shown = {id(image) for image in self.best(count)}
        ranked = sorted(self._measured(), key=lambda image: image.quality())
        others = [image for image in ranked if id(image) not in shown]
        return others[: min(count, len(ranked) // 2)]

    def _measured(self) -> list[Comparison]:
        return [image for image in self.comparisons if image.quality() is not None]


def evaluate(
    comparisons: Sequence[Comparison], dataset_info: DatasetInfo, *, with_mask_ap: bool = False
) -> DatasetEvaluation:
    """Metrics of images that are compared.

    Args:
      comparisons: Comparison of each image, with masks if mask AP is measured.
      dataset_info: Class table.
      with_mask_ap: Whether to measure mask AP.
    """
    counts = stack_counts([image.counts for image in comparisons], dataset_info.num_semantic_channels)
    errors = ErrorCounts(*map(np.stack, zip(*(image.errors for image in comparisons))))
    scored = [image.scored for image in comparisons]
    return DatasetEvaluation(
        quality=quality_of(counts, dataset_info, [image.pixels for image in comparisons]),
        intervals=quality_intervals(counts, dataset_info),
        errors=error_costs(counts, errors, dataset_info),
        sweep=None if any(image is None for image in scored) else threshold_sweep(counts, scored, dataset_info),
        mask_ap=mask_ap([image.things for image in comparisons], dataset_info) if with_mask_ap else None,
        comparisons=comparisons,
    )


def evaluate_images(
    images: Iterable[EvaluatedImage],
    dataset_info: DatasetInfo,
    *,
    with_mask_ap: bool = False,
    num_pictures: int = 0,
    submission: SubmissionWriter | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> DatasetEvaluation:
    """Compares the images of a model one by one and measures them together.

    Args:
      images: Images with their scores.
      dataset_info: Class table.
      with_mask_ap: Whether to measure mask AP.
      num_pictures: Number of pictures to keep of the best images, and of the worst.
      submission: Receives the predictions.
      thresholds: Thresholds of the post-processing, which the line about lost masks states.
    """
    comparisons = []
    category_of_class = {row.id: row.source_id for row in dataset_info.classes}
    # The worst images that are not among the best are among the worst of twice their number.
    best, worst = _Pictures(num_pictures), _Pictures(2 * num_pictures)
    network = NetworkSummary(thresholds or {})
    for image in images:
        truth = from_label_map(image.truth, dataset_info, f"truth of {image.image_id}", has_crowds=True)
        source = f"prediction of {image.image_id}"
        prediction = from_label_map(image.prediction, dataset_info, source, scores=image.scores)
        comparison = compare(image.image_id, truth, prediction, dataset_info, with_masks=with_mask_ap)
        comparisons.append(comparison)
        network.add(image)
        if submission:
            submission.add(image.image_id, prediction, category_of_class)
        quality = comparison.quality()
        if quality is not None:
            best.add(quality, image.image_id, image.picture)
            worst.add(-quality, image.image_id, image.picture)
    evaluation = evaluate(comparisons, dataset_info, with_mask_ap=with_mask_ap)
    shown = {image.image_id for image in evaluation.best(num_pictures) + evaluation.worst(num_pictures)}
    pictures = {**best.pictures(), **worst.pictures()}
    return dataclasses.replace(
        evaluation,
        quality=network.added_to(evaluation.quality),
        pictures={image_id: picture for image_id, picture in pictures.items() if image_id in shown},
    )


class _Pictures:
    """Keeps the pictures of the images with the largest values so far."""

    def __init__(self, count: int):
        self._count = count
        self._kept: list[tuple[float, Any, np.ndarray]] = []

    def add(self, value: float, image_id: Any, picture: Callable[[], np.ndarray]) -> None:
        if self._count and (len(self._kept) < self._count or value > self._kept[-1][0]):
            self._kept.append((value, image_id, picture()))
            self._kept.sort(key=lambda kept: -kept[0])
            del self._kept[self._count :]

    def pictures(self) -> dict[Any, np.ndarray]:
        return {image_id: picture for _, image_id, picture in self._kept}
