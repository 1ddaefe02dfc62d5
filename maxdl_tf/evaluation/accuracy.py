"""Top-1 and top-5 accuracy of an image classifier on a data set."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from maxdl_tf.drawing import label_maps
from maxdl_tf.evaluation.model_images import PredictedBatches, as_uint8
from maxdl_tf.losses.classification import rank_of_label


class ClassifiedImage(NamedTuple):
    """An image of a data set with a classifier's prediction.

    Attributes:
      image_id: Id in the record.
      rank: Number of other classes that are at least as likely as the true class.
      picture: Draws the image with its true and its predicted class, uint8 [height, width, 3].
    """

    image_id: str
    rank: int
    picture: Callable[[], np.ndarray]


class ClassifiedImages:
    """The images of a data set with a classifier's predictions. Each iteration evaluates all of them.

    Args:
      strategy: Strategy in whose scope the model was built.
      model: `model(images, training=False)` gives logits, float32 [batch, classes].
      batches: `ClassificationBatch`es, each image once; not distributed.
      class_names: Names of the classes, in the order of the logits.
    """

    def __init__(
        self,
        *,
        strategy: tf.distribute.Strategy,
        model: tf.Module,
        batches: tf.data.Dataset,
        class_names: Sequence[str],
    ):
        self._predictions = PredictedBatches(strategy, lambda images: model(images, training=False), batches)
        self._class_names = class_names

    def __iter__(self) -> Iterator[ClassifiedImage]:
        for batch, logits in self._predictions:
            ranks = rank_of_label(logits, batch.targets).numpy().tolist()
            for image, label, image_id, rank, row in zip(batch.images, batch.targets, batch.image_ids, ranks, logits):
                picture = functools.partial(self._picture, image, label, row.argmax())
                yield ClassifiedImage(image_id.decode(), rank, picture)

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
    """

    top1: float
    top5: float
    num_images: int

    def as_dict(self) -> dict[str, Any]:
        """The attributes in a form that JSON can hold."""
        return asdict(self)

    def as_table(self) -> str:
        """A human-readable table, in percent."""
        return f"accuracy   top-1  top-5  images\n{'':9}{100 * self.top1:7.1f}{100 * self.top5:7.1f}{self.num_images:8}"

    def curves(self) -> dict[str, float]:
        """The accuracies by their tags in TensorBoard."""
        return {"accuracy/top1": self.top1, "accuracy/top5": self.top5}


def accuracy(images: Iterable[ClassifiedImage]) -> AccuracyResult:
    """Accuracy over images; 0 if there are none."""
    ranks = np.array([image.rank for image in images], int)
    count = max(len(ranks), 1)
    return AccuracyResult(float(np.sum(ranks < 1) / count), float(np.sum(ranks < 5) / count), len(ranks))
