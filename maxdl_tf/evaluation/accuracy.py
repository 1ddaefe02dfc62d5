"""Top-1 and top-5 accuracy of an image classifier on a data set."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from maxdl_tf.drawing import label_maps
from maxdl_tf.evaluation.model_images import PredictedBatches, as_uint8
from maxdl_tf.evaluation.network_summary import losses_curves, losses_in_json, losses_line, mean_losses
from maxdl_tf.losses.classification import rank_of_label


class ClassifiedImage(NamedTuple):
    """An image of a data set with a classifier's prediction.

    Attributes:
      image_id: Id in the record.
      rank: Number of other classes that are at least as likely as the true class.
      picture: Draws the image with its true and its predicted class, uint8 [height, width, 3].
      losses: Losses of the image by name; None if they are not computed.
    """

    image_id: str
    rank: int
    picture: Callable[[], np.ndarray]
    losses: dict[str, float] | None = None


class ClassifiedImages:
    """The images of a data set with a classifier's predictions. Each iteration evaluates all of them.

    Args:
      strategy: Strategy in whose scope the model was built.
      model: `model(images, training=False)` gives logits, float32 [batch, classes].
      batches: `ClassificationBatch`es, each image once; not distributed.
      class_names: Names of the classes, in the order of the logits.
      loss: Loss of logits and the targets of a batch, with `total`. None: no loss is computed.
    """

    def __init__(
        self,
        *,
        strategy: tf.distribute.Strategy,
        model: tf.Module,
        batches: tf.data.Dataset,
        class_names: Sequence[str],
        loss: Callable[[Any, Any], Any] | None = None,
    ):
        def predict(images, targets):
            logits = model(images, training=False)
            return (logits, loss(logits, targets).total) if loss else (logits,)

        self._predictions = PredictedBatches(
            strategy, predict, batches, inputs=lambda batch: (batch.images, batch.targets)
        )
        self._class_names = class_names

    def __iter__(self) -> Iterator[ClassifiedImage]:
        for batch, (logits, *losses) in self._predictions:
            ranks = rank_of_label(logits, batch.targets).numpy().tolist()
            for index, (image, label, image_id) in enumerate(zip(batch.images, batch.targets, batch.image_ids)):
                picture = functools.partial(self._picture, image, label, logits[index].argmax())
                total = {"total": float(losses[0][index])} if losses else None
                yield ClassifiedImage(image_id.decode(), ranks[index], picture, total)

    def _picture(self, image: np.ndarray, label: int, prediction: int) -> np.ndarray:
        title = f"{self._class_names[label]}: {self._class_names[prediction]}"
        return label_maps.side_by_side([as_uint8(image)], [title])


@dataclass(frozen=True)
class AccuracyResult:
    """Accuracy over a data set.

    Attributes:
      top1: Share of images whose true class is the most likely one, in 0..1.
      top5: Share of images whose true class is among the five most likely ones; 1 if there are at most five classes.
      num_images: Number of images.
      losses: Means of the losses over the images by name; empty if none are computed.
    """

    top1: float
    top5: float
    num_images: int
    losses: Mapping[str, float] = field(default_factory=dict)

    @property
    def score(self) -> float:
        return self.top1

    def as_dict(self) -> dict[str, Any]:
        """The metrics in a form that JSON can hold; accuracies in 0..1."""
        metrics = {"unit": "fraction", **asdict(self)}
        losses = metrics.pop("losses")
        return {**metrics, "losses": losses_in_json(losses)} if losses else metrics

    def as_table(self) -> str:
        """A human-readable table, in percent, and a line with the loss."""
        head = "accuracy   top-1  top-5  images  (top-1, top-5 in %)"
        lines = [head, f"{'':9}{100 * self.top1:7.1f}{100 * self.top5:7.1f}{self.num_images:8}"]
        return "\n".join([*lines, losses_line(self.losses)] if self.losses else lines)

    def curves(self) -> dict[str, float]:
        """The accuracies and losses by their tags in TensorBoard."""
        return {"accuracy/top1": self.top1, "accuracy/top5": self.top5, **losses_curves(self.losses)}


def accuracy(images: Iterable[ClassifiedImage]) -> AccuracyResult:
    """Accuracy over images; 0 if there are none."""
    found = [(image.rank, image.losses) for image in images]
    ranks = np.array([rank for rank, _ in found], int)
    count = max(len(ranks), 1)
    top1, top5 = (float(np.sum(ranks < best) / count) for best in (1, 5))
    return AccuracyResult(top1, top5, len(ranks), mean_losses([losses for _, losses in found if losses]))
