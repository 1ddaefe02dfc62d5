"""The signatures of a SavedModel, as a client sees them."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf import panoptic_ids
from maxdl_tf.data import examples
from maxdl_tf.export.serving_model import ServingModel, ServingOptions, png_holds_labels
from maxdl_tf.inference.segmenter import ImageSegmenter
from tests.inference.color_network import CROP_SIZE, INFO, ColorNetwork, postprocessor, striped_image

SIZES = [(70, 150), (97, 129), (1, 1), (300, 40), (13, 5), (1, 200), (64, 64), (129, 97)]
INPUTS = {
    "serving_default": ("image_bytes", [None], tf.string),
    "panoptic_png": ("image_bytes", [None], tf.string),
    "image_tensor": ("image", [None, None, None, 3], tf.uint8),
    "tf_example": ("examples", [None], tf.string),
}
SEGMENTS = {
    "image_size": ([None, 2], tf.int32),
    "num_segments": ([None], tf.int32),
    "segment_ids": ([None, 4], tf.int32),
    "segment_class_ids": ([None, 4], tf.int32),
    "segment_scores": ([None, 4], tf.float32),
    "segment_areas": ([None, 4], tf.int32),
    "segment_boxes": ([None, 4, 4], tf.int32),
}
MAP, SCORES = {"panoptic_map": ([None, None, None], tf.int32)}, {"score_map": ([None, None, None], tf.float32)}


def _save_and_load(folder, **options):
    """The signatures by name; network and post-processor as in the exports of all tests."""
    segmenter = ImageSegmenter(ColorNetwork(), postprocessor(), CROP_SIZE, score_map=options.get("score_maps", False))
    model = ServingModel(segmenter, INFO, ServingOptions(**options), {})
    tf.saved_model.save(model, str(folder / "model"), signatures=model.signatures())
    return tf.saved_model.load(str(folder / "model"))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return _save_and_load(tmp_path_factory.mktemp("all"), score_maps=True)


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


def test_names_types_and_shapes(served, color_export):
    small = tf.saved_model.load(str(color_export))
    for signatures, maps in ((served.signatures, {**MAP, **SCORES}), (small.signatures, MAP)):
        assert set(signatures) == set(INPUTS)
        for name, (argument, shape, dtype) in INPUTS.items():
            (spec,) = signatures[name].structured_input_signature[1].items()
            assert (spec[0], spec[1].shape.as_list(), spec[1].dtype) == (argument, shape, dtype)
            outputs = signatures[name].structured_outputs
            specs = {key: (value.shape.as_list(), value.dtype) for key, value in outputs.items()}
            if name == "panoptic_png":
                assert specs.pop("panoptic_png_bytes") == ([None], tf.string)
                assert {key: dtype for key, (_, dtype) in specs.items()} == {
                    key: dtype for key, (_, dtype) in SEGMENTS.items()
                }
            else:
                assert specs == {**SEGMENTS, **maps}


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


def _check_batch(together, images, alone):
    """The outputs of a batch are those of its images, padded."""
    common = np.max([image.shape[:2] for image in images], axis=0)
    assert together["panoptic_map"].shape == together["score_map"].shape == (len(images), *common)
    for n, (image, one) in enumerate(zip(images, alone)):
        height, width = image.shape[:2]
        for name, outside in (("panoptic_map", INFO.void), ("score_map", 0.0)):
            np.testing.assert_array_equal(together[name][n, :height, :width], one[name][0])
            assert (together[name][n, height:] == outside).all() and (together[name][n, :, width:] == outside).all()
        for name in set(together) - {"panoptic_map", "score_map"}:
            np.testing.assert_array_equal(together[name][n], one[name][0], err_msg=name)


@pytest.mark.parametrize("batch", [3, 8])
def test_a_batch_is_its_images(served, images, alone, batch):
    together = _numpy(served.signatures["serving_default"](image_bytes=_pngs(images[:batch])))
    _check_batch(together, images[:batch], alone)


@pytest.fixture(scope="module")
def in_runs(tmp_path_factory):
    """Its network takes three images at once."""
    return _save_and_load(tmp_path_factory.mktemp("runs"), score_maps=True, network_batch=3)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_a_network_that_takes_several_images_at_once_gives_the_same(in_runs, images, alone, batch):
    """Also if the last run has fewer images."""
    together = _numpy(in_runs.signatures["serving_default"](image_bytes=_pngs(images[:batch])))
    _check_batch(together, images[:batch], alone)


def test_the_size_of_a_run_is_limited():
    """The memory of the network does not grow with the batch."""
    sizes = []

    class Network(ColorNetwork):
        def call(self, images, training=False):
            tf.py_function(lambda images: sizes.append(len(images)), [images], [])
            return super().call(images)

    segmenter = ImageSegmenter(Network(), postprocessor(), CROP_SIZE)
    model = ServingModel(segmenter, INFO, ServingOptions(network_batch=3), {})
    images = tf.zeros([8, 5, 6, 3], tf.uint8)
    segment_all = tf.function(lambda sizes: model._segment_all(lambda index: images[index], sizes), autograph=False)
    segment_all(tf.constant([[5, 6]] * 8))
    assert sizes == [3, 3, 2]


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("model", ["served", "in_runs"])
def test_panoptic_png_is_serving_default_in_few_bytes(model, batch, images, alone, request):
    signature = request.getfixturevalue(model).signatures["panoptic_png"]
    outputs = _numpy(signature(image_bytes=_pngs(images[:batch])))
    rows = max(one["num_segments"][0] for one in alone[:batch])
    assert outputs["segment_ids"].shape == (batch, rows) and rows < 4
    for n, one in enumerate(alone[:batch]):
        pixels = tf.io.decode_png(outputs["panoptic_png_bytes"][n]).numpy()
        panoptic = one["panoptic_map"][0]
        np.testing.assert_array_equal(panoptic_ids.color_to_id(pixels), np.where(panoptic == INFO.void, 0, panoptic))
        for name in ("image_size", "num_segments"):
            np.testing.assert_array_equal(outputs[name][n], one[name][0])
        for name in ("ids", "class_ids", "scores", "areas", "boxes"):
            np.testing.assert_array_equal(outputs[f"segment_{name}"][n], one[f"segment_{name}"][0][:rows])


def test_an_image_without_segments_has_a_row_of_zeros(served):
    """JSON shows an empty list, which tells no client how deep the lists are."""
    outputs = _numpy(served.signatures["panoptic_png"](image_bytes=_pngs([np.full([40, 50, 3], 127, np.uint8)])))
    assert outputs["num_segments"] == [0] and outputs["segment_boxes"].tolist() == [[[0, 0, 0, 0]]]


def test_labels_of_three_bytes_fit_into_a_png():
    assert png_holds_labels(dataclasses.replace(INFO, label_divisor=2**22))  # The largest class id is 3.
    assert not png_holds_labels(dataclasses.replace(INFO, label_divisor=2**22 + 1))


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
