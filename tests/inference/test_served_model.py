import dataclasses
import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maxdl_tf import panoptic_ids
from maxdl_tf.data import examples
from maxdl_tf.errors import UserError
from maxdl_tf.files.images import read_image
from maxdl_tf.inference.served_model import RequestError, ServedModel, outputs_of
from tests.inference.color_network import INFO, striped_image


class FakeServer:
    """Answers all requests with the same outputs, and keeps the last one."""

    def __init__(self, outputs, signatures=("serving_default", "image_tensor", "tf_example")):
        self._outputs, self._signatures = outputs, signatures

    def signatures(self):
        return {signature: outputs_of(signature) for signature in self._signatures}

    def predict(self, signature, inputs, pixels):
        self.signature, self.inputs = signature, inputs
        return self._outputs


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.fromarray(striped_image(30, 40)[0]).save(path)
    return str(path)


def _outputs(panoptic_map, image_size):
    return {
        "panoptic_map": np.array([panoptic_map], np.int32),
        "image_size": np.array([image_size], np.int32),
        "num_segments": np.array([1], np.int32),
        "segment_ids": np.array([[1001, 0]], np.int32),
        "segment_class_ids": np.array([[1, 0]], np.int32),
        "segment_scores": np.array([[0.75, 0.0]], np.float32),
        "segment_areas": np.array([[1200, 0]], np.int32),
        "segment_boxes": np.array([[[0, 0, 40, 30], [0, 0, 0, 0]]], np.int32),
    }


def test_what_a_batching_server_adds_to_the_map_is_cut_off(photo):
    padded = np.pad(np.full([30, 40], 1001), [(0, 20), (0, 5)])
    prediction = ServedModel(FakeServer(_outputs(padded, (30, 40))), INFO).predict(photo, read_image(photo))
    np.testing.assert_array_equal(prediction.label_map, np.full([30, 40], 1001))
    (segment,) = prediction.segments
    assert (segment.id, segment.score, segment.area, segment.bbox) == (1001, 0.75, 1200, (0, 0, 40, 30))


def test_a_server_that_sees_another_size_is_not_believed(photo):
    with pytest.raises(RequestError, match="40 x 30 pixels, but the file has 30 x 40"):
        ServedModel(FakeServer(_outputs(np.zeros([40, 30]), (40, 30))), INFO).predict(photo, read_image(photo))


def _as_png(pixels, mode="RGB"):
    file = io.BytesIO()
    Image.fromarray(pixels, mode).save(file, "PNG")
    return file.getvalue()


def _png_outputs(png):
    outputs = _outputs(0, (30, 40))
    del outputs["panoptic_map"]
    return {**outputs, "panoptic_png_bytes": np.array([png], object)}


def test_the_map_is_taken_from_the_png_where_the_model_has_it(photo):
    label_map = np.full([30, 40], 1001)
    label_map[:4] = 0
    server = FakeServer(_png_outputs(_as_png(panoptic_ids.id_to_color(label_map))), ["serving_default", "panoptic_png"])
    info = dataclasses.replace(INFO, ignore_label=7)
    prediction = ServedModel(server, info).predict(photo, read_image(photo))
    assert server.signature == "panoptic_png" and list(server.inputs) == ["image_bytes"]
    np.testing.assert_array_equal(prediction.label_map, np.where(label_map == 0, info.void, label_map))
    assert [segment.id for segment in prediction.segments] == [1001]


@pytest.mark.parametrize(
    "png, message",
    [
        (b"no PNG", "cannot be read as an image"),
        ("text", r"output panoptic_png_bytes of the served model is object \[1\]; wanted bytes \[1\]"),
        (_as_png(np.zeros([30, 40], np.uint8), "L"), "has mode L; wanted RGB"),
        (_as_png(np.zeros([31, 40, 3], np.uint8)), "40x31 pixels, but the limit is 1,200"),
        (_as_png(np.zeros([40, 30, 3], np.uint8)), "returns a map of 40 x 30 pixels for an image of 30 x 40"),
        (_as_png(np.full([30, 40, 3], 9, np.uint8)), "returns pixels of 592137, which is not a segment"),
    ],
    ids=["damaged", "text", "gray", "large", "turned", "unknown"],
)
def test_a_strange_png_is_not_believed(png, message, photo):
    model = ServedModel(FakeServer(_png_outputs(png), ["panoptic_png"]), INFO)
    with pytest.raises(UserError, match=message):
        model.predict(photo, read_image(photo))


@pytest.mark.parametrize("signature", ["serving_default", "tf_example"])
def test_a_jpeg_file_is_sent_as_it_is(photo, signature):
    server = FakeServer(_outputs(np.zeros([30, 40]), (30, 40)))
    ServedModel(server, INFO, signature).predict(photo, read_image(photo))
    ((name, (sent,)),) = server.inputs.items()
    assert name == {"serving_default": "image_bytes", "tf_example": "examples"}[signature]
    with open(photo, "rb") as file:
        content = file.read()
    if signature == "tf_example":
        features = tf.io.parse_single_example(sent, {examples.IMAGE_ENCODED: tf.io.FixedLenFeature([], tf.string)})
        sent = features[examples.IMAGE_ENCODED].numpy()
    assert sent == content


def test_a_turned_file_is_sent_as_png(tmp_path):
    """Models that earlier versions exported ignore EXIF."""
    path = str(tmp_path / "photo.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(striped_image(30, 40)[0]).save(path, exif=exif)
    pixels = read_image(path)
    assert pixels.shape == (40, 30, 3)
    server = FakeServer(_outputs(np.zeros([40, 30]), (40, 30)))
    ServedModel(server, INFO).predict(path, pixels)
    (sent,) = server.inputs["image_bytes"]
    assert sent.startswith(b"\x89PNG")
    np.testing.assert_array_equal(tf.io.decode_png(sent), pixels)
