import re

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maxdl_tf.drawing import label_maps
from maxdl_tf.errors import UserError
from maxdl_tf.inference.predictor import Predictor
from maxdl_tf.inference.segmenter import ImageSegmenter
from tests.inference.color_network import BLUE, CROP_SIZE, INFO, RED, ColorNetwork, postprocessor, striped_image

SIZES = [(1, 1), (1, 300), (300, 1), (13, 5), (97, 129), (96, 128), (400, 60), (333, 777)]


@pytest.fixture(scope="module")
def predictor():
    return Predictor.from_model(ColorNetwork(), postprocessor(), crop_size=CROP_SIZE, dataset_info=INFO)


@pytest.mark.parametrize("size", SIZES)
def test_labels_lie_where_the_image_has_them_whatever_its_size(predictor, size):
    image, labels = striped_image(*size)
    prediction = predictor(image)
    assert prediction.label_map.dtype == np.int32
    assert prediction.label_map.shape == size
    # The network sees every fourth pixel of an image that was made to fit into the crop.
    blur = 4 * max(1.0, size[0] / CROP_SIZE[0], size[1] / CROP_SIZE[1])
    edges = np.flatnonzero(np.diff(labels[0])) + 0.5
    columns = np.arange(size[1])
    sure = np.all(np.abs(columns[:, np.newaxis] - edges) > blur, axis=1)
    rows = max(1, int(size[0] - blur))  # Those at the bottom mix with the padding below them.
    np.testing.assert_array_equal(prediction.label_map[:rows, sure], labels[:rows, sure])


def test_segments_describe_the_label_map(predictor):
    image, _ = striped_image(120, 200)
    prediction = predictor(image)
    assert [(s.id, s.class_id, s.is_thing) for s in prediction.segments] == [
        (1001, 1, True),
        (1002, 1, True),
        (3000, 3, False),
    ]
    for segment in prediction.segments:
        rows, columns = np.nonzero(prediction.label_map == segment.id)
        assert segment.area == len(rows)
        left, top, width, height = segment.bbox
        assert (left, top) == (columns.min(), rows.min())
        assert (left + width - 1, top + height - 1) == (columns.max(), rows.max())
        assert 0.9 < segment.score <= 1.0


def test_small_segments_of_the_crop_are_void():
    image, _ = striped_image(97, 129, (RED, BLUE, BLUE))
    strict = Predictor.from_model(ColorNetwork(), postprocessor(97 * 43 * 2), crop_size=CROP_SIZE, dataset_info=INFO)
    assert {segment.id for segment in strict(image).segments} == {3000}


def test_an_image_of_the_crops_size_is_not_resampled():
    """Then the maps are the post-processor's own."""
    image, _ = striped_image(*CROP_SIZE)
    network, read_map = ColorNetwork(), postprocessor()
    segmenter = ImageSegmenter(network, read_map, CROP_SIZE, score_map=True)
    prediction = segmenter(tf.constant(image))
    wanted = read_map(network(tf.cast(image, tf.float32)[tf.newaxis]))
    np.testing.assert_array_equal(prediction.panoptic, wanted.panoptic[0])
    score = np.where(wanted.panoptic[0] == INFO.void, 0.0, wanted.instance_score[0] * wanted.semantic_score[0])
    np.testing.assert_allclose(prediction.score, score, atol=1e-6)


def test_path_pil_image_and_array_are_the_same_image(predictor, tmp_path):
    image, _ = striped_image(97, 129)
    expected, outputs = predictor(image), predictor.network_outputs(image)
    Image.fromarray(image).save(tmp_path / "photo.png")
    transparent = Image.fromarray(image).convert("RGBA")
    for form in (tmp_path / "photo.png", str(tmp_path / "photo.png"), transparent):
        prediction = predictor(form)
        np.testing.assert_array_equal(prediction.label_map, expected.label_map)
        np.testing.assert_array_equal(prediction.image, image)
        np.testing.assert_array_equal(predictor.network_outputs(form).mask_logits, outputs.mask_logits)


def test_a_pil_image_is_turned_upright(predictor):
    image, _ = striped_image(97, 129)
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(image)))
    turned.getexif()[0x0112] = 6  # Rotate by 270 degrees to see it upright.
    np.testing.assert_array_equal(predictor(turned).label_map, predictor(image).label_map)
    assert turned.size == (97, 129), "the caller's image has changed"


def test_an_overlay_shows_the_segments(predictor):
    image, _ = striped_image(97, 129)
    result = predictor(image)
    overlay = result.overlay()
    assert (overlay.mode, overlay.size) == ("RGB", (129, 97))
    np.testing.assert_array_equal(np.asarray(overlay), label_maps.panoptic_picture(image, result.label_map, INFO))


@pytest.mark.parametrize(
    ("image", "advice"),
    [
        (np.zeros((4, 4), np.uint8), "uint8 [4, 4]: want uint8 [height, width, 3], RGB; convert gray to RGB"),
        (np.zeros((4, 4, 3)), "float64 [4, 4, 3]: want uint8 [height, width, 3], RGB; scale it to 0..255"),
        (np.zeros((4, 4, 4), np.uint8), "drop the transparency with image[..., :3]"),
        (np.zeros((1, 4, 4, 3), np.uint8), "pass one image at a time"),
        (np.zeros((0, 4, 3), np.uint8), "check how the image was read"),
        (b"JPEG", "image bytes: want a path, a PIL image or a uint8 [height, width, 3] array"),
        (Image.new("F", (4, 4)), "PIL image: floating-point values 0 to 0; convert the training data with a rule"),
    ],
)
def test_what_is_no_image_is_refused(predictor, image, advice):
    with pytest.raises(UserError, match=re.escape(advice)):
        predictor(image)
