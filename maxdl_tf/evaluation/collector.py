"""Takes the images of an evaluation as they come, and keeps what the figures and the report need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.evaluation.comparison import Comparison, compare
from maxdl_tf.evaluation.segment_map import from_label_map
from maxdl_tf.evaluation.submission import SubmissionWriter, category_ids

Picture = Callable[[], np.ndarray]  # Gives uint8 [h, w, 3]; called only for images that are shown.


class Collector:
    """Compares one label map after the other.

    Args:
      dataset_info: The class table of truth and predictions.
      with_masks: Whether to keep masks for mask AP.
      submission: Where predictions are written to.
      num_pictures: How many pictures of the best and of the worst images are kept.

    Attributes:
      comparisons: Of the images so far.
    """

    def __init__(
        self,
        dataset_info: DatasetInfo,
        *,
        with_masks: bool = False,
        submission: SubmissionWriter | None = None,
        num_pictures: int = 0,
    ):
        self._info = dataset_info
        self._with_masks = with_masks
        self._submission = submission
        self._best, self._worst = _Foremost(num_pictures), _Foremost(num_pictures)
        self.comparisons: list[Comparison] = []

    def add(
        self,
        image_id: str,
        truth: np.ndarray,
        prediction: np.ndarray,
        scores: Mapping[int, float],
        picture: Picture,
    ) -> None:
        """Adds an image; truth and prediction are int [height, width], scores those of predicted labels."""
        predicted = from_label_map(prediction, self._info, f"prediction of {image_id}", is_truth=False, scores=scores)
        true = from_label_map(truth, self._info, f"truth of {image_id}", is_truth=True)
        comparison = compare(image_id, true, predicted, self._info, with_masks=self._with_masks)
        self.comparisons.append(comparison)
        if self._submission:
            source_id_of_class = {row.id: row.source_id for row in self._info.classes}
            self._submission.add(image_id, predicted.ids, category_ids(predicted.segments, source_id_of_class))
        quality = comparison.quality()
        if quality is not None:
            self._best.add(quality, image_id, picture)
            self._worst.add(-quality, image_id, picture)

    @property
    def pictures(self) -> dict[Any, np.ndarray]:
        """Pictures of the best and the worst images, by their ids."""
        return {**self._best.pictures, **self._worst.pictures}


class _Foremost:
    """The pictures of the images with the largest values."""

    def __init__(self, count: int):
        self._count = count
        self._kept: list[tuple[float, Any, np.ndarray]] = []

    def add(self, value: float, image_id: Any, picture: Picture) -> None:
        if self._count and (len(self._kept) < self._count or value > self._kept[-1][0]):
            self._kept.append((value, image_id, picture()))
            self._kept.sort(key=lambda kept: -kept[0])
            del self._kept[self._count :]

    @property
    def pictures(self) -> dict[Any, np.ndarray]:
        return {image_id: picture for _, image_id, picture in self._kept}
