"""Segmentations of COCO instances: all forms give the masks of pycocotools, and hostile ones are refused."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maxdl_tf.data_gen.coco_masks import decode_mask
from maxdl_tf.errors import UserError

HEIGHT, WIDTH = 12, 17
POLYGON = [2, 1, 14.5, 2, 12, 9, 3, 10]
POINTS = [[2, 1], [14.5, 2], [12, 9], [3, 10]]
TRIANGLE = [0, 0, 4, 0, 0, 4]


@pytest.mark.parametrize(
    "segmentation, polygons",
    [
        ([POLYGON], [POLYGON]),
        (POLYGON, [POLYGON]),
        (POINTS, [POLYGON]),
        ([POINTS], [POLYGON]),
        ([POLYGON, TRIANGLE], [POLYGON, TRIANGLE]),
        ([[str(number) for number in POLYGON]], [POLYGON]),
    ],
    ids=["polygons", "flat", "points", "polygons of points", "two", "text"],
)
def test_polygons(segmentation, polygons):
    rle = coco_mask.merge(coco_mask.frPyObjects([[float(n) for n in polygon] for polygon in polygons], HEIGHT, WIDTH))
    expected = coco_mask.decode(rle).astype(bool)
    mask = decode_mask(segmentation, HEIGHT, WIDTH)
    np.testing.assert_array_equal(mask, expected)
    assert mask.dtype == bool and 40 < mask.sum() < 140


def test_rles_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = rng.integers(1, 200, 2)
        pixels = rng.random((height, width)) < rng.choice([0, 0.001, 0.1, 0.5, 1])
        rle = coco_mask.encode(np.asfortranarray(pixels, np.uint8))
        text = {"size": [int(height), int(width)], "counts": rle["counts"].decode()}
        np.testing.assert_array_equal(decode_mask(text, height, width), pixels)


@pytest.mark.parametrize("size", [[HEIGHT, WIDTH], [float(HEIGHT), str(WIDTH)]])
def test_runs_may_be_numbers_as_text(size):
    mask = decode_mask({"size": size, "counts": [5, "3", HEIGHT * WIDTH - 8.0]}, HEIGHT, WIDTH)
    assert np.flatnonzero(mask.T).tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    "segmentation, complaint",
    [
        (None, "no segmentation; draw the outline of the object, or remove the annotation"),
        ([], "no segmentation"),
        ("text", "'text' is neither a list of polygons nor an RLE"),
        ([[0, 0, 4, 4]], r"the polygon \[0, 0, 4, 4\] has 4 numbers; a polygon needs at least three points"),
        ([[0, 0, 4, 4, 5, 5, 6]], "has 7 numbers"),
        ([[]], "has 0 numbers"),
        ([POLYGON, None], "the segmentation None is neither"),
        ([[[[1]]]], "is neither"),
        ([{"x": 1}], "is neither"),
        ([[0, 0, 4, 0, 0, float("nan")]], "is neither"),
        ([[0, 0, 4, 0, 0, 10**400]], "is neither"),
        ([[0, 0, 1e9, 0, 0, 1e9]], r"reaches from 0 to 1e\+09"),
        ([[0, 0, 900_000, 900_000] * 10], "an outline of"),
        ({"size": [17, 12], "counts": "0"}, r"the RLE has the size \[17, 12\], the image \[12, 17\]"),
        ({"size": [12], "counts": "0"}, r"the RLE has the size \[12\]"),
        ({"size": 12, "counts": "0"}, "the RLE has size 12; expected a list of height and width"),
        ({"size": [12, 17]}, "the RLE has no 'counts'"),
        ({"size": [12, 17], "counts": [4, 5]}, "the RLE counts 9 pixels; expected 204"),
        ({"size": [12, 17], "counts": [205, -1]}, "the RLE has the counts"),
        ({"size": [12, 17], "counts": [4.5]}, "the RLE has the counts"),
        ({"size": [12, 17], "counts": 204}, "the RLE has the counts 204"),
        ({"size": [12, 17], "counts": ""}, "the RLE has the counts ''"),
        ({"size": [12, 17], "counts": "oooooooooo"}, "the RLE has the counts"),
        ({"size": [12, 17], "counts": "\n\x7f"}, "the RLE has the counts"),
        ({"size": [12, 17], "counts": "oo"}, "the RLE has the counts"),
    ],
)
def test_other_segmentations_are_refused(segmentation, complaint):
    with pytest.raises(UserError, match=complaint):
        decode_mask(segmentation, HEIGHT, WIDTH)


def test_random_text_is_no_mask_of_another_size():
    rng = np.random.default_rng(1)
    for _ in range(2000):
        text = "".join(map(chr, rng.integers(40, 120, rng.integers(1, 40))))
        try:
            mask = decode_mask({"size": [HEIGHT, WIDTH], "counts": text}, HEIGHT, WIDTH)
        except UserError:
            continue
        assert mask.shape == (HEIGHT, WIDTH)
