"""Batches of classified images: each image has its class, seeded runs repeat, and errors name image and class."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.data import classification
from maxdl_tf.data.classification_transforms import ASPECT_RANGE, evaluation_transform, train_transform
from maxdl_tf.data.examples import encode_classified_example
from maxdl_tf.data.transforms import Augmentation

# The ids have a gap and are not in order; targets are positions in class_order.
INFO = DatasetInfo("test", tuple(SegmentClass(i, f"class {i}", False, (0, 0, 0), i) for i in (7, 1, 3)))
NUM_IMAGES = 9
CROP = (33, 49)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def record(index: int) -> bytes:
    """A record with an image of one color, which encodes its number."""
    size = tuple(np.random.default_rng(index).integers(30, 60, 2))
    pixels = np.full((*size, 3), 20 * index, np.uint8)
    return encode_classified_example(png(pixels), "png", size, (1, 3, 7)[index % 3], "x", f"image_{index}")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(3):
        with tf.io.TFRecordWriter(str(folder / f"train-{shard}.tfrecord")) as writer:
            for index in range(shard, NUM_IMAGES, 3):
                writer.write(record(index))
    return str(folder / "train-*.tfrecord")


def take(dataset, count):
    return list(dataset.take(count).as_numpy_iterator())


def test_training_batches_have_each_image_with_its_class(shards):
    dataset = classification.train_batches(shards, INFO, crop_size=CROP, batch_size=3, seed=0)
    assert dataset.element_spec.images == tf.TensorSpec([3, *CROP, 3], tf.float32)
    batches = take(dataset, 2 * NUM_IMAGES // 3)
    ids = [int(image_id.split(b"_")[1]) for batch in batches for image_id in batch.image_ids]
    assert sorted(ids) == sorted([*range(NUM_IMAGES)] * 2)
    images = np.concatenate([batch.images for batch in batches])
    np.testing.assert_allclose(images, np.multiply(20, ids)[:, None, None, None] * np.ones_like(images), atol=1e-3)
    np.testing.assert_array_equal(np.concatenate([batch.targets for batch in batches]), np.mod(ids, 3))


def test_a_seeded_run_repeats(shards):
    runs = [
        take(classification.train_batches(shards, INFO, crop_size=CROP, batch_size=2, seed=seed), 5)
        for seed in (1, 1, 2)
    ]
    tf.nest.map_structure(np.testing.assert_array_equal, runs[0], runs[1])
    assert [list(batch.image_ids) for batch in runs[0]] != [list(batch.image_ids) for batch in runs[2]]


def test_evaluation_sees_every_image_once(shards):
    batches = list(classification.evaluation_batches(shards, INFO, crop_size=CROP, batch_size=4).as_numpy_iterator())
    assert [len(batch.images) for batch in batches] == [4, 4, 1]
    ids = [image_id.decode() for batch in batches for image_id in batch.image_ids]
    assert sorted(ids) == sorted(f"image_{i}" for i in range(NUM_IMAGES))
    first = classification.evaluation_batches(shards, INFO, crop_size=CROP, batch_size=4, max_images=5)
    assert [image_id.decode() for batch in first.as_numpy_iterator() for image_id in batch.image_ids] == ids[:5]


def test_records_need_only_image_and_label(tmp_path):
    features = {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[png(np.full((40, 40), 9))])),  # Gray.
        "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[3])),
    }
    example = tf.train.Example(features=tf.train.Features(feature=features))
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        writer.write(example.SerializeToString())
    (batch,) = classification.evaluation_batches(str(tmp_path / "*"), INFO, crop_size=CROP, batch_size=1)
    assert batch.targets.numpy() == [1] and batch.image_ids.numpy() == [b""]
    np.testing.assert_allclose(batch.images, np.full((1, *CROP, 3), 9), atol=1e-4)


@pytest.mark.parametrize("label", [0, 2, 8])
def test_a_label_that_the_table_lacks_is_named_with_the_image(tmp_path, label):
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        writer.write(encode_classified_example(png(np.zeros((20, 20, 3))), "png", (20, 20), label, "x", "cat/tom"))
    dataset = classification.train_batches(str(tmp_path / "*"), INFO, crop_size=CROP, batch_size=1)
    expected = rf"image.*cat/tom.*has the label.*{label}.*table of test has 3 classes from 1 to 7"
    with pytest.raises(tf.errors.InvalidArgumentError, match=expected):
        take(dataset, 1)


# --- crops ---


def coordinates(height: int, width: int) -> np.ndarray:
    """Red is the row, green the column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)


