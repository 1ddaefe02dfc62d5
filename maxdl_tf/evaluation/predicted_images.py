"""Runs a predictor of single images over a data set and yields one evaluated image after the other.

`model_images` runs a network over batches of resized images instead.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from maxdl_tf import panoptic_ids
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.drawing import label_maps
from maxdl_tf.evaluation.model_images import EvaluatedImage

if TYPE_CHECKING:
    from maxdl_tf.data.panoptic import PanopticExample


class WholePrediction(Protocol):
    """What is predicted for an image, such as `maxdl_tf.inference.prediction.Prediction`.

    Attributes:
      label_map: int32 [height, width].
      segments: Segments of `label_map`, with `id` and `score`.
      image: uint8 [height, width, 3].
    """

    label_map: np.ndarray
    segments: list[Any]
    image: np.ndarray


class PredictedImages:
    """The images of a data set with a predictor's label maps. Each iteration predicts all of them. There are no losses.

    Args:
      predict: Predicts an image, uint8 [height, width, 3], such as a `TiledPredictor`.
      examples: `PanopticExample`s, each image once.
      truth_info: Class table of the examples.
      predicted_info: Class table of the predictions. Only its label divisor may differ; true labels are changed to it.
    """

    def __init__(
        self,
        predict: Callable[[np.ndarray], WholePrediction],
        examples: Iterable[PanopticExample],
        *,
        truth_info: DatasetInfo,
        predicted_info: DatasetInfo,
    ):
        self._predict = predict
        self._examples = examples
        self._truth_info = truth_info
        self._info = predicted_info

    def __iter__(self) -> Iterator[EvaluatedImage]:
        for example in self._examples:
            class_id, instance = panoptic_ids.decode_label(example.label.numpy(), self._truth_info.label_divisor)
            truth = panoptic_ids.encode_label(class_id, instance, self._info.label_divisor)
            found = self._predict(example.image.numpy())
            scores = {segment.id: segment.score for segment in found.segments}
            picture = functools.partial(label_maps.comparison_picture, found.image, truth, found.label_map, self._info)
            yield EvaluatedImage(example.image_id.numpy().decode(), truth, found.label_map, scores, picture)
