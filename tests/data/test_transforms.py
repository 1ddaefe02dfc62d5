"""Resizing, scaling, padding and cropping equal the goldens, and random crops keep their invariants."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.data import transforms
from maxdl_tf.data.copy_paste import CopyPaste
from maxdl_tf.data.transforms import Augmentation
from tests.helpers import shared_golden


def test_resized_sizes_equal_the_reference():
    sizes = shared_golden("f_eval_samples_129").group("size")
    assert sizes
    for key, expected in sizes.items():
        crop, raw = key.split("/")
        raw_size = [int(side) for side in raw.split("x")]
        np.testing.assert_array_equal(transforms.resized_size(raw_size, (int(crop), int(crop))), expected, err_msg=key)


def test_an_image_that_is_not_enlarged_keeps_its_size_and_a_larger_one_shrinks():
    crop_size = (65, 129)
    for size in ([64, 128], [65, 129], [20, 30], [65, 10]):
        np.testing.assert_array_equal(transforms.resized_size(size, crop_size, enlarge=False), size)
    np.testing.assert_array_equal(transforms.resized_size([130, 258], crop_size, enlarge=False), [65, 129])
    image, label_map = _coordinates(64, 128)
    crop, size = transforms.evaluation_transform(image, crop_size, enlarge=False)
    np.testing.assert_array_equal(size, [64, 128])
    np.testing.assert_array_equal(crop[:64, :128], image)
    options = {"min_scale": 1, "max_scale": 1, "flip": False}
    ((crop, crop_labels),) = _crops(image, label_map, 1, crop_size=crop_size, enlarge=False, **options)
    is_image = crop[..., 2] == 200
    np.testing.assert_array_equal(crop[is_image], np.reshape(image, [-1, 3]))
    np.testing.assert_array_equal(crop_labels[is_image], np.ravel(label_map))


@pytest.mark.parametrize("crop_size", [(129, 97), (65, 193)])
def test_a_resized_image_fills_one_side_and_keeps_its_aspect(crop_size):
    for height, width in np.random.default_rng(0).integers(20, 900, [50, 2]):
        size = transforms.resized_size([height, width], crop_size).numpy()
        room = np.array(crop_size) - size
        assert room.min() in (0, 1)
        exact = np.array([height, width]) * min(np.array(crop_size) / [height, width])
        assert np.all(abs(size - exact) <= 2)


@pytest.mark.parametrize("case", range(4))
def test_evaluation_samples_equal_the_reference(case):
    golden = shared_golden("f_eval_samples_129")
    image, size = transforms.evaluation_transform(tf.constant(golden[f"eval{case}/in/image"]), (129, 129))
    expected = golden[f"eval{case}/out/resized_image"]
    np.testing.assert_array_equal(size, expected.shape[:2])
    np.testing.assert_array_equal(image[: size[0], : size[1]], expected)
    np.testing.assert_allclose(image, golden[f"eval{case}/out/image"], rtol=1e-6)  # The reference pads 0 after - 127.5.
    label_map = transforms.resize_labels(tf.constant(golden[f"eval{case}/in/panoptic"]), size)
    label_map = transforms.pad_labels(label_map, (129, 129), void=0)
    np.testing.assert_array_equal(label_map, golden[f"eval{case}/out/panoptic_gt"])


def test_scales_equal_those_of_the_reference():
    golden = shared_golden("f_train_ops")
    np.testing.assert_array_equal(Augmentation().scales(), golden["scale_factors"])
    np.testing.assert_array_equal(Augmentation(min_scale=0.8, max_scale=0.8).scales(), np.float32([0.8]))


@pytest.mark.parametrize("low, high", [(0.3, 1.7), (0.5, 2)])
def test_scales_of_a_pasted_image_equal_those_of_the_reference(low, high):
    golden = shared_golden("k_copy_paste")
    augmentation = Augmentation(min_scale=low, max_scale=high, copy_paste=CopyPaste())
    for factor, scales in (("1", augmentation.scales()), ("0.5", augmentation.of_pasted().scales())):
        np.testing.assert_array_equal(scales, golden[f"scales/{low}_{high}_x{factor}"])


def test_scaled_sizes_and_images_equal_the_reference():
    golden = shared_golden("f_train_ops")
    image, label_map = tf.constant(golden["in/image"], tf.float32), tf.constant(golden["in/panoptic"])
    scales = Augmentation().scales()
    for scale in scales:
        expected = golden[f"tensor_scale{scale:.4f}/size"]
        np.testing.assert_array_equal(transforms.scaled_size(label_map.shape, scale), expected)
    for scale in (0.5, 0.7, 0.8, 1.5):
        size = transforms.scaled_size(label_map.shape, np.float32(scale))
        np.testing.assert_array_equal(size, golden[f"scale{scale}/size"])
        np.testing.assert_allclose(transforms.resize_image(image, size), golden[f"scale{scale}/image"], atol=1e-4)
        np.testing.assert_array_equal(transforms.resize_labels(label_map, size), golden[f"scale{scale}/label"][..., 0])


def test_padding_at_an_offset_equals_the_reference():
    golden = shared_golden("f_train_ops")
    image, label_map = tf.constant(golden["in/image"], tf.float32), tf.constant(golden["in/panoptic"])
    np.testing.assert_array_equal(transforms.pad_image(image, (150, 140), (5, 9)), golden["pad_5_9_150_140/image"])
    np.testing.assert_array_equal(
        transforms.pad_labels(label_map, (150, 140), 0, (5, 9)), golden["pad_5_9_150_140/label"][..., 0]
    )


# --- random crops of an image whose pixels encode their position ---

_VOID = 7 * 256


def _coordinates(height: int, width: int):
    y, x = np.mgrid[:height, :width]
    label_map = (y * 100 + x).astype(np.int32)
    image = np.stack([y, x, np.full_like(x, 200)], axis=-1).astype(np.uint8)
    return tf.constant(image), tf.constant(label_map)


def _crops(image, label_map, count: int, crop_size=(33, 49), enlarge=True, tile=0, **augmentation):
    transform = tf.function(
        lambda index: transforms.train_transform(
            image,
            label_map,
            crop_size=crop_size,
            augmentation=Augmentation(**augmentation),
            void=_VOID,
            enlarge=enlarge,
            tile=tile,
            seed=tf.stack([tf.constant(5, tf.int64), index]),
        )
    )
    return [tuple(part.numpy() for part in transform(tf.constant(index, tf.int64))) for index in range(count)]


def test_crops_touch_every_border():
    image, label_map = _coordinates(33, 49)
    crops = _crops(image, label_map, 150, min_scale=0.9, max_scale=0.9, flip=False)
    height, width = transforms.scaled_size([33, 49], np.float32(0.9)).numpy()
    offsets = np.array([np.argwhere(label_map != _VOID).min(axis=0) for _, label_map in crops])
    for axis, room in enumerate((33 - height, 49 - width)):
        assert set(offsets[:, axis]) == set(range(room + 1))
    crops = _crops(image, label_map, 150, min_scale=1.1, max_scale=1.1, flip=False)
    corners = np.array([label_map[0, 0] for _, label_map in crops])
    ends = np.array([label_map[-1, -1] for _, label_map in crops])
    assert corners.min() == 0 and ends.max() == 32 * 100 + 48


def test_image_and_labels_stay_together():
    image, label_map = _coordinates(33, 49)
    flipped = set()
    for crop, crop_labels in _crops(image, label_map, 60):
        is_image = crop_labels != _VOID
        np.testing.assert_array_equal(crop[~is_image], np.full([np.sum(~is_image), 3], 127.5))
        assert np.all(crop[is_image, 2] > 199.9)
        # The nearest pixel's coordinates are less than one from the interpolated ones.
        assert abs(crop[is_image, 0] - crop_labels[is_image] // 100).max() <= 1
        assert abs(crop[is_image, 1] - crop_labels[is_image] % 100).max() <= 1
        rows = np.flatnonzero(is_image.any(axis=1))
        row = crop_labels[rows[0]][is_image[rows[0]]]
        flipped.add(bool(row[0] > row[-1]))
    assert flipped == {True, False}


@pytest.mark.parametrize("scale, tile", [(2, 0), (1, 16.5), (2, 33)])
def test_a_crop_at_scale_two_is_a_quarter_of_the_image(scale, tile):
    image, label_map = _coordinates(33, 49)
    options = {"min_scale": scale, "max_scale": scale, "flip": False, "tile": tile}
    for crop, crop_labels in _crops(image, label_map, 20, **options):
        rows, columns = np.unique(crop_labels // 100), np.unique(crop_labels % 100)
        assert abs(len(rows) - 33 / 2) <= 1.5 and abs(len(columns) - 49 / 2) <= 1.5
        assert np.ptp(rows) == len(rows) - 1 and np.ptp(columns) == len(columns) - 1
        for channel, positions in enumerate((crop_labels // 100, crop_labels % 100)):
            assert abs(crop[..., channel] - positions).max() <= 0.52


@pytest.mark.parametrize("size", [(132, 99), (40, 90), (33, 25)])
def test_a_tile_of_the_size_of_the_crop_has_the_pixels_of_the_image(size):
    image, label_map = _coordinates(*size)
    options = {"crop_size": (25, 25), "tile": 25, "min_scale": 1, "max_scale": 1, "flip": False}
    (crop, crop_labels), *_ = _crops(image, label_map, 1, **options)
    assert len(np.unique(crop_labels)) == 25 * 25
    np.testing.assert_array_equal(crop[..., 0], crop_labels // 100)


def test_rotations_turn_image_and_labels_in_all_four_ways():
    image, label_map = _coordinates(25, 25)
    options = {"crop_size": (25, 25), "min_scale": 1, "max_scale": 1, "flip": False, "rotate": True}
    corners = set()
    for crop, crop_labels in _crops(image, label_map, 20, **options):
        np.testing.assert_array_equal(crop[..., 0] * 100 + crop[..., 1], crop_labels)
        corners.add(int(crop_labels[0, 0]))
        assert sorted(np.ravel(crop_labels)) == sorted(np.ravel(label_map))
    assert corners == {0, 24, 2400, 2424}


def test_contrast_keeps_the_mean_and_changes_distances_within_its_bounds():
    image, label_map = _coordinates(25, 25)
    options = {"crop_size": (25, 25), "min_scale": 1, "max_scale": 1, "flip": False}
    factors = [
        np.std(crop[..., 0]) / np.std(image.numpy()[..., 0])
        for crop, _ in _crops(image + tf.constant([100, 100, 0], tf.uint8), label_map, 30, contrast=0.3, **options)
    ]
    assert 0.7 <= min(factors) < 0.8 and 1.2 < max(factors) <= 1.3


def test_without_randomness_a_crop_is_the_evaluation_transform():
    image, label_map = _coordinates(66, 98)
    (crop, crop_labels), *_ = _crops(image, label_map, 1, crop_size=(33, 49), min_scale=1, max_scale=1, flip=False)
    expected, size = transforms.evaluation_transform(image, (33, 49))
    np.testing.assert_array_equal(crop, expected)
    np.testing.assert_array_equal(crop_labels, transforms.resize_labels(label_map, size))


def test_color_changes_the_image_and_not_the_labels():
    image, label_map = _coordinates(33, 49)
    plain = _crops(image, label_map, 30, flip=False)
    colored = _crops(image, label_map, 30, flip=False, color=True)
    for (_, plain_labels), (_, labels) in zip(plain, colored):
        np.testing.assert_array_equal(plain_labels, labels)
    # Truncation changes values by less than one; the policy by more, in a good share of images.
    changed = [abs(a - b).max() > 1 for (a, _), (b, _) in zip(plain, colored)]
    assert 5 < sum(changed) < 25
