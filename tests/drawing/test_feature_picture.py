import numpy as np
import pytest

from maxdl_tf.drawing.feature_picture import feature_picture
from maxdl_tf.drawing.label_maps import LINE_HEIGHT
from maxdl_tf.inference.predictor import Predictor
from maxdl_tf.inference.tensorflow_backends import TensorFlowBackend
from tests.inference.color_network import BLUE, CROP_SIZE, INFO, RED, ColorNetwork, postprocessor, striped_image

GAP = 4


def _panels(picture, height, width):
    assert picture.shape == (LINE_HEIGHT + height, 3 * width + 2 * GAP, 3)
    rows = picture[LINE_HEIGHT:]
    return [rows[:, start : start + width].astype(int) for start in (0, width + GAP, 2 * (width + GAP))]


@pytest.mark.parametrize("size", [CROP_SIZE, (300, 80), (40, 50)])
def test_the_features_of_an_image_lie_where_its_pixels_are(size):
    """The color network's features are colors, and its mask embeddings those of its masks."""
    predictor = Predictor.from_model(ColorNetwork(), postprocessor(), crop_size=CROP_SIZE, dataset_info=INFO)
    image, labels = striped_image(*size, (RED, BLUE))
    features = predictor.features(image)
    height, width = features.slot.shape
    assert features.pixel.shape == (height, width, 3) and features.mask.shape == (4, 3)
    assert abs(height / width - size[0] / size[1]) < 0.1 * size[0] / size[1]
    np.testing.assert_array_equal(features.slot[: height - 1, : width // 2 - 1], 0)
    np.testing.assert_array_equal(features.slot[: height - 1, width // 2 + 1 : width - 1], 2)
    assert np.abs(features.pixel[: height - 1, : width // 2 - 1] - [1, 0, 0]).max() < 0.02

    first, pixels, masks = _panels(feature_picture(image, *features, void=labels == 3000), *size)
    np.testing.assert_array_equal(first, image)
    left = np.s_[: size[0] // 2, : size[1] // 4]
    # 1 is bright and 0 is medium; what is void has no color.
    assert np.abs(pixels[left] - [255, 128, 128]).max() <= 2 and np.abs(masks[left] - [255, 128, 128]).max() <= 2
    assert not masks[:, size[1] // 2 + 4 :].any() and pixels[: size[0] // 2, -size[1] // 4 :].any()


@pytest.mark.parametrize("channels", [2, 8, 128])
def test_of_many_channels_those_are_shown_that_tell_most(channels):
    """Three masks whose embeddings differ: three colors, and the pixels have those of their masks."""
    random = np.random.default_rng(0)
    mask = random.normal(size=(5, channels))
    slot = np.repeat([[0, 1, 2]], 30, axis=1).repeat(20, axis=0)
    pixel = mask[slot] + 0.01 * random.normal(size=(*slot.shape, channels))
    pixel /= np.linalg.norm(pixel, axis=-1, keepdims=True)
    image = np.zeros((*slot.shape, 3), np.uint8)
    _, pixels, masks = _panels(feature_picture(image, pixel, slot, mask, void=slot < 0), *slot.shape)
    colors = np.unique(masks.reshape(-1, 3), axis=0)
    assert len(colors) == 3
    assert min(np.abs(a - b).max() for a, b in zip(colors, np.roll(colors, 1, axis=0))) > 60
    assert np.abs(pixels - masks).mean() < 6


def test_an_old_saved_model_is_told():
    predictor = Predictor(TensorFlowBackend(None, lambda image: {}, None), INFO)
    with pytest.raises(ValueError, match="export the checkpoint again"):
        predictor.features(np.zeros((9, 9, 3), np.uint8))
