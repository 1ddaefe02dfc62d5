"""Panoptic quality of the model on a data set, at the size of the raw images."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from maxdl_tf.data import transforms
from maxdl_tf.evaluation.evaluator import Evaluator
from maxdl_tf.evaluation.quality import PanopticQuality
from maxdl_tf.structs import PanopticOutputs, PanopticPrediction

# Takes an image's id, the image uint8 [h, w, 3], and truth and prediction int [h, w] at its size.
Show = Callable[[str, np.ndarray, np.ndarray, np.ndarray], None]


class EvaluatedImage(NamedTuple):
    """An image and what became of it.

    Attributes:
      image_id: Of the example.
      truth: int [h, w], the label map at the size of the raw image.
      prediction: The same of the model.
      scores: Of each segment of the prediction, by its label, in 0..1: the mean confidence of its pixels in their masks
        times that in their classes (architecture section 9), over its pixels at the size of the network's input.
      example: Gives the image uint8 [h, w, 3], truth and prediction int [h, w], at the size that they have in the crop.
    """

    image_id: str
    truth: np.ndarray
    prediction: np.ndarray
    scores: dict[int, float]
    example: Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray]]


class PanopticEvaluator(Evaluator):
    """Runs the model over all evaluation images and accumulates a metric of their label maps.

    Args:
      strategy: The model was made in its scope. Each replica evaluates its part of a batch.
      model: `model(images, training=False) -> PanopticOutputs`.
      postprocess: `postprocess(outputs) -> PanopticPrediction`; runs on the host of a TPU.
      batches: `EvaluationBatch`es of all images, once; not distributed.
      new_metric: Makes an empty accumulator.
      show: Called with the first images and what became of them, for pictures.
      num_shown: How many images are shown.
      observe: Called with every image, for figures beside the metric.
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
        observe: Callable[[EvaluatedImage], None] | None = None,
    ):
        super().__init__(strategy=strategy, batches=batches, new_metric=new_metric)
        self._model = model
        is_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
        self._postprocess = functools.partial(_on_host, postprocess) if is_tpu else postprocess
        self._show = show
        self._num_shown = num_shown if show else 0
        self._observe = observe

    def predict(self, images):
        """int32 [batch, height, width], the panoptic maps at the size of the network's input.

        With the confidences of pixels in masks and in classes after them where somebody observes.
        """
        outputs = self._model(images, training=False)
        prediction = self._postprocess(outputs)
        if self._observe is None:
            return prediction.panoptic
        return prediction.panoptic, prediction.instance_score, prediction.semantic_score

    def compare(self, metric, batch, predictions, first):
        """Each image with its truth, at the size that it came in."""
        label_maps, *confidences = predictions if self._observe else (predictions,)
        for place, (image_id, image, resized_size, raw_size, truth, prediction) in enumerate(
            zip(
                batch.image_ids.numpy(),
                batch.images.numpy(),
                batch.resized_size.numpy(),
                batch.raw_size.numpy(),
                batch.label_maps.numpy(),
                label_maps,
            )
        ):
            truth = truth[: raw_size[0], : raw_size[1]]
            raw_prediction = to_raw_size(prediction, resized_size, raw_size)
            metric.update(truth, raw_prediction)
            example = functools.partial(_at_size_in_crop, image, resized_size, truth, prediction)
            if first + place < self._num_shown:
                self._show(image_id.decode(), *example())
            if self._observe:
                scores = _scores(prediction, resized_size, *(confidence[place] for confidence in confidences))
                self._observe(EvaluatedImage(image_id.decode(), truth, raw_prediction, scores, example))


def _on_host(postprocess: Callable, outputs: PanopticOutputs) -> PanopticPrediction:
    """Called on a TPU: XLA cannot compile the post-processing."""
    outputs = PanopticOutputs(None, outputs.mask_logits, outputs.class_logits, semantic_logits=None)
    return tf.compat.v1.tpu.outside_compilation(postprocess, outputs)


def _at_size_in_crop(image, resized_size, truth, prediction) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    height, width = resized_size
    return (
        np.clip(image[:height, :width] + 0.5, 0, 255).astype(np.uint8),
        transforms.resize_labels(truth, resized_size).numpy(),
        prediction[:height, :width],
    )


def _scores(label_map, resized_size, mask_confidence, class_confidence) -> dict[int, float]:
    height, width = resized_size
    labels, place = np.unique(label_map[:height, :width], return_inverse=True)
    place = place.reshape(-1)
    area = np.bincount(place)
    means = [
        np.bincount(place, weights=confidence[:height, :width].reshape(-1)) / area
        for confidence in (mask_confidence, class_confidence)
    ]
    return dict(zip(labels.tolist(), (means[0] * means[1]).tolist()))


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
