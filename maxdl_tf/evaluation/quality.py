"""Panoptic quality (Kirillov et al., CVPR 2019; arXiv 1801.00868, section 4) and its bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Optional

import numpy as np

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.evaluation.matching import (
    ClassPixels,
    PanopticCounts,
    count_matches,
    count_pixels,
    match,
    overlap_of,
    stack_counts,
)
from maxdl_tf.evaluation.network_summary import losses_curves, losses_in_json, losses_line
from maxdl_tf.evaluation.segment_map import segments_of_labels

Intervals = Mapping[str, Mapping[str, Optional[tuple[float, float]]]]

_GROUPS = ("all", "things", "stuff")
_METRICS = ("pq", "sq", "rq")
_SAMPLES_AT_ONCE = 256  # Number of bootstrap samples in memory together.


@dataclass(frozen=True)
class ClassQuality:
    """Quality of one class. pq, sq and rq are in 0..1; they are 0 if the class has no segments.

    Attributes:
      id: Class id.
      name: Name of the class.
      is_thing: Whether it is a thing class.
      pq: Panoptic quality, sq x rq.
      sq: Segmentation quality, the mean IoU of matched segments.
      rq: Recognition quality, the F1 score of segments.
      tp: Number of matched segments.
      fp: Number of wrong predicted segments.
      fn: Number of missed true segments.
      iou: IoU of all pixels of the class, whatever their segments, in 0..1; None if there are none.
    """

    id: int
    name: str
    is_thing: bool
    pq: float
    sq: float
    rq: float
    tp: int
    fp: int
    fn: int
    iou: float | None = None

    @property
    def has_segments(self) -> bool:
        return self.tp + self.fp + self.fn > 0


@dataclass(frozen=True)
class GroupQuality:
    """Means over the `num_classes` classes of a group that have segments, in 0..1; 0 if there are none."""

    pq: float
    sq: float
    rq: float
    num_classes: int


@dataclass(frozen=True)
class PanopticQualityResult:
    """Panoptic quality of a data set.

    Attributes:
      all: Means over all classes.
      things: Means over thing classes.
      stuff: Means over stuff classes.
      classes: Quality of each class; things first, each kind by ascending id.
      num_images: Number of images.
      miou: Mean IoU of the pixels of the classes that have some, in 0..1; None if there are none.
      losses: Means of the network's losses over the images by name, the total first; empty if none are computed.
      masks: A line on which rules removed the network's masks; None if no network is evaluated.
    """

    all: GroupQuality
    things: GroupQuality
    stuff: GroupQuality
    classes: tuple[ClassQuality, ...]
    num_images: int
    miou: float | None = None
    losses: Mapping[str, float] = field(default_factory=dict)
    masks: str | None = None

    @property
    def score(self) -> float:
        """PQ of all classes, which chooses the best weights of a training."""
        return self.all.pq

    def as_dict(self) -> dict[str, Any]:
        """The metrics in a form that JSON can hold; qualities in 0..1."""
        metrics = {"unit": "fraction", **asdict(self)}
        del metrics["masks"]
        losses = metrics.pop("losses")
        return {**metrics, "losses": losses_in_json(losses)} if losses else metrics

    def curves(self) -> dict[str, float]:
        """The metrics by their tags in TensorBoard, without classes that have no segments."""
        groups = {f"{name}/{group}": getattr(getattr(self, group), name) for name in _METRICS for group in _GROUPS}
        classes = {f"pq_of_class/{c.name}": c.pq for c in self.classes if c.has_segments}
        miou = {} if self.miou is None else {"miou": self.miou}
        return {**groups, **classes, **miou, **losses_curves(self.losses)}

    def as_table(self) -> str:
        """A human-readable table in percent with a line for each group and each class that has segments.

        Lines with mIoU and the loss follow, and one on the network's masks if a group has a PQ of 0.
        """
        classes = [c for c in self.classes if c.has_segments]
        width = max(map(len, ["things", *(c.name for c in classes)]))
        lines = [f"{'class':<{width}}      PQ     SQ     RQ      TP      FP      FN  (PQ, SQ, RQ in %)"]
        for name in _GROUPS:
            group = getattr(self, name)
            lines.append(f"{name:<{width}}  {_percentages(group, group.num_classes > 0)}   {group.num_classes} classes")
        for c in classes:
            lines.append(f"{c.name:<{width}}  {_percentages(c, True)}  {c.tp:6}  {c.fp:6}  {c.fn:6}")
        if self.miou is not None:
            lines.append(f"mIoU {100 * self.miou:.1f}")
        if self.losses:
            lines.append(losses_line(self.losses))
        if self.masks_line():
            lines.append(self.masks_line())
        return "\n".join(lines)

    def masks_line(self) -> str | None:
        """What became of the network's masks, if a group that has classes has a PQ of 0."""
        groups = [name for name in _GROUPS if getattr(self, name).num_classes and not getattr(self, name).pq]
        return f"PQ 0 of {', '.join(groups)}: {self.masks}" if groups and self.masks else None


