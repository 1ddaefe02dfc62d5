"""The loss of pretraining: classes of whole images."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from maxdl_tf.structs import Metric


class ClassificationLosses(NamedTuple):
    """Loss of each image and whether it is classified correctly; all float32 [batch].

    Attributes:
      total: Cross entropy.
      top1: 1 where no other class is as likely as the image's, else 0.
      top5: 1 where at most four other classes are, else 0.
    """

    total: tf.Tensor
    top1: tf.Tensor
    top5: tf.Tensor


class ClassificationLoss:
    """Softmax cross entropy of logits [batch, classes] and int labels [batch], counted from 0.

    Everything is computed in float32, whatever the type of the logits. A NaN in the logits gives a NaN.

    Args:
      label_smoothing: Share of the target that is spread evenly over all classes, 0..1 (Szegedy et al., CVPR 2016;
        arXiv 1512.00567, section 7).

    Attributes:
      terms: Fields of `ClassificationLosses` that are losses.
      metrics: Fields that get a training curve.
      needs_seed: Whether it draws random numbers.

    Raises:
      ValueError: If `label_smoothing` is out of its range.
    """

    terms = ("total",)
    metrics = (Metric("top1", "accuracy"), Metric("top5", "accuracy"))
    needs_seed = False

    def __init__(self, *, label_smoothing: float = 0.0):
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing {label_smoothing} must be in 0..1; 0.1 is common")
        self._label_smoothing = label_smoothing

    def __call__(self, outputs: tf.Tensor, targets: tf.Tensor) -> ClassificationLosses:
        """The losses of a batch."""
        logits = tf.cast(outputs, tf.float32)
        log_probability = tf.nn.log_softmax(logits)
        of_label = tf.gather(log_probability, targets, axis=1, batch_dims=1)  # [batch]
        of_all = tf.reduce_mean(log_probability, axis=1)  # [batch]
        rank = rank_of_label(logits, targets)
        return ClassificationLosses(
            total=-(1 - self._label_smoothing) * of_label - self._label_smoothing * of_all,
            top1=tf.cast(rank < 1, tf.float32),
            top5=tf.cast(rank < 5, tf.float32),
        )


def rank_of_label(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Number of other classes that are at least as likely as the true one; 0 if the image is classified correctly.

    Ties count against the classifier. Equal logits for all classes, or NaNs, are therefore never correct.

    Args:
      logits: float [batch, classes].
      labels: int [batch], from 0.

    Returns:
      int32 [batch].
    """
    of_label = tf.gather(logits, labels, axis=1, batch_dims=1)
    is_below = logits < of_label[:, tf.newaxis]
    return tf.reduce_sum(tf.cast(~is_below, tf.int32), axis=1) - 1  # 1: the class itself.
