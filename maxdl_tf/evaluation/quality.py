"""Panoptic quality (Kirillov et al., CVPR 2019; arXiv 1801.00868, section 4)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

import numpy as np

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.evaluation.matching import (
    PanopticCounts,
    PredictedSegments,
    TrueSegments,
    count_matches,
    match_segments,
    overlap_of,
    stack_counts,
)


@dataclass(frozen=True)
class ClassQuality:
    """The quality of one class; pq, sq and rq are in 0..1, and 0 where the class has no segments.

    Attributes:
      pq: Panoptic quality, sq x rq.
      sq: Segmentation quality, the mean IoU of matched segments.
      rq: Recognition quality, the F1 of segments.
      tp: Number of matched segments.
      fp: Number of unmatched predicted segments.
      fn: Number of unmatched true segments.
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

    @property
    def has_segments(self) -> bool:
        return self.tp + self.fp + self.fn > 0


@dataclass(frozen=True)
class GroupQuality:
    """Means over the classes of a group that have segments, in 0..1; 0 where `num_classes`, their number, is 0."""

    pq: float
    sq: float
    rq: float
    num_classes: int


@dataclass(frozen=True)
class PanopticQualityResult:
    """Panoptic quality of a data set.

    Attributes:
      all: Of all classes.
      things: Of thing classes.
      stuff: Of stuff classes.
      classes: Each class, things first, by ascending id.
      num_images: How many images were compared.
      image_counts: [images, class ids], what the figures were made of; not written to JSON.
    """

    all: GroupQuality
    things: GroupQuality
    stuff: GroupQuality
    classes: tuple[ClassQuality, ...]
    num_images: int
    image_counts: PanopticCounts | None = field(default=None, compare=False, repr=False)

    def as_dict(self) -> dict:
        """For JSON; the keys are the names of the attributes."""
        figures = asdict(replace(self, image_counts=None))
        del figures["image_counts"]
        return figures

    def curves(self) -> dict[str, float]:
        """The figures under TensorBoard's tags; classes without segments are left out."""
        figures = {
            f"{figure}/{group}": getattr(getattr(self, group), figure)
            for figure in ("pq", "sq", "rq")
            for group in ("all", "things", "stuff")
        }
        return {**figures, **{f"pq_of_class/{c.name}": c.pq for c in self.classes if c.has_segments}}

    def as_table(self) -> str:
        """For people: percentages, one line for each group and each class that has segments."""
        classes = [c for c in self.classes if c.has_segments]
        width = max(map(len, ["things", *(c.name for c in classes)]))
        lines = [f"{'class':<{width}}      PQ     SQ     RQ      TP      FP      FN"]
        for name, group in (("all", self.all), ("things", self.things), ("stuff", self.stuff)):
            lines.append(f"{name:<{width}}  {_percentages(group, group.num_classes > 0)}   {group.num_classes} classes")
        for c in classes:
            lines.append(f"{c.name:<{width}}  {_percentages(c, True)}  {c.tp:6}  {c.fp:6}  {c.fn:6}")
        return "\n".join(lines)


def _percentages(quality: GroupQuality | ClassQuality, defined: bool) -> str:
    values = (quality.pq, quality.sq, quality.rq)
    return "  ".join(f"{100 * value:5.1f}" if defined else "    -" for value in values)


