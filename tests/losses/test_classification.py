"""Cross entropy and accuracies of whole images."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.data.classification import ClassificationBatch
from maxdl_tf.evaluation.accuracy import ClassifiedImages, accuracy
from maxdl_tf.losses.classification import ClassificationLoss

LOGITS = np.random.default_rng(2).normal(size=(6, 12)).astype(np.float32)
LABELS = np.array([0, 3, 7, 7, 1, 2], np.int32)


def measure(logits, labels, batch_size=4, loss=None):
    """Accuracy of a model that gives these logits."""
    batch = ClassificationBatch(logits, labels, np.array([f"image{i}" for i in range(len(labels))]))
    images = ClassifiedImages(
        strategy=tf.distribute.get_strategy(),
        model=lambda images, training: images,
        batches=tf.data.Dataset.from_tensor_slices(batch).batch(batch_size),
        class_names=[f"class {i}" for i in range(12)],
        loss=loss,
    )
    return accuracy(images)


def test_cross_entropy_is_that_of_the_smoothed_distribution():
    probability = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    for smoothing in (0.0, 0.1, 1.0):
        target = (1 - smoothing) * np.eye(12)[LABELS] + smoothing / 12
        wanted = -(target * np.log(probability)).sum(axis=1)
        losses = ClassificationLoss(label_smoothing=smoothing)(tf.constant(LOGITS), tf.constant(LABELS))
        np.testing.assert_allclose(losses.total, wanted, rtol=1e-5)
    with pytest.raises(ValueError, match=r"label_smoothing 1\.5"):
        ClassificationLoss(label_smoothing=1.5)


def test_accuracies_of_the_loss_and_of_the_metric_agree_with_sorting():
    order = np.argsort(-LOGITS, axis=1)
    top1 = order[:, 0] == LABELS
    top5 = (order[:, :5] == LABELS[:, np.newaxis]).any(axis=1)
    assert 0 < top5.mean() < 1
    losses = ClassificationLoss()(tf.constant(LOGITS), tf.constant(LABELS))
    np.testing.assert_array_equal(losses.top1, top1)
    np.testing.assert_array_equal(losses.top5, top5)
    result = measure(LOGITS, LABELS)
    assert (result.top1, result.top5, result.num_images) == (top1.mean(), top5.mean(), 6)
    assert result.as_dict() == {"unit": "fraction", "top1": top1.mean(), "top5": top5.mean(), "num_images": 6}
    assert result.curves() == {"accuracy/top1": top1.mean(), "accuracy/top5": top5.mean()}
    assert result.as_table().split()[-3:] == [f"{100 * top1.mean():.1f}", f"{100 * top5.mean():.1f}", "6"]


def test_an_evaluation_has_the_mean_loss_of_the_images():
    """Each image counts once, although the last batch is filled up."""
    loss = ClassificationLoss(label_smoothing=0.1)
    result = measure(LOGITS, LABELS, loss=loss)
    mean = float(np.mean(loss(tf.constant(LOGITS), tf.constant(LABELS)).total))
    assert result.as_dict()["losses"] == {"total": pytest.approx(mean, rel=1e-6)}
    assert result.as_table().splitlines()[-1] == f"loss {mean:.4g}"
    assert result.curves()["losses/total"] == result.losses["total"]


@pytest.mark.parametrize("logit", [0.0, np.nan])
def test_a_model_that_says_the_same_of_all_classes_is_never_right(logit):
    logits = np.full((4, 12), logit, np.float32)
    result = measure(logits, LABELS[:4])
    assert (result.top1, result.top5) == (0, 0)


def test_a_nan_stays_one():
    logits = tf.constant(np.where(np.arange(6)[:, np.newaxis] == 2, np.nan, LOGITS))
    np.testing.assert_array_equal(np.isnan(ClassificationLoss()(logits, tf.constant(LABELS)).total), np.arange(6) == 2)
