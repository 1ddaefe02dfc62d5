"""Top-1 and top-5 accuracy of a classifier of images."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import tensorflow as tf

from maxdl_tf.structs import Tensor


def rank_of_label(logits: Tensor, labels: Tensor) -> Tensor:
    """How many other classes are at least as likely as the true one: 0 where the image is classified rightly.

    Ties count against the classifier, so that one that says the same of all classes is never right, and neither is one
    that says NaN.

    Args:
      logits: float [batch, classes].
      labels: int [batch], from 0.

    Returns:
      int32 [batch].
    """
    of_label = tf.gather(logits, labels, axis=1, batch_dims=1)
    is_below = logits < of_label[:, tf.newaxis]
    return tf.reduce_sum(tf.cast(~is_below, tf.int32), axis=1) - 1  # 1: the class itself.


@dataclass(frozen=True)
class AccuracyResult:
    """Accuracy over a data set.

    Attributes:
      top1: Share of the images of which the true class is the likeliest, 0..1.
      top5: Share of those of which it is one of the five likeliest; always 1 where there are no more than five.
      num_images: How many images were classified.
    """

    top1: float
    top5: float
    num_images: int

    def as_dict(self) -> dict:
        """For JSON; the keys are the names of the attributes."""
        return asdict(self)

    def as_table(self) -> str:
        """In percent, for people."""
        return f"accuracy   top-1  top-5  images\n{'':9}{100 * self.top1:7.1f}{100 * self.top5:7.1f}{self.num_images:8}"

    def curves(self) -> dict[str, float]:
        """The figures under TensorBoard's tags."""
        return {"accuracy/top1": self.top1, "accuracy/top5": self.top5}


class Accuracy:
    """Counts images that are classified rightly."""

    def __init__(self):
        self._ranks: list[np.ndarray] = []

    def update(self, labels: np.ndarray, logits: np.ndarray) -> None:
        """Adds a batch.

        Args:
          labels: int [batch], from 0.
          logits: float [batch, classes].
        """
        self._ranks.append(rank_of_label(logits, labels).numpy())

    def result(self) -> AccuracyResult:
        """The accuracy over all images so far; 0 where there are none."""
        ranks = np.concatenate([np.zeros(0, np.int32), *self._ranks])
        count = max(len(ranks), 1)
        return AccuracyResult(float(np.sum(ranks < 1) / count), float(np.sum(ranks < 5) / count), len(ranks))