class PanopticQuality:
    """Accumulates the comparison of label maps with the truth, image by image.

    A segment is the set of pixels of an image with the same label; `panoptic_counts` says how they are judged.

    Args:
      dataset_info: The class table.
      ignore_crowd: True for COCO's official rule: crowds (instance 0 of a thing class in truth) match
        nothing and are not missed, and an unmatched prediction of their class may lie on them as on
        void. False for DeepLab2's, to which they are segments as others.
    """

    def __init__(self, dataset_info: DatasetInfo, ignore_crowd: bool = True):
        self._info = dataset_info
        self._ignore_crowd = ignore_crowd
        self._num_ids = dataset_info.num_semantic_channels
        self._is_known = np.zeros(self._num_ids, bool)
        self._is_known[[*dataset_info.class_order, dataset_info.ignore_label]] = True
        self._is_thing = np.zeros(self._num_ids, bool)
        self._is_thing[list(dataset_info.thing_ids)] = True
        self._images: list[PanopticCounts] = []

    def update(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Adds an image.

        Args:
          truth: int [height, width], class id * label_divisor + instance.
          prediction: The same shape and code.

        Raises:
          ValueError: For maps of unequal shapes, or a class that is not in the table.
        """
        overlap = overlap_of(truth, prediction)
        true_class = self._classes(overlap.true_ids, "truth")
        class_id = self._classes(overlap.ids, "prediction")
        is_crowd = self._is_thing[true_class] & (overlap.true_ids % self._info.label_divisor == 0)
        is_crowd &= self._ignore_crowd
        is_void = true_class == self._info.ignore_label
        matching = match_segments(
            overlap.pixels,
            TrueSegments(true_class, is_void, is_crowd, forgives=is_crowd),
            PredictedSegments(class_id, class_id == self._info.ignore_label),
        )
        self._images.append(count_matches(matching, true_class, class_id, self._num_ids))

    def merge(self, other: PanopticQuality) -> None:
        """Adds the images of another accumulator, as of another worker.

        Raises:
          ValueError: If it was made for another class table or another rule.
        """
        if other._info != self._info or other._ignore_crowd != self._ignore_crowd:
            raise ValueError(
                f"cannot merge the panoptic quality of {other._info.name!r} (ignore_crowd={other._ignore_crowd}) into "
                f"that of {self._info.name!r} (ignore_crowd={self._ignore_crowd}); make both with the same arguments"
            )
        self._images += other._images

    def result(self) -> PanopticQualityResult:
        """The quality over all images so far."""
        return quality_of(stack_counts(self._images, self._num_ids), self._info)

    def _classes(self, labels: np.ndarray, source: str) -> np.ndarray:
        class_id = labels // self._info.label_divisor
        unknown = (class_id < 0) | (class_id >= len(self._is_known))
        unknown = unknown | ~self._is_known[np.where(unknown, 0, class_id)]
        if unknown.any():
            raise ValueError(
                f"{source} has label {labels[unknown][0]}, which is class {class_id[unknown][0]} with label_divisor "
                f"{self._info.label_divisor}; data set {self._info.name!r} has the classes "
                f"{', '.join(map(str, self._info.class_order))} and {self._info.ignore_label} for void"
            )
        return class_id


def quality_of(counts: PanopticCounts, dataset_info: DatasetInfo) -> PanopticQualityResult:
    """The quality of images.

    Args:
      counts: [images, class ids].
      dataset_info: The class table.
    """
    total = counts.total()
    classes = tuple(_class_quality(total, dataset_info, class_id) for class_id in dataset_info.class_order)
    return PanopticQualityResult(
        all=_group(classes),
        things=_group([c for c in classes if c.is_thing]),
        stuff=_group([c for c in classes if not c.is_thing]),
        classes=classes,
        num_images=counts.num_images,
        image_counts=counts,
    )


def _class_quality(total: PanopticCounts, dataset_info: DatasetInfo, class_id: int) -> ClassQuality:
    iou, tp, fp, fn = (array[class_id].item() for array in total)
    sq = iou / tp if tp else 0.0
    rq = tp / (tp + fp / 2 + fn / 2) if tp else 0.0
    row = dataset_info.by_id[class_id]
    return ClassQuality(class_id, row.name, row.is_thing, pq=sq * rq, sq=sq, rq=rq, tp=tp, fp=fp, fn=fn)


def _group(classes) -> GroupQuality:
    classes = [c for c in classes if c.has_segments]
    if not classes:
        return GroupQuality(0.0, 0.0, 0.0, 0)
    means = (float(np.mean([getattr(c, name) for c in classes])) for name in ("pq", "sq", "rq"))
    return GroupQuality(*means, len(classes))
