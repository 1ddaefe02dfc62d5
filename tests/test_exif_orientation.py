"""Every command turns photographs upright by their EXIF orientation, so that labels and maps fit the same pixels."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf import export_model
from maxdl_tf.inference.predictor import Predictor
from maxdl_tf.inference.served_model import ServedModel
from tests.data_gen.conversion import read_converted, run_convert, save_map
from tests.files.turned_pictures import save_turned
from tests.inference.color_network import BLUE, CROP_SIZE, INFO, RED, striped_image

ORIENTATIONS = range(1, 9)
HEIGHT, WIDTH = CROP_SIZE


@pytest.fixture(scope="module")
def upright():
    """(pixels, labels) that all eight turns change."""
    image, labels = striped_image(HEIGHT, WIDTH)
    image[HEIGHT // 2 :], labels[HEIGHT // 2 :] = (
        part[HEIGHT // 2 :] for part in striped_image(*CROP_SIZE, (BLUE, RED))
    )
    return image, labels


@pytest.fixture(scope="module")
def photos(tmp_path_factory, upright):
    """Paths by orientation; PNG, so that pixels can be compared."""
    folder = tmp_path_factory.mktemp("photos")
    for orientation in ORIENTATIONS:
        save_turned(folder / f"{orientation}.png", upright[0], orientation)
    return {orientation: str(folder / f"{orientation}.png") for orientation in ORIENTATIONS}


@pytest.fixture(scope="module")
def wanted(upright, color_export):
    """The prediction for the upright pixels."""
    label_map = Predictor.from_saved_model(str(color_export))(upright[0]).label_map
    assert (label_map == upright[1]).mean() > 0.95  # The network has a quarter of the resolution.
    return label_map


class _Server:
    """Runs the SavedModel here."""

    def __init__(self, path):
        self._model = tf.saved_model.load(str(path))

    def signatures(self):
        return {name: list(function.structured_outputs) for name, function in self._model.signatures.items()}

    def predict(self, signature, inputs, num_pixels=0):
        outputs = self._model.signatures[signature](**{name: tf.constant(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in outputs.items()}


def test_conversion_and_training(photos, upright, tmp_path):
    """The label map of the upright picture fits, and training reads both as they were converted."""
    for orientation in ORIENTATIONS:
        save_map(tmp_path / "labels" / f"{orientation}.png", upright[1], np.uint16)
    folder = photos[1].rpartition("/")[0]
    flags = (f"--image_dir={folder}", f"--label_dir={tmp_path / 'labels'}", f"--output_dir={tmp_path / 'out'}")
    assert run_convert("label_pngs", *flags, "--label_divisor=1000") == 0
    converted = read_converted(tmp_path / "out")
    assert set(converted.images) == {str(orientation) for orientation in ORIENTATIONS}
    for name, image in converted.images.items():
        np.testing.assert_array_equal(image, upright[0], err_msg=name)
        np.testing.assert_array_equal(converted.labels[name], converted.labels["1"], err_msg=name)


def test_a_label_map_of_the_stored_picture_is_named(upright, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    save_turned(tmp_path / "images" / "a.png", upright[0], 6)
    save_map(tmp_path / "labels" / "a.png", np.swapaxes(upright[1], 0, 1), np.uint16)
    flags = (f"--image_dir={tmp_path / 'images'}", f"--label_dir={tmp_path / 'labels'}")
    assert run_convert("label_pngs", *flags, f"--output_dir={tmp_path / 'out'}") == 2
    assert "if the image has an EXIF orientation, annotate the upright image" in capsys.readouterr().err


def test_prediction(photos, wanted, color_export):
    predictor = Predictor.from_saved_model(str(color_export))
    for orientation, path in photos.items():
        np.testing.assert_array_equal(predictor(path).label_map, wanted, err_msg=f"orientation {orientation}")


@pytest.mark.parametrize("signature", ["panoptic_png", "serving_default", "tf_example", "image_tensor"])
def test_serving_client(photos, upright, wanted, color_export, signature):
    model = ServedModel(_Server(color_export), INFO, signature)
    for orientation, path in photos.items():
        prediction = model.predict(path, upright[0])
        np.testing.assert_array_equal(prediction.label_map, wanted, err_msg=f"orientation {orientation}")


def test_files_sent_to_an_export_unchanged(photos, wanted, color_export):
    contents = []
    for path in photos.values():
        with open(path, "rb") as file:
            contents.append(file.read())
    maps = _Server(color_export).predict("serving_default", {"image_bytes": contents})["panoptic_map"]
    np.testing.assert_array_equal(maps, np.stack([wanted] * len(ORIENTATIONS)))


def test_the_pictures_of_verify_images(photos, upright):
    for content in export_model.read_images(photos[1].replace("1.png", "*.png")).values():
        np.testing.assert_array_equal(tf.io.decode_image(content, 3), upright[0])
