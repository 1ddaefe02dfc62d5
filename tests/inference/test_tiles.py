"""Tiles are joined to the segments that the whole image has."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.data import transforms
from maxdl_tf.errors import UserError
from maxdl_tf.inference.prediction import Prediction, Segment
from maxdl_tf.inference.segmenter import ImageSegmenter
from maxdl_tf.inference.tiles import TiledPredictor, spans, with_room_for_instances
from maxdl_tf.panoptic_ids import color_to_id, id_to_color
from tests.inference import color_network

INFO = DatasetInfo(
    "cells",
    (
        SegmentClass(1, "cell", True, (255, 0, 0), 1),
        SegmentClass(2, "nerve", True, (0, 255, 0), 2),
        SegmentClass(3, "tissue", False, (0, 0, 255), 3),
    ),
    label_divisor=64,
)
WIDE = with_room_for_instances(INFO)


def listed(label_map, info, score=0.5):
    """The segments of a label map, by definition."""
    segments = []
    for label in np.unique(label_map).tolist():
        if label != info.void:
            rows, columns = np.nonzero(label_map == label)
            class_id = label // info.label_divisor
            box = (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
            bbox = tuple(int(side) for side in box)
            segments.append(Segment(label, class_id, info.by_id[class_id].is_thing, score, len(rows), bbox))
    return segments


class Oracle:
    """Sees the truth, which is the color of the pixels, and numbers the things of each tile anew.

    Args:
      change: Changes a tile's label map; also receives the tile's number.
    """

    dataset_info = INFO

    def __init__(self, change=lambda label_map, tile: None):
        self.rng = np.random.default_rng(1)
        self.change = change
        self.tiles = []

    def __call__(self, pixels):
        truth = color_to_id(pixels)
        label_map = np.zeros_like(truth)
        for class_id in (1, 2):
            things = np.unique(truth[truth // WIDE.label_divisor == class_id])
            for number, label in enumerate(self.rng.permutation(things), start=1):
                label_map[truth == label] = class_id * INFO.label_divisor + number
        label_map[truth // WIDE.label_divisor == 3] = 3 * INFO.label_divisor
        self.change(label_map, len(self.tiles))
        self.tiles.append(pixels.shape[:2])
        return Prediction(label_map, listed(label_map, INFO), pixels, INFO)


def scene(height, width, seed=0):
    """Disks of two classes on tissue with void, as a label map of WIDE."""
    rng = np.random.default_rng(seed)
    label_map = np.full((height, width), 3 * WIDE.label_divisor, np.int32)
    label_map[rng.random((height, width)) < 0.02] = WIDE.void
    rows, columns = np.ogrid[:height, :width]
    for instance in range(1, 60):
        row, column, radius = rng.integers(height), rng.integers(width), rng.integers(3, 9)
        disk = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
        label_map[disk] = rng.integers(1, 3) * WIDE.label_divisor + instance
    return label_map


def assert_same_segmentation(found, truth):
    """Equal up to the numbers of the things."""
    pairs = np.unique(np.stack([found.reshape(-1), truth.reshape(-1)]), axis=1)
    assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]
    np.testing.assert_array_equal(pairs[0] // WIDE.label_divisor, pairs[1] // WIDE.label_divisor)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 56, 57, 200])
@pytest.mark.parametrize("overlap", [0, 8, 31])
def test_each_pixel_is_decided_by_one_tile_that_sees_it(length, overlap):
    found = spans(length, 32, overlap)
    assert [pixel for span in found for pixel in range(span.own_start, span.own_end)] == list(range(length))
    for span, following in zip(found, found[1:]):
        assert span.end - following.start >= overlap
    for span in found:
        assert 0 <= span.start <= span.own_start <= span.own_end <= span.end <= length
        assert span.end - span.start == min(32, length)


@pytest.mark.parametrize("size", [(150, 150), (150, 40), (40, 31), (97, 130)])
@pytest.mark.parametrize("seed", range(3))
def test_tiles_give_the_segmentation_of_the_whole(size, seed):
    truth = scene(*size, seed)
    oracle = Oracle()
    prediction = TiledPredictor(oracle, tile=48, overlap=20)(id_to_color(truth))
    assert_same_segmentation(prediction.label_map, truth)
    assert prediction.segments == listed(prediction.label_map, WIDE)
    assert max(max(shape) for shape in oracle.tiles) <= 48
    numbers = {}
    for segment in prediction.segments:
        numbers.setdefault(segment.class_id, []).append(segment.id % WIDE.label_divisor)
    assert numbers[1] == list(range(1, len(numbers[1]) + 1)) and numbers[3] == [0]


def test_a_thing_longer_than_a_tile_is_whole():
    truth = np.full((40, 300), 3 * WIDE.label_divisor, np.int32)
    truth[10:20] = 2 * WIDE.label_divisor + 1
    prediction = TiledPredictor(Oracle(), tile=40, overlap=10)(id_to_color(truth))
    assert_same_segmentation(prediction.label_map, truth)


def test_the_rest_of_a_thing_that_its_tile_loses_is_void():
    """Two tiles of 40 columns meet in the middle of 70. The left one sees a thing that the right one does not."""

    def lose(label_map, tile):
        if tile:
            label_map[label_map // INFO.label_divisor == 1] = 3 * INFO.label_divisor

    for columns, is_kept in ((slice(32, 40), False), (slice(30, 37), True)):
        truth = np.full((40, 70), 3 * WIDE.label_divisor, np.int32)
        truth[10:20, columns] = 1 * WIDE.label_divisor + 1
        prediction = TiledPredictor(Oracle(lose), tile=40, overlap=10)(id_to_color(truth))
        own = slice(columns.start, 35)
        want = np.full((40, 70), 3 * WIDE.label_divisor, np.int32)
        want[10:20, own] = 1 * WIDE.label_divisor + 1 if is_kept else WIDE.void
        np.testing.assert_array_equal(prediction.label_map, want)


def test_things_of_other_classes_and_shapes_are_not_joined():
    """The second tile calls the thing a nerve, or sees a third of it."""
    truth = np.full((40, 70), 3 * WIDE.label_divisor, np.int32)
    truth[10:20, 20:50] = 1 * WIDE.label_divisor + 1

    def rename(label_map, tile):
        if tile:
            label_map[label_map // INFO.label_divisor == 1] = 2 * INFO.label_divisor + 1

    def shrink(label_map, tile):
        if tile:
            label_map[:17][label_map[:17] // INFO.label_divisor == 1] = 3 * INFO.label_divisor

    for change, classes in ((rename, [1, 2]), (shrink, [1, 1])):
        prediction = TiledPredictor(Oracle(change), tile=40, overlap=10)(id_to_color(truth))
        assert [segment.class_id for segment in prediction.segments if segment.is_thing] == classes


def test_scores_are_means_over_the_pixels():
    class Unsure(Oracle):
        def __call__(self, pixels):
            prediction = super().__call__(pixels)
            score = 0.2 if len(self.tiles) == 1 else 0.6
            return prediction._replace(segments=listed(prediction.label_map, INFO, score))

    truth = np.full((40, 70), 1 * WIDE.label_divisor + 1, np.int32)
    prediction = TiledPredictor(Unsure(), tile=40, overlap=10)(id_to_color(truth))
    (segment,) = prediction.segments
    assert segment.score == pytest.approx((35 * 0.2 + 35 * 0.6) / 70) and segment.area == 40 * 70


def test_label_divisors_leave_room_and_fit_into_pngs():
    assert WIDE.label_divisor == 10**6 and WIDE.classes == INFO.classes
    many = DatasetInfo("many", tuple(SegmentClass(i, str(i), True, (0, 0, 0), i) for i in range(1, 201)), 1000)
    assert with_room_for_instances(many).label_divisor == 10_000
    cells = ndimage.label(np.arange(80) % 2)[0]
    few = TiledPredictor(Oracle(), tile=40, overlap=10)
    few.dataset_info = INFO
    truth = np.where(cells > 0, WIDE.label_divisor + cells, 3 * WIDE.label_divisor)[np.newaxis].repeat(9, axis=0)
    assert len(few(id_to_color(truth)).segments) == 41  # 40 cells and tissue, with numbers up to 63.


def test_more_things_than_numbers_are_refused():
    truth = np.arange(8 * 20).reshape(8, 20).repeat(2, axis=0).repeat(4, axis=1) + WIDE.label_divisor
    tiled = TiledPredictor(Oracle(), tile=40, overlap=8)
    tiled.dataset_info = INFO
    with pytest.raises(
        UserError, match="more than 63 things of class cell, and label maps of cells cannot number more"
    ):
        tiled(id_to_color(truth))


@pytest.mark.parametrize("overlap", [-1, 32])
def test_an_overlap_of_a_whole_tile_is_refused(overlap):
    with pytest.raises(ValueError, match=f"overlap {overlap} must be at least 0 and less than the tile, 32"):
        TiledPredictor(Oracle(), tile=32, overlap=overlap)


def test_each_tile_is_counted():
    counted = []
    tiled = TiledPredictor(Oracle(), tile=40, overlap=10)
    tiled.on_tile = lambda *counts: counted.append(counts)
    tiled(np.zeros((30, 90, 3), np.uint8))
    assert counted == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("image_side, tile", [(64, 32), (64, 40), (160, 128), (256, 107)])
def test_a_tile_shows_things_as_large_as_training_for_it(image_side, tile):
    """In training and prediction, a square covers as many pixels of the network's input."""
    image = np.zeros((image_side, image_side, 3), np.uint8)
    side = image_side // 8
    start = (image_side - side) // 2
    image[start : start + side, start : start + side] = 255
    crop_size = (65, 65)
    augmentation = transforms.Augmentation(min_scale=1, max_scale=1)
    arguments = {"crop_size": crop_size, "augmentation": augmentation, "void": 0, "tile": tile}
    trained = [
        transforms.train_transform(image, image[..., 0].astype(np.int32), seed=(1, draw), **arguments)[0].numpy()
        for draw in range(20)  # Random places, of which some contain the square.
    ]
    seen = []

    class Network(color_network.ColorNetwork):
        def call(self, images, training=False):
            seen.append(images[0].numpy())
            return super().call(images, training)

    segmenter = ImageSegmenter(Network(), color_network.postprocessor(), crop_size)

    class Tiles:
        dataset_info = color_network.INFO

        def __call__(self, pixels):
            return Prediction(segmenter(tf.constant(pixels)).panoptic.numpy(), [], pixels, self.dataset_info)

    TiledPredictor(Tiles(), tile=tile, overlap=tile // 2)(image)
    want = side * 65 / tile
    for inputs in (trained, seen):
        bright = max((pixels[..., 0] > 127.5 for pixels in inputs), key=np.sum)
        height, width = bright.any(axis=1).sum(), bright.any(axis=0).sum()
        assert abs(height - want) <= 1.1 and abs(width - want) <= 1.1