def _percentages(quality: GroupQuality | ClassQuality, defined: bool) -> str:
    values = (quality.pq, quality.sq, quality.rq)
    return "  ".join(f"{100 * value:5.1f}" if defined else "    -" for value in values)


class PanopticQuality:
    """Panoptic quality of label maps, accumulated image by image.

    A segment is the set of pixels of an image with the same label. `maxdl_tf/evaluation/matching.py` has the rule.

        metric = PanopticQuality(dataset_info)
        metric.update(truth, prediction)
        print(metric.result().as_table())

    Args:
      dataset_info: Class table.
      ignore_crowd: Whether to follow COCO's official rule for crowds, which are instance 0 of a thing class in the
        truth: they match nothing and are not missed, and an unmatched prediction of their class may lie on them as on
        void. False follows DeepLab2, which treats crowds like other segments.
    """

    def __init__(self, dataset_info: DatasetInfo, ignore_crowd: bool = True):
        self._info = dataset_info
        self._ignore_crowd = ignore_crowd
        self._images: list[PanopticCounts] = []
        self._pixels: list[ClassPixels] = []

    def update(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Adds an image.

        Args:
          truth: int [height, width], class id * label_divisor + instance.
          prediction: int [height, width], in the same code.

        Raises:
          ValueError: The shapes differ, or a class is not in the table.
        """
        overlap = overlap_of(truth, prediction)
        true_segments = segments_of_labels(overlap.true_ids, self._info, "truth", has_crowds=self._ignore_crowd)
        matching = match(overlap, true_segments, segments_of_labels(overlap.ids, self._info, "prediction"))
        self._images.append(count_matches(matching, self._info.num_semantic_channels))
        self._pixels.append(count_pixels(overlap, matching, self._info.num_semantic_channels))

    def result(self) -> PanopticQualityResult:
        """The quality of all images so far."""
        return quality_of(stack_counts(self._images, self._info.num_semantic_channels), self._info, self._pixels)


def quality_of(
    counts: PanopticCounts, dataset_info: DatasetInfo, pixels: Sequence[ClassPixels] = ()
) -> PanopticQualityResult:
    """The quality of images.

    Args:
      counts: Counts of the images, [images, class ids].
      dataset_info: Class table.
      pixels: Pixels of the classes of each image; none if IoUs are not wanted.
    """
    total = counts.total()
    both, either = (sum(field) for field in zip(*pixels)) if pixels else np.zeros((2, len(total.tp)), int)
    classes = tuple(
        _class_quality(total, dataset_info, class_id, both[class_id].item(), either[class_id].item())
        for class_id in dataset_info.class_order
    )
    ious = [c.iou for c in classes if c.iou is not None]
    return PanopticQualityResult(
        all=_group(classes),
        things=_group([c for c in classes if c.is_thing]),
        stuff=_group([c for c in classes if not c.is_thing]),
        classes=classes,
        num_images=counts.num_images,
        miou=float(np.mean(ious)) if ious else None,
    )


def _class_quality(
    total: PanopticCounts, dataset_info: DatasetInfo, class_id: int, both: int, either: int
) -> ClassQuality:
    iou, tp, fp, fn = (array[class_id].item() for array in total)
    sq = iou / tp if tp else 0.0
    rq = tp / (tp + fp / 2 + fn / 2) if tp else 0.0
    row = dataset_info.by_id[class_id]
    iou_of_pixels = both / either if either else None
    return ClassQuality(
        class_id, row.name, row.is_thing, pq=sq * rq, sq=sq, rq=rq, tp=tp, fp=fp, fn=fn, iou=iou_of_pixels
    )


def _group(classes: Sequence[ClassQuality]) -> GroupQuality:
    classes = [c for c in classes if c.has_segments]
    if not classes:
        return GroupQuality(0.0, 0.0, 0.0, 0)
    means = (float(np.mean([getattr(c, name) for c in classes])) for name in _METRICS)
    return GroupQuality(*means, len(classes))


def quality_intervals(
    counts: PanopticCounts, dataset_info: DatasetInfo, *, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> Intervals:
    """Bootstrap percentile intervals (Efron, Annals of Statistics 1979): how far other images could move the quality.

    A sample draws as many images as there are, with replacement. Its quality is that of a data set: the mean over the
    classes that occur in it. Classes that are rare among the images widen the intervals. Classes that are missing from
    a sample move its mean, so the interval need not be centered on the quality of all images.

    Args:
      counts: Counts of the images, [images, class ids].
      dataset_info: Class table.
      samples: Number of samples.
      level: Share of the samples inside an interval.
      seed: Seed of the samples; equal seeds give equal intervals.

    Returns:
      {"all", "things" or "stuff": {"pq", "sq" or "rq": (low, high)}}, in 0..1; None in place of
      the pair if the group has no segments.
    """
    group_ids = (dataset_info.class_order, dataset_info.thing_ids, dataset_info.stuff_ids)
    drawn: dict[str, list[np.ndarray]] = {group: [] for group in _GROUPS}
    rng = np.random.default_rng(seed)
    images = counts.num_images
    for start in range(0, samples if images else 0, _SAMPLES_AT_ONCE):
        size = min(_SAMPLES_AT_ONCE, samples - start)
        weights = rng.multinomial(images, np.full(images, 1 / images), size=size).astype(np.float64)
        iou, tp, fp, fn = (weights @ field for field in counts)  # [samples, class ids]
        has_segments = tp + fp + fn > 0
        metrics = [_divide(iou, tp + fp / 2 + fn / 2), _divide(iou, tp), _divide(tp, tp + fp / 2 + fn / 2)]
        for group, class_ids in zip(_GROUPS, group_ids):
            ids = list(class_ids)
            present = has_segments[:, ids].sum(axis=1)
            drawn[group].append(np.stack([_divide(metric[:, ids].sum(axis=1), present) for metric in metrics]))
    tails = [50 * (1 - level), 50 * (1 + level)]
    occurs = np.any([(field > 0).any(axis=0) for field in (counts.tp, counts.fp, counts.fn)], axis=0)  # [class ids]
    intervals = {}
    for (group, parts), class_ids in zip(drawn.items(), group_ids):
        if occurs[list(class_ids)].any():
            ends = np.percentile(np.concatenate(parts, axis=1), tails, axis=1)
            intervals[group] = {name: tuple(ends[:, row].tolist()) for row, name in enumerate(_METRICS)}
        else:
            intervals[group] = dict.fromkeys(_METRICS)
    return intervals


def intervals_line(intervals: Intervals) -> str:
    """The 95 % intervals of PQ in a human-readable line, in percent; without groups that have none."""
    ends = {group: metrics["pq"] for group, metrics in intervals.items() if metrics["pq"]}
    spans = ", ".join(f"{group} {100 * low:.1f} to {100 * high:.1f}" for group, (low, high) in ends.items())
    return f"95 % intervals of PQ (bootstrap over images): {spans or 'none'}"


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient; 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
