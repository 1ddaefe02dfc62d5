"""Predictions are resized to the raw images; each image counts once, whatever the number of replicas."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.data import transforms
from maxdl_tf.data.panoptic import EvaluationBatch
from maxdl_tf.data.targets import panoptic_targets
from maxdl_tf.drawing import label_maps
from maxdl_tf.errors import UserError
from maxdl_tf.evaluation import comparison, matching, quality
from maxdl_tf.evaluation.comparison import evaluate_images
from maxdl_tf.evaluation.model_images import Evaluator, PanopticImages, panoptic_quality
from maxdl_tf.evaluation.quality import PanopticQuality
from maxdl_tf.losses.panoptic import PanopticLoss
from maxdl_tf.models.postprocess import Postprocessor
from maxdl_tf.structs import PanopticPrediction
from tests.helpers import REPOSITORY
from tests.training import fakes

RAW_SIZES = [(33, 22), (60, 41), (17, 12), (33, 22), (50, 50)]


def see_colors(images, training=False):
    """A model that reads the class off the color; perfect except for the resizing."""
    del training
    colors = tf.constant([[127.5] * 3, *(row.color for row in fakes.DATASET_INFO.classes)])
    distance = tf.reduce_sum((images[:, :, :, tf.newaxis] - tf.cast(colors, tf.float32)) ** 2, axis=-1)
    return tf.argmin(distance, axis=-1, output_type=tf.int32)


def as_prediction(classes, resized_size):
    """Boxes are one instance. Padding is predicted as floor; it must not count."""
    del resized_size
    panoptic = tf.where(classes == 1, 256 + 1, tf.where(classes == 0, 2, classes) * 256)
    return PanopticPrediction(panoptic, classes, classes)


def build_images(strategy=None, **arguments):
    return PanopticImages(
        strategy=strategy or tf.distribute.get_strategy(),
        model=see_colors,
        postprocess=as_prediction,
        batches=fakes.evaluation_batches(RAW_SIZES, batch_size=4),
        dataset_info=fakes.DATASET_INFO,
        **arguments,
    )


def build(images=None, **arguments):
    return Evaluator(
        build_images() if images is None else images,
        lambda found: panoptic_quality(found, fakes.DATASET_INFO),
        **arguments,
    )


def test_every_image_counts_once_and_padding_does_not():
    evaluator = build()
    counts = []
    evaluator.on_progress = counts.append
    curves = evaluator.evaluate(tf.constant(-1))
    assert sum(counts) == 5 and evaluator.image_count == 5
    assert curves["rq/stuff"] == 1.0 and 0.9 < curves["pq/stuff"] <= 1.0
    assert evaluator.result.num_images == 5
    assert curves == evaluator.result.curves()
    assert evaluator.evaluate(tf.constant(-1)) == curves  # The second time too.


def test_the_first_images_are_shown_at_the_size_that_they_have_in_the_crop(monkeypatch):
    drawn, shown = [], []
    monkeypatch.setattr(label_maps, "comparison_picture", lambda *example: drawn.append(example) or example[0])
    build(show=lambda *example: shown.append(example), num_shown=2).evaluate(tf.constant(-1))
    assert [image_id for image_id, _ in shown] == ["0", "1"] and len(drawn) == 2
    for seed, (image, truth, prediction, info) in enumerate(drawn):
        assert image is shown[seed][1] and info is fakes.DATASET_INFO
        assert image.dtype == np.uint8 and truth.shape == prediction.shape == image.shape[:2] == (33, 22)
        np.testing.assert_array_equal(image, fakes.picture(fakes.label_map(seed))[:, :22])
        assert np.mean(truth // 256 == prediction // 256) > 0.9


def test_predictions_are_resized_with_aligned_corners():
    crop = np.int32([[1, 2], [3, 4], [5, 6]])
    raw = transforms.resize_labels(crop, (5, 3)).numpy()
    # Row i of 5 reads row floor(i / 2 + 0.5) of 3, column i of 3 reads column floor(i / 2 + 0.5) of 2.
    np.testing.assert_array_equal(raw, [[1, 2, 2], [3, 4, 4], [3, 4, 4], [5, 6, 6], [5, 6, 6]])
    np.testing.assert_array_equal(transforms.resize_labels(raw, (3, 2)).numpy(), crop)


def test_an_image_is_compared_once_whatever_is_asked(monkeypatch):
    compared = []
    count = lambda *maps: compared.append(maps) or matching.match(*maps)  # noqa: E731
    monkeypatch.setattr(quality, "match", count)
    monkeypatch.setattr(comparison, "match", count)
    measure = functools.partial(evaluate_images, dataset_info=fakes.DATASET_INFO, with_mask_ap=True, num_pictures=2)
    evaluator = Evaluator(build_images(with_scores=True), measure, show=lambda *example: None, num_shown=3)
    evaluator.evaluate(tf.constant(-1))
    assert evaluator.result.mask_ap.ap > 0 and len(evaluator.result.pictures) == 4
    assert len(compared) == len(RAW_SIZES)


def labeled_batches(count: int, batch_size: int) -> tf.data.Dataset:
    """Images that fill the crop, with targets."""
    labels = np.stack([fakes.label_map(seed) for seed in range(count)])
    batch = EvaluationBatch(
        images=np.stack([fakes.picture(one) for one in labels]),
        resized_size=np.full((count, 2), fakes.SIZE, np.int32),
        raw_size=np.full((count, 2), fakes.SIZE, np.int32),
        label_maps=labels,
        image_ids=np.array([str(seed) for seed in range(count)]),
        targets=panoptic_targets(tf.constant(labels), fakes.DATASET_INFO, max_things=4),
    )
    return tf.data.Dataset.from_tensor_slices(batch).batch(batch_size)


def test_losses_come_from_the_same_forward_pass_and_change_no_map():
    tf.random.set_seed(3)
    network, calls = fakes.FakeModel(), []

    def model(images, training):
        calls.append(training)
        return network(images, training=training)

    postprocess = Postprocessor(
        fakes.DATASET_INFO, class_threshold=0.26, pixel_threshold=0.1, thing_area_limit=9, stuff_area_limit=9
    )
    loss = PanopticLoss(fakes.DATASET_INFO)

    def images(**arguments):
        return list(
            PanopticImages(
                strategy=tf.distribute.get_strategy(),
                model=model,
                postprocess=postprocess,
                batches=labeled_batches(5, batch_size=3),
                dataset_info=fakes.DATASET_INFO,
                **arguments,
            )
        )

    without = images()
    assert calls == [False]  # Traced once: one forward pass, in inference mode.
    found = images(loss=loss, with_scores=True)
    assert calls == [False, False]
    assert len({label for image in found for label in np.unique(image.prediction)}) > 1
    (batch,) = labeled_batches(5, batch_size=5)
    expected = loss(network(batch.images, training=False), batch.targets)
    for index, (image, other) in enumerate(zip(found, without)):
        np.testing.assert_array_equal(image.prediction, other.prediction)
        assert image.diagnosis == other.diagnosis and other.losses is None
        assert set(image.losses) == set(loss.terms)
        for name, value in image.losses.items():
            assert value == pytest.approx(float(getattr(expected, name)[index]), rel=1e-5), name
        # All pixels that are not void are left to segments.
        void = fakes.DATASET_INFO.void
        assert image.diagnosis.segment_pixels == (image.prediction != void).sum()
        assert image.diagnosis.segments == len(set(np.unique(image.prediction)) - {void})


def test_an_empty_evaluation_set_is_an_error():
    with pytest.raises(UserError, match=r"the evaluation set has no images: .* fix eval_dataset.file_pattern"):
        build([]).evaluate(tf.constant(-1))
    with pytest.raises(UserError, match="has no images"):
        Evaluator([], functools.partial(evaluate_images, dataset_info=fakes.DATASET_INFO)).evaluate(tf.constant(-1))


_TWO_REPLICAS = """
import json
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
from tests.evaluation.test_model_images import build, build_images
evaluator = build(build_images(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])))
evaluator.evaluate(tf.constant(-1))
print(json.dumps(evaluator.result.as_dict()))
"""


@pytest.mark.slow
def test_two_replicas_give_the_result_of_one():
    """The last batch has one image, so one replica gets none."""
    process = subprocess.run(
        [sys.executable, "-c", _TWO_REPLICAS], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr
    evaluator = build()
    evaluator.evaluate(tf.constant(-1))
    assert json.loads(process.stdout.splitlines()[-1]) == json.loads(json.dumps(evaluator.result.as_dict()))


def test_images_have_their_own_size_and_scores():
    images = list(build_images(with_scores=True))
    assert [image.image_id for image in images] == ["0", "1", "2", "3", "4"]
    metric = PanopticQuality(fakes.DATASET_INFO)
    for size, image in zip(RAW_SIZES, images):
        assert image.truth.shape == image.prediction.shape == size
        metric.update(image.truth, image.prediction)
        # The stand-in's confidences are the class of the pixel, so both means of a segment are its class.
        assert {label: score for label, score in image.scores.items() if label // 256 in (1, 3)} == {
            label: (label // 256) ** 2 for label in image.scores if label // 256 in (1, 3)
        }
        assert set(np.unique(image.prediction)) <= set(image.scores)
    assert metric.result() == evaluate_images(images, fakes.DATASET_INFO).quality
    evaluator = build()
    evaluator.evaluate(tf.constant(-1))
    assert metric.result() == evaluator.result
    assert all(image.scores is None for image in build_images())
