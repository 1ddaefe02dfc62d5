"""Runs a model over a data set and measures it; what is predicted and how it is measured is for each task to say."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import orbit
import tensorflow as tf


class Result(Protocol):
    """What an evaluation found."""

    def as_table(self) -> str:
        """For people."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""

    def curves(self) -> dict[str, float]:
        """Figures in 0..1 under TensorBoard's tags."""


class Evaluator(orbit.AbstractEvaluator):
    """Runs the model over all evaluation images and accumulates a metric.

    Args:
      strategy: The model was made in its scope. Each replica evaluates its part of a batch.
      batches: Batches with `images`, all of them once; not distributed.
      new_metric: Makes an empty accumulator, whose `result()` is a `Result`.

    Attributes:
      on_progress: Called with the number of images that were evaluated since the last call.
      result: The metric's result of the last evaluation.
      image_count: Images of the data set; None before the first evaluation.
    """

    def __init__(self, *, strategy: tf.distribute.Strategy, batches: tf.data.Dataset, new_metric: Callable[[], Any]):
        super().__init__()
        self._strategy = strategy
        self._batches = batches
        self._new_metric = new_metric
        self._per_replica = 0
        self._predict = tf.function(self._distributed_predict, autograph=False)
        self.on_progress: Callable[[int], None] = lambda images: None
        self.result: Result | None = None
        self.image_count: int | None = None

    @abc.abstractmethod
    def predict(self, images: tf.Tensor) -> Any:
        """What the model says of [images, height, width, 3], float32 0..255. In a graph.

        Returns:
          A tensor, or a tuple of some, with an entry for each image.
        """

    @abc.abstractmethod
    def compare(self, metric: Any, batch: Any, predictions: Any, first: int) -> None:
        """Adds a batch to the metric.

        Args:
          metric: From `new_metric`.
          batch: One of `batches`.
          predictions: What `predict` gave of its images, as arrays.
          first: Number of its first image in the data set.
        """

    def evaluate(self, num_steps: tf.Tensor) -> dict[str, float]:
        """Evaluates the whole data set, whatever `num_steps`; the full result is in `result` afterwards.

        Returns:
          Its curves.
        """
        del num_steps
        metric = self._new_metric()
        evaluated = 0
        for batch in self._batches:
            self.compare(metric, batch, self._predictions(batch.images), evaluated)
            evaluated += batch.images.shape[0]
            self.on_progress(batch.images.shape[0])
        self.image_count = evaluated
        self.result = metric.result()
        return self.result.curves()

    def _predictions(self, images: tf.Tensor) -> Any:
        """Of a whole batch, each replica's part on that replica."""
        count, replicas = images.shape[0], self._strategy.num_replicas_in_sync
        # The last, smaller batch is filled up: layers fail on no images, and another size would be traced anew.
        self._per_replica = max(self._per_replica, -(-count // replicas))
        missing = self._per_replica * replicas - count
        parts = tf.split(tf.concat([images, tf.repeat(images[-1:], missing, axis=0)], axis=0), replicas)
        distributed = self._strategy.experimental_distribute_values_from_function(
            lambda context: parts[context.replica_id_in_sync_group]
        )

        def together(value) -> np.ndarray:
            return np.concatenate([part.numpy() for part in self._strategy.experimental_local_results(value)])[:count]

        return tf.nest.map_structure(together, self._predict(distributed))

    def _distributed_predict(self, images):
        return self._strategy.run(self.predict, args=(images,))
