"""Accuracy of a classifier on a data set."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from maxdl_tf.evaluation.accuracy import Accuracy
from maxdl_tf.evaluation.evaluator import Evaluator

# Takes an image's id, the crop that was classified, uint8 [h, w, 3], and the true and the predicted class, from 0.
Show = Callable[[str, np.ndarray, int, int], None]


class ClassificationEvaluator(Evaluator):
    """Classifies all evaluation images.

    Args:
      strategy: The model was made in its scope. Each replica evaluates its part of a batch.
      model: `model(images, training=False)` gives logits, float32 [batch, classes].
      batches: `ClassificationBatch`es of all images, once; not distributed.
      new_metric: Makes an empty accumulator.
      show: Called with the first images and what they were taken for, for pictures.
      num_shown: How many images are shown.
    """

    def __init__(
        self,
        *,
        strategy: tf.distribute.Strategy,
        model: tf.Module,
        batches: tf.data.Dataset,
        new_metric: Callable[[], Accuracy] = Accuracy,
        show: Show | None = None,
        num_shown: int = 0,
    ):
        super().__init__(strategy=strategy, batches=batches, new_metric=new_metric)
        self._model = model
        self._show = show
        self._num_shown = num_shown if show else 0

    def predict(self, images):
        """float32 [batch, classes], logits."""
        return self._model(images, training=False)

    def compare(self, metric, batch, predictions, first):
        """Each image's logits with its class."""
        labels = batch.targets.numpy()
        metric.update(labels, predictions)
        for index in range(min(len(labels), max(0, self._num_shown - first))):
            image = np.clip(batch.images[index].numpy() + 0.5, 0, 255).astype(np.uint8)
            image_id = batch.image_ids[index].numpy().decode()
            self._show(image_id, image, int(labels[index]), int(predictions[index].argmax()))
