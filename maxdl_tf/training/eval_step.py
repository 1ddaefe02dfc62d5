"""Panoptic quality of the model on a data set, at the size of the raw images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import orbit
import tensorflow as tf

from maxdl_tf.data import transforms
from maxdl_tf.metrics.panoptic_quality import PanopticQuality, PanopticQualityResult

# Takes an image's id, the image uint8 [h, w, 3], and truth and prediction int [h, w] at its size.
Show = Callable[[str, np.ndarray, np.ndarray, np.ndarray], None]


class Evaluator(orbit.AbstractEvaluator):
    """Runs the model over all evaluation images and accumulates a metric of their label maps.

    Args:
      strategy: The model was made in its scope. Each replica evaluates its part of a batch.
      model: `model(images, training=False) -> PanopticOutputs`.
      postprocess: `postprocess(outputs, (height, width)) -> PanopticPrediction`.
      batches: `EvaluationBatch`es of all images, once; not distributed.
      new_metric: Makes an empty accumulator.
      show: Called with the first images and what became of them, for pictures.
      num_shown: How many images are shown.

    Attributes:
      on_progress: Called with the number of images that were evaluated since the last call.
      result: The metric's result of the last evaluation.
      image_count: Images of the data set; None before the first evaluation.
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
        super().__init__()
        self._strategy = strategy
        self._model = model
        self._postprocess = postprocess
        self._batches = batches
        self._new_metric = new_metric
        self._show = show
        self._num_shown = num_shown if show else 0
        self.on_progress: Callable[[int], None] = lambda images: None
        self._per_replica = 0
        self._predict = tf.function(self._distributed_predict, autograph=False)
        self.result: PanopticQualityResult | None = None
        self.image_count: int | None = None

    def evaluate(self, num_steps: tf.Tensor) -> dict[str, float]:
        """Evaluates the whole data set, whatever `num_steps`; the full result is in `result` afterwards.

        Returns:
          PQ, SQ and RQ in 0..1 under TensorBoard's tags.
        """
        del num_steps
        metric = self._new_metric()
        evaluated = 0
        for batch in self._batches:
            before = evaluated
            for image_id, image, resized_size, raw_size, truth, prediction in zip(
                batch.image_ids.numpy(),
                batch.images.numpy(),
                batch.resized_size.numpy(),
                batch.raw_size.numpy(),
                batch.label_maps.numpy(),
                self._panoptic_maps(batch.images),
            ):
                truth = truth[: raw_size[0], : raw_size[1]]
                metric.update(truth, to_raw_size(prediction, resized_size, raw_size))
                if evaluated < self._num_shown:
                    self._show_example(image_id.decode(), image, resized_size, truth, prediction)
                evaluated += 1
            self.on_progress(evaluated - before)
        self.image_count = evaluated
        self.result = metric.result()
        return curves(self.result)

    def _panoptic_maps(self, images: tf.Tensor) -> np.ndarray:
        """int32 [batch, height, width] at the size of the network's input."""
        count, replicas = images.shape[0], self._strategy.num_replicas_in_sync
        # The last, smaller batch is filled up: layers fail on no images, and another size would be traced anew.
        self._per_replica = max(self._per_replica, -(-count // replicas))
        missing = self._per_replica * replicas - count
        parts = tf.split(tf.concat([images, tf.repeat(images[-1:], missing, axis=0)], axis=0), replicas)
        distributed = self._strategy.experimental_distribute_values_from_function(
            lambda context: parts[context.replica_id_in_sync_group]
        )
        maps = self._strategy.experimental_local_results(self._predict(distributed))
        return np.concatenate([part.numpy() for part in maps])[:count]

    def _distributed_predict(self, images):
        return self._strategy.run(self._replica_predict, args=(images,))

    def _replica_predict(self, images: tf.Tensor) -> tf.Tensor:
        """int32 [batch, height, width], the panoptic maps at the size of the network's input."""
        outputs = self._model(images, training=False)
        return self._postprocess(outputs, (images.shape[1], images.shape[2])).panoptic

    def _show_example(self, image_id: str, image, resized_size, truth, prediction) -> None:
        height, width = resized_size
        self._show(
            image_id,
            np.clip(image[:height, :width] + 0.5, 0, 255).astype(np.uint8),
            transforms.resize_labels(truth, resized_size).numpy(),
            prediction[:height, :width],
        )


def curves(result: PanopticQualityResult) -> dict[str, float]:
    """The figures under TensorBoard's tags; classes without segments are left out."""
    figures = {
        f"{figure}/{group}": getattr(getattr(result, group), figure)
        for figure in ("pq", "sq", "rq")
        for group in ("all", "things", "stuff")
    }
    return {**figures, **{f"pq_of_class/{c.name}": c.pq for c in result.classes if c.has_segments}}


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
