"""Panoptic quality of the model on a data set, at the size of the raw images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from maxdl_tf.data import transforms
from maxdl_tf.metrics.panoptic_quality import PanopticQuality
from maxdl_tf.training.evaluator import Evaluator

# Takes an image's id, the image uint8 [h, w, 3], and truth and prediction int [h, w] at its size.
Show = Callable[[str, np.ndarray, np.ndarray, np.ndarray], None]


class PanopticEvaluator(Evaluator):
    """Runs the model over all evaluation images and accumulates a metric of their label maps.

    Args:
      strategy: The model was made in its scope. Each replica evaluates its part of a batch.
      model: `model(images, training=False) -> PanopticOutputs`.
      postprocess: `postprocess(outputs, (height, width)) -> PanopticPrediction`.
      batches: `EvaluationBatch`es of all images, once; not distributed.
      new_metric: Makes an empty accumulator.
      show: Called with the first images and what became of them, for pictures.
      num_shown: How many images are shown.
    """

    def __init__(
        self,
        *,
        strategy: tf.distribute.Strategy,
        model: tf.Module,
        postprocess: Callable,
        batches: tf.data.Dataset,
        new_metric: Callable[[], PanopticQuality],
        show: Show | None = None,
        num_shown: int = 0,
    ):
        super().__init__(strategy=strategy, batches=batches, new_metric=new_metric)
        self._model = model
        self._postprocess = postprocess
        self._show = show
        self._num_shown = num_shown if show else 0

    def predict(self, images):
        """int32 [batch, height, width], the panoptic maps at the size of the network's input."""
        outputs = self._model(images, training=False)
        return self._postprocess(outputs, (images.shape[1], images.shape[2])).panoptic

    def compare(self, metric, batch, predictions, first):
        """Each image with its truth, at the size that it came in."""
        for number, (image_id, image, resized_size, raw_size, truth, prediction) in enumerate(
            zip(
                batch.image_ids.numpy(),
                batch.images.numpy(),
                batch.resized_size.numpy(),
                batch.raw_size.numpy(),
                batch.label_maps.numpy(),
                predictions,
            ),
            start=first,
        ):
            truth = truth[: raw_size[0], : raw_size[1]]
            metric.update(truth, to_raw_size(prediction, resized_size, raw_size))
            if number < self._num_shown:
                self._show_example(image_id.decode(), image, resized_size, truth, prediction)

    def _show_example(self, image_id: str, image, resized_size, truth, prediction) -> None:
        height, width = resized_size
        self._show(
            image_id,
            np.clip(image[:height, :width] + 0.5, 0, 255).astype(np.uint8),
            transforms.resize_labels(truth, resized_size).numpy(),
            prediction[:height, :width],
        )


def to_raw_size(label_map: np.ndarray, resized_size, raw_size) -> np.ndarray:
    """A prediction on the padded crop as one on the image as it came (architecture section 9, "undo").

    Args:
      label_map: int32 [crop height, crop width].
      resized_size: (height, width) that the image has in the crop; what is right and below of it is padding.
      raw_size: (height, width) of the image as it came.

    Returns:
      int32 [raw height, raw width].
    """
    return transforms.resize_labels(label_map[: resized_size[0], : resized_size[1]], raw_size).numpy()
