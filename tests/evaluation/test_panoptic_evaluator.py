"""Predictions are brought back to the raw images and each is counted once, whatever the number of replicas."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.evaluation.panoptic_evaluator import PanopticEvaluator, to_raw_size
from maxdl_tf.evaluation.quality import PanopticQuality
from maxdl_tf.structs import PanopticPrediction
from tests.helpers import REPOSITORY
from tests.training import fakes

RAW_SIZES = [(33, 22), (60, 41), (17, 12), (33, 22), (50, 50)]


def see_colors(images, training=False):
    """A model that reads the class off the color: perfect, up to the resizing."""
    del training
    colors = tf.constant([[127.5] * 3, *(row.color for row in fakes.DATASET_INFO.classes)])
    distance = tf.reduce_sum((images[:, :, :, tf.newaxis] - tf.cast(colors, tf.float32)) ** 2, axis=-1)
    return tf.argmin(distance, axis=-1, output_type=tf.int32)


def as_prediction(classes):
    """Boxes are one instance, and padding is predicted as floor: it must not count."""
    panoptic = tf.where(classes == 1, 256 + 1, tf.where(classes == 0, 2, classes) * 256)
    return PanopticPrediction(panoptic, classes, classes)


def build(strategy=None, **arguments):
    return PanopticEvaluator(
        strategy=strategy or tf.distribute.get_strategy(),
        model=see_colors,
        postprocess=as_prediction,
        batches=fakes.evaluation_batches(RAW_SIZES, batch_size=4),
        new_metric=lambda: PanopticQuality(fakes.DATASET_INFO),
        **arguments,
    )


def test_every_image_counts_once_and_padding_does_not():
    evaluator = build()
    counts = []
    evaluator.on_progress = counts.append
    figures = evaluator.evaluate(tf.constant(-1))
    assert counts == [4, 1] and evaluator.image_count == 5
    assert figures["rq/stuff"] == 1.0 and 0.9 < figures["pq/stuff"] <= 1.0
    assert evaluator.result.num_images == 5
    assert figures == evaluator.result.curves()
    assert evaluator.evaluate(tf.constant(-1)) == figures  # The second time too.


def test_the_first_images_are_shown_at_the_size_they_have_in_the_crop():
    shown = []
    build(show=lambda *example: shown.append(example), num_shown=2).evaluate(tf.constant(-1))
    assert [image.shape for _, image, _, _ in shown] == [(33, 22, 3)] * 2
    for seed, (image_id, image, truth, prediction) in enumerate(shown):
        assert image_id == str(seed)
        assert image.dtype == np.uint8 and truth.shape == prediction.shape == image.shape[:2]
        np.testing.assert_array_equal(image, fakes.picture(fakes.label_map(seed))[:, :22])
        assert np.mean(truth // 256 == prediction // 256) > 0.9


def test_to_raw_size_drops_the_padding_and_aligns_the_corners():
    crop = np.zeros((5, 5), np.int32)
    crop[:3, :2] = [[1, 2], [3, 4], [5, 6]]
    raw = to_raw_size(crop, (3, 2), (5, 3))
    # Row i of 5 reads row floor(i / 2 + 0.5) of 3, column i of 3 reads column floor(i / 2 + 0.5) of 2.
    np.testing.assert_array_equal(raw, [[1, 2, 2], [3, 4, 4], [3, 4, 4], [5, 6, 6], [5, 6, 6]])
    np.testing.assert_array_equal(to_raw_size(raw, (5, 3), (3, 2)), [[1, 2], [3, 4], [5, 6]])


_TWO_REPLICAS = """
import json
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
from tests.evaluation.test_panoptic_evaluator import build
evaluator = build(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
evaluator.evaluate(tf.constant(-1))
print(json.dumps(evaluator.result.as_dict()))
"""


@pytest.mark.slow
def test_two_replicas_find_what_one_finds():
    """The last batch has one image, so that one replica gets none."""
    process = subprocess.run(
        [sys.executable, "-c", _TWO_REPLICAS], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr
    evaluator = build()
    evaluator.evaluate(tf.constant(-1))
    assert json.loads(process.stdout.splitlines()[-1]) == json.loads(json.dumps(evaluator.result.as_dict()))


def test_every_image_is_observed_at_its_own_size():
    observed = []
    evaluator = build(observe=observed.append)
    figures = evaluator.evaluate(tf.constant(-1))
    assert figures == build().evaluate(tf.constant(-1))
    assert [found.image_id for found in observed] == ["0", "1", "2", "3", "4"]
    metric = PanopticQuality(fakes.DATASET_INFO)
    for size, found in zip(RAW_SIZES, observed):
        assert found.truth.shape == found.prediction.shape == size
        metric.update(found.truth, found.prediction)
        image, truth, prediction = found.example()
        assert image.shape[:2] == truth.shape == prediction.shape
        # The stand-in's confidences are the pixel's class: of a segment both means are its class.
        assert {label: score for label, score in found.scores.items() if label // 256 in (1, 3)} == {
            label: (label // 256) ** 2 for label in found.scores if label // 256 in (1, 3)
        }
        assert set(np.unique(found.prediction)) <= set(found.scores)
    assert metric.result().as_dict() == evaluator.result.as_dict()