def parts(height, width, count=300, **augmentation):
    """(top, bottom, left, right, flipped) of random crops, in pixels of the image, read off their corners."""
    image = tf.constant(coordinates(height, width))
    transform = tf.function(
        lambda seed: train_transform(image, crop_size=(17, 17), augmentation=Augmentation(**augmentation), seed=seed)
    )
    found = []
    for number in range(count):
        crop = transform(tf.constant([5, number], tf.int64)).numpy()
        top, bottom, left, right = crop[0, 0, 0], crop[-1, 0, 0], crop[0, 0, 1], crop[0, -1, 1]
        found.append((top, bottom, min(left, right), max(left, right), left > right))
    return np.array(found)


def test_parts_have_the_requested_areas_and_aspects():
    top, bottom, left, right, flipped = parts(100, 120, max_scale=3.0, min_scale=1.0).T
    heights, widths = bottom - top + 1, right - left + 1
    areas, aspects = heights * widths / (100 * 120), widths / heights
    assert areas.min() > 0.9 / 9 and areas.max() <= 1
    assert areas.min() < 0.15 and areas.max() > 0.8
    assert aspects.min() > 0.95 * ASPECT_RANGE[0] and aspects.max() < 1.05 * ASPECT_RANGE[1]
    assert aspects.min() < 0.8 and aspects.max() > 1.25
    assert 0.4 < np.mean(flipped) < 0.6
    # They reach every border and are centered on average.
    assert top.min() == 0 and bottom.max() == 99 and left.min() == 0 and right.max() == 119
    assert abs(np.mean(top + bottom) / 2 - 49.5) < 4 and abs(np.mean(left + right) / 2 - 59.5) < 5


def test_without_magnification_and_flip_the_whole_image_is_visible():
    np.testing.assert_array_equal(
        parts(90, 100, count=20, min_scale=1.0, max_scale=1.0, flip=False), [[0, 89, 0, 99, 0]] * 20
    )
    # A longer image is cut to the largest part within the range of aspects.
    top, bottom, left, right, _ = parts(60, 200, count=20, min_scale=1.0, max_scale=1.0, flip=False).T
    assert np.all(bottom - top + 1 == 60) and np.all(right - left + 1 == 80)


def test_color_changes_the_image():
    image = tf.constant(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    plain, colored = (
        [
            train_transform(image, crop_size=(33, 33), augmentation=Augmentation(color=color), seed=[1, n]).numpy()
            for n in range(10)
        ]
        for color in (False, True)
    )
    assert sum(np.abs(a - b).max() > 1 for a, b in zip(plain, colored)) >= 3
    assert all(crop.min() >= 0 and crop.max() <= 255 for crop in colored)


@pytest.mark.parametrize("size", [(128, 200), (200, 128), (57, 57), (20, 300)])
def test_evaluation_takes_seven_eighths_of_the_center(size):
    crop = evaluation_transform(tf.constant(coordinates(*size).astype(np.uint8)), (49, 49)).numpy()
    assert crop.shape == (49, 49, 3)
    shorter = min(size)
    for channel, axis in ((0, 0), (1, 1)):
        if size[axis] > 256:
            continue  # Its coordinates do not fit into a byte.
        low, high = crop[..., channel].min(), crop[..., channel].max()
        assert (low + high) / 2 == pytest.approx((size[axis] - 1) / 2, abs=shorter / 49)
        assert high - low == pytest.approx(0.875 * shorter, abs=2.5 * shorter / 49)
