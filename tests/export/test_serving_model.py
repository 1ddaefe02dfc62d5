"""The signatures of a SavedModel, as a client sees them."""

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf import panoptic_ids
from maxdl_tf.data import examples
from maxdl_tf.export.serving_model import SIGNATURES, ServingModel, ServingOptions
from maxdl_tf.inference.segmenter import ImageSegmenter
from tests.inference.color_network import CROP_SIZE, INFO, ColorNetwork, postprocessor, striped_image

SIZES = [(70, 150), (97, 129), (1, 1), (300, 40), (13, 5), (1, 200), (64, 64), (129, 97)]
OUTPUTS = {
    "panoptic_map": ([None, None, None], tf.int32),
    "image_size": ([None, 2], tf.int32),
    "num_segments": ([None], tf.int32),
    "segment_ids": ([None, 4], tf.int32),
    "segment_class_ids": ([None, 4], tf.int32),
    "segment_scores": ([None, 4], tf.float32),
    "segment_areas": ([None, 4], tf.int32),
    "segment_boxes": ([None, 4, 4], tf.int32),
}
OPTIONAL = {"panoptic_png_bytes": ([None], tf.string), "score_map": ([None, None, None], tf.float32)}


def _save_and_load(folder, **options):
    """The signatures by name; network and post-processor as in the exports of all tests."""
    segmenter = ImageSegmenter(ColorNetwork(), postprocessor(), CROP_SIZE, score_map=options.get("score_maps", False))
    model = ServingModel(segmenter, INFO.void, ServingOptions(**options), {})
    tf.saved_model.save(model, str(folder / "model"), signatures=model.signatures())
    return tf.saved_model.load(str(folder / "model"))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return _save_and_load(tmp_path_factory.mktemp("all"), png_output=True, score_maps=True)


@pytest.fixture(scope="module")
def images():
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    return [striped_image(*size, colors=colors[n % 3 :] + colors[: n % 3])[0] for n, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def alone(served, images):
    """The outputs of each image by itself."""
    return [_numpy(served.signatures["serving_default"](image_bytes=_pngs([image]))) for image in images]


def _pngs(images):
    return tf.stack([tf.io.encode_png(image) for image in images])


def _numpy(outputs):
    return {name: value.numpy() for name, value in outputs.items()}


def test_names_types_and_shapes(served, tmp_path):
    inputs = {
        "serving_default": ("image_bytes", [None], tf.string),
        "image_tensor": ("image", [None, None, None, 3], tf.uint8),
        "tf_example": ("examples", [None], tf.string),
    }
    small = _save_and_load(tmp_path)
    assert set(served.signatures) == set(small.signatures) == set(SIGNATURES)
    for signatures, outputs in ((served.signatures, {**OUTPUTS, **OPTIONAL}), (small.signatures, OUTPUTS)):
        for name, (argument, shape, dtype) in inputs.items():
            (spec,) = signatures[name].structured_input_signature[1].items()
            assert (spec[0], spec[1].shape.as_list(), spec[1].dtype) == (argument, shape, dtype)
            specs = {
                key: (value.shape.as_list(), value.dtype) for key, value in signatures[name].structured_outputs.items()
            }
            assert specs == outputs


def test_one_image(served, images, alone):
    segmenter = ImageSegmenter(ColorNetwork(), postprocessor(), CROP_SIZE, score_map=True)
    segmenter = tf.function(segmenter, input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)], autograph=False)
    for image, outputs in zip(images, alone):
        wanted = segmenter(tf.constant(image))
        np.testing.assert_array_equal(outputs["panoptic_map"], [wanted.panoptic])
        np.testing.assert_array_equal(outputs["image_size"], [image.shape[:2]])
        np.testing.assert_array_equal(outputs["num_segments"], [wanted.segments.count])
        for name in ("ids", "class_ids", "areas", "boxes"):
            np.testing.assert_array_equal(outputs[f"segment_{name}"], [getattr(wanted.segments, name)], err_msg=name)
        np.testing.assert_allclose(outputs["segment_scores"], [wanted.segments.scores], atol=1e-5)
        np.testing.assert_allclose(outputs["score_map"], [wanted.score], atol=1e-5)


@pytest.mark.parametrize("batch", [3, 8])
def test_a_batch_is_its_images(served, images, alone, batch):
    together = _numpy(served.signatures["serving_default"](image_bytes=_pngs(images[:batch])))
    common = np.max(SIZES[:batch], axis=0)
    assert together["panoptic_map"].shape == together["score_map"].shape == (batch, *common)
    for n, one in enumerate(alone[:batch]):
        height, width = SIZES[n]
        for name, outside in (("panoptic_map", INFO.void), ("score_map", 0.0)):
            np.testing.assert_array_equal(together[name][n, :height, :width], one[name][0])
            assert (together[name][n, height:] == outside).all() and (together[name][n, :, width:] == outside).all()
        for name in set(together) - {"panoptic_map", "score_map"}:
            np.testing.assert_array_equal(together[name][n], one[name][0], err_msg=name)


def test_all_signatures_agree(served, images):
    pair = [images[1], images[1][:, ::-1]]
    wanted = _numpy(served.signatures["serving_default"](image_bytes=_pngs(pair)))
    label = np.zeros(SIZES[1], np.int32)
    records = [
        examples.encode_panoptic_example(tf.io.encode_png(image).numpy(), "png", label, "name") for image in pair
    ]
    for name, argument in (
        ("image_tensor", {"image": np.stack(pair)}),
        ("tf_example", {"examples": tf.stack(records)}),
    ):
        got = _numpy(served.signatures[name](**argument))
        assert set(got) == set(wanted)
        for key, value in wanted.items():
            np.testing.assert_array_equal(got[key], value, err_msg=key)


def test_the_png_is_the_map(alone):
    for outputs in alone:
        pixels = tf.io.decode_png(outputs["panoptic_png_bytes"][0]).numpy()
        panoptic = outputs["panoptic_map"][0]
        np.testing.assert_array_equal(panoptic_ids.color_to_id(pixels), np.where(panoptic == INFO.void, 0, panoptic))


@pytest.mark.parametrize(
    "name, argument, message",
    [
        ("serving_default", {"image_bytes": tf.constant([], tf.string)}, "the batch is empty"),
        ("image_tensor", {"image": tf.zeros([0, 3, 3, 3], tf.uint8)}, "the batch is empty"),
        ("image_tensor", {"image": tf.zeros([2, 0, 3, 3], tf.uint8)}, "images without pixels"),
        ("tf_example", {"examples": tf.constant(["", "no proto"])}, "image 0 of the batch is empty"),
        (  # Padded to 60,000 x 60,000 pixels, two maps would take 29 GB.
            "serving_default",
            {"image_bytes": [tf.io.encode_png(tf.zeros([*size, 1], tf.uint8)) for size in ((60_000, 1), (1, 60_000))]},
            "images of too different sizes",
        ),
    ],
)
def test_what_is_no_image_is_told(served, name, argument, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        served.signatures[name](**argument)
