"""Runs a model over a data set and yields one evaluated image after the other.

Metrics, pictures, reports and submissions consume these images; `Evaluator` connects them to Orbit's outer loop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import orbit
import tensorflow as tf

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data import transforms
from maxdl_tf.drawing import label_maps
from maxdl_tf.errors import UserError
from maxdl_tf.evaluation.diagnosis import Diagnosis, count_masks
from maxdl_tf.evaluation.network_summary import NetworkSummary
from maxdl_tf.evaluation.quality import PanopticQuality, PanopticQualityResult
from maxdl_tf.evaluation.segment_map import compact_ids, different_ids
from maxdl_tf.structs import PanopticOutputs, PanopticPrediction


class PredictedBatches:
    """Batches of a data set with a model's predictions. Each iteration runs over the whole data set.

    Args:
      strategy: Strategy in whose scope the model was built. Each replica predicts its part of a batch.
      predict: Function of what `inputs` returns, which runs in a graph. It returns tensors in any nesting whose first
        axis is that of the images.
      batches: Batches, each image once; not distributed.
      inputs: Function of a batch that returns the arguments of `predict`: tensors in any nesting whose first axis is
        that of the images. Default: images, float32 [images, height, width, 3] in 0..255.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        predict: Callable[..., Any],
        batches: tf.data.Dataset,
        inputs: Callable[[Any], tuple] = lambda batch: (batch.images,),
    ):
        self._strategy = strategy
        self._batches = batches
        self._per_replica = 0
        self._inputs = inputs
        self._predict = tf.function(lambda *inputs: strategy.run(predict, args=inputs), autograph=False)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """Yields batches and their predictions, both with NumPy arrays."""
        for batch in self._batches:
            predictions = self._predict_batch(self._inputs(batch))
            yield tf.nest.map_structure(lambda tensor: tensor.numpy(), batch), predictions

    def _predict_batch(self, inputs: tuple) -> Any:
        count, replicas = tf.nest.flatten(inputs)[0].shape[0], self._strategy.num_replicas_in_sync
        # A smaller last batch is filled up: layers fail on no images, and another size would be traced again.
        self._per_replica = max(self._per_replica, -(-count // replicas))
        missing = self._per_replica * replicas - count

        def distribute(field: tf.Tensor) -> Any:
            parts = tf.split(tf.concat([field, tf.repeat(field[-1:], missing, axis=0)], axis=0), replicas)
            return self._strategy.experimental_distribute_values_from_function(
                lambda context: parts[context.replica_id_in_sync_group]
            )

        def join(value) -> np.ndarray:
            return np.concatenate([part.numpy() for part in self._strategy.experimental_local_results(value)])[:count]

        return tf.nest.map_structure(join, self._predict(*tf.nest.map_structure(distribute, inputs)))


class EvaluatedImage(NamedTuple):
    """An image of a data set with its truth and a model's prediction.

    Attributes:
      image_id: Id in the record.
      truth: Label map at the size of the raw image, int32 [height, width].
      prediction: Predicted label map, int32 [height, width].
      scores: Score of each predicted segment by its label, in 0..1: the mean confidence of its pixels in their masks
        times the mean confidence in their classes (architecture section 9), at the size of the network's input. None
        if scores are not computed.
      picture: Draws image, truth and prediction side by side, uint8 [height, width, 3], at the size of the network's
        input.
      losses: Losses of the image by name; None if they are not computed.
      diagnosis: What the rules of the post-processing removed, at the size of the network's input; None if it is not
        counted.
    """

    image_id: str
    truth: np.ndarray
    prediction: np.ndarray
    scores: dict[int, float] | None
    picture: Callable[[], np.ndarray]
    losses: dict[str, float] | None = None
    diagnosis: Diagnosis | None = None


class PanopticImages:
    """The images of a data set with a panoptic model's label maps. Each iteration evaluates all of them.

    Args:
      strategy: Strategy in whose scope the model was built.
      model: `model(images, training=False)` gives `PanopticOutputs`.
      postprocess: `postprocess(outputs, resized_size)` gives a `PanopticPrediction`. On a TPU it runs on the host.
      batches: `EvaluationBatch`es, each image once; not distributed.
      dataset_info: Class table.
      with_scores: Whether to compute the scores of segments.
      loss: Loss of the model's outputs and the targets of a batch, with `terms`; needs no second forward pass. None: no
        losses.
    """

    def __init__(
        self,
        *,
        strategy: tf.distribute.Strategy,
        model: tf.Module,
        postprocess: Callable,
        batches: tf.data.Dataset,
        dataset_info: DatasetInfo,
        with_scores: bool = False,
        loss: Callable[[Any, Any], Any] | None = None,
    ):
        if isinstance(strategy, tf.distribute.TPUStrategy):
            postprocess = functools.partial(_on_host, postprocess)

        def predict(images, resized_size, targets=None):
            outputs = model(images, training=False)
            found = postprocess(outputs, resized_size)
            names = ("panoptic", "slot", "void_reason", *(("instance_score", "semantic_score") if with_scores else ()))
            fields = {name: getattr(found, name) for name in names if getattr(found, name) is not None}
            losses = loss(outputs, targets) if loss else None
            return fields, {name: getattr(losses, name) for name in loss.terms} if loss else {}

        def inputs(batch):
            return (batch.images, batch.resized_size, *((batch.targets,) if loss else ()))

        self._predictions = PredictedBatches(strategy, predict, batches, inputs)
        self._info = dataset_info

    def __iter__(self) -> Iterator[EvaluatedImage]:
        for batch, (fields, losses) in self._predictions:
            for index, image_id in enumerate(batch.image_ids):
                size, raw_size = batch.resized_size[index], batch.raw_size[index]
                truth = batch.label_maps[index][: raw_size[0], : raw_size[1]]
                found = {name: _crop(field[index], size) for name, field in fields.items()}
                label_map = found["panoptic"]
                yield EvaluatedImage(
                    image_id.decode(),
                    truth,
                    transforms.resize_labels(label_map, raw_size).numpy(),
                    _scores(found),
                    functools.partial(self._picture, _crop(batch.images[index], size), truth, label_map),
                    {name: float(values[index]) for name, values in losses.items()} or None,
                    _diagnosis(found, self._info.void),
                )

    def _picture(self, image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
        truth = transforms.resize_labels(truth, prediction.shape).numpy()
        return label_maps.comparison_picture(as_uint8(image), truth, prediction, self._info)


def _on_host(postprocess: Callable, outputs: PanopticOutputs, resized_size: tf.Tensor) -> PanopticPrediction:
    """Runs the post-processing outside of XLA, which cannot compile it."""
    outputs = PanopticOutputs(None, outputs.mask_logits, outputs.class_logits, semantic_logits=None)
    return tf.compat.v1.tpu.outside_compilation(postprocess, outputs, resized_size)


def as_uint8(image: np.ndarray) -> np.ndarray:
    """Rounds pixels, float in 0..255."""
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def _crop(field: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Drops the padding to the right and below (architecture section 9, "undo")."""
    return field[: size[0], : size[1]]


def _scores(found: dict[str, np.ndarray]) -> dict[int, float] | None:
    if "instance_score" not in found:
        return None
    labels, place = compact_ids(found["panoptic"].reshape(-1))
    area = np.bincount(place)
    mask, semantic = (
        np.bincount(place, weights=found[name].reshape(-1)) / area for name in ("instance_score", "semantic_score")
    )
    return dict(zip(labels.tolist(), (mask * semantic).tolist()))


def _diagnosis(found: dict[str, np.ndarray], void: int) -> Diagnosis | None:
    if "void_reason" not in found:
        return None
    segments = different_ids(found["panoptic"])
    return count_masks(found["slot"], found["void_reason"], segments=int((segments != void).sum()))


def panoptic_quality(
    images: Iterable[EvaluatedImage], dataset_info: DatasetInfo, thresholds: Mapping[str, float] | None = None
) -> PanopticQualityResult:
    """Panoptic quality of evaluated images.

    Args:
      images: Images.
      dataset_info: Class table.
      thresholds: Thresholds of the post-processing, which the line about lost masks states.
    """
    metric = PanopticQuality(dataset_info)
    network = NetworkSummary(thresholds or {})
    for image in images:
        metric.update(image.truth, image.prediction)
        network.add(image)
    return network.added_to(metric.result())


class Result(Protocol):
    """Result of an evaluation."""

    @property
    def score(self) -> float:
        """The metric that chooses the best weights, in 0..1."""

    def as_table(self) -> str:
        """A human-readable table."""

    def as_dict(self) -> dict[str, Any]:
        """The metrics in a form that JSON can hold."""

    def curves(self) -> dict[str, float]:
        """Metrics in 0..1 by their tags in TensorBoard."""


class Evaluator(orbit.AbstractEvaluator):
    """Measures the images of a model; Orbit's controller calls `evaluate`.

    Args:
      images: Images with `image_id` and `picture()`, such as `PanopticImages`. Each iteration evaluates them all.
      measure: Consumes the images and returns their `Result`.
      show: Receives the id and the picture, uint8 [height, width, 3], of each of the first images.
      num_shown: Number of pictures to show.

    Attributes:
      on_progress: Receives the number of images evaluated since the last call.
      result: Result of the last evaluation; None before the first one.
      image_count: Number of images of the data set; None before the first evaluation.
    """

    def __init__(
        self,
        images: Iterable[Any],
        measure: Callable[[Iterable[Any]], Result],
        *,
        show: Callable[[str, np.ndarray], None] | None = None,
        num_shown: int = 0,
    ):
        super().__init__()
        self._images = images
        self._measure = measure
        self._show = show
        self._num_shown = num_shown if show else 0
        self.on_progress: Callable[[int], None] = lambda images: None
        self.result: Result | None = None
        self.image_count: int | None = None

    def evaluate(self, num_steps: tf.Tensor) -> dict[str, float]:
        """Evaluates all images, whatever `num_steps` is, and returns the curves of `result`.

        Raises:
          UserError: There are no images.
        """
        del num_steps
        self.result = self._measure(self._watched_images())
        return self.result.curves()

    def _watched_images(self) -> Iterator[Any]:
        count = 0
        for image in self._images:
            if count < self._num_shown:
                self._show(image.image_id, image.picture())
            yield image
            count += 1
            self.on_progress(1)
        if not count:
            raise UserError(
                "the evaluation set has no images: its TFRecords are empty, or all of their records are damaged and "
                "skipped; convert the data again with maxdl-convert, or fix eval_dataset.file_pattern"
            )
        self.image_count = count
