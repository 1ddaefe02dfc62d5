"""TFRecord examples: records of DeepLab2 are readable, and writing and reading lose nothing."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maxdl_tf.data import examples, panoptic
from tests.helpers import shared_golden, shared_path


def _png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG")
    return file.getvalue()


def _image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, [height, width, 3], dtype=np.uint8)


@pytest.mark.parametrize("crowd_ignored", [0, 1])
def test_reads_records_of_deeplab2(crowd_ignored):
    golden = shared_golden("i_coco_example")
    path = shared_path("reference", "golden", "i_coco", f"val-crowd_ignored_{crowd_ignored}.tfrecord")
    (record,) = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    example = panoptic.parse_example(tf.constant(record))
    np.testing.assert_array_equal(example.image, golden["decoded_image"])
    np.testing.assert_array_equal(example.label, golden[f"label_crowd_ignored_{crowd_ignored}"])
    assert example.image_id.numpy() == b"000000000001"


def test_has_the_features_of_the_reference():
    golden = shared_golden("i_coco_example")
    image = shared_path("reference", "golden", "i_coco", "val2017", "000000000001.jpg").read_bytes()
    written = tf.train.Example.FromString(
        examples.encode_panoptic_example(image, "jpeg", golden["label_crowd_ignored_0"], "000000000001", "raw")
    )
    path = shared_path("reference", "golden", "i_coco", "val-crowd_ignored_0.tfrecord")
    (record,) = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    assert written == tf.train.Example.FromString(record)


@pytest.mark.parametrize("label_format", ["png", "raw"])
def test_bytes_equal_those_of_tensorflow(label_format):
    label = np.arange(12).reshape(3, 4)
    record = examples.encode_panoptic_example(_png(_image(3, 4)), "png", label, "some/image", label_format)
    assert record == tf.train.Example.FromString(record).SerializeToString(deterministic=True)


def test_features_with_one_value_are_read():
    feature = tf.train.Feature
    features = {
        "bytes": feature(bytes_list=tf.train.BytesList(value=[b"a"])),
        "no bytes": feature(bytes_list=tf.train.BytesList(value=[b""])),
        "number": feature(int64_list=tf.train.Int64List(value=[2**62])),
        "negative": feature(int64_list=tf.train.Int64List(value=[-1])),
        "float": feature(float_list=tf.train.FloatList(value=[0.5])),
        "two": feature(int64_list=tf.train.Int64List(value=[0, 300])),
        "empty": feature(),
    }
    serialized = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
    assert examples.read_features(serialized) == {
        "bytes": b"a",
        "no bytes": b"",
        "number": 2**62,
        "negative": -1,
        "float": 0.5,
    }
    for broken in (serialized[:-3], b"\xff" * 20, b"text"):
        with pytest.raises(ValueError, match=r"not a tf\.train\.Example"):
            examples.read_features(broken)


def test_a_record_without_label_format_is_raw():
    label = np.arange(12, dtype=np.int32).reshape(3, 4)
    example = tf.train.Example.FromString(
        examples.encode_panoptic_example(_png(_image(3, 4)), "png", label, "a", "raw")
    )
    del example.features.feature[examples.LABEL_FORMAT]
    np.testing.assert_array_equal(panoptic.parse_example(tf.constant(example.SerializeToString())).label, label)


@pytest.mark.parametrize("label_format", ["png", "raw"])
@pytest.mark.parametrize("largest", [0, 255, 256, 34303, 65535, 65536, 2**24 - 1])
def test_labels_survive(label_format, largest):
    label = np.random.default_rng(1).integers(0, largest + 1, [5, 7], dtype=np.int32)
    label[2, 3] = largest
    image = _image(5, 7)
    record = examples.encode_panoptic_example(_png(image), "png", label, "some/image", label_format)
    eager = panoptic.parse_example(tf.constant(record))
    (in_graph,) = tf.data.Dataset.from_tensors(record).map(panoptic.parse_example)
    for example in (eager, in_graph):
        np.testing.assert_array_equal(example.image, image)
        np.testing.assert_array_equal(example.label, label)
        assert example.label.dtype == tf.int32
        assert example.image_id.numpy() == b"some/image"


@pytest.mark.parametrize("label_format", ["png", "raw"])
@pytest.mark.parametrize("largest", [255, 65535, 65536])
def test_labels_survive_without_tensorflow(label_format, largest):
    label = np.random.default_rng(1).integers(0, largest + 1, [5, 7], dtype=np.int32)
    label[2, 3] = largest
    decoded = examples.decode_label_map(examples.encode_label_map(label, label_format), label_format, (5, 7))
    np.testing.assert_array_equal(decoded, label)


def test_png_labels_are_small():
    label = np.zeros([480, 640], np.int32)
    label[100:200, 50:300] = 34000
    assert len(examples.encode_label_map(label, "png")) < label.nbytes / 50


def test_eight_bit_gray_labels_are_readable():
    label = np.array([[0, 1, 200], [255, 7, 8]], np.uint8)
    example = tf.train.Example.FromString(
        examples.encode_panoptic_example(_png(_image(2, 3)), "png", label.astype(np.int32), "a")
    )
    example.features.feature[examples.LABEL_ENCODED].bytes_list.value[0] = _png(label)
    np.testing.assert_array_equal(panoptic.parse_example(tf.constant(example.SerializeToString())).label, label)


@pytest.mark.parametrize(
    "label, label_format, message",
    [
        (np.full([2, 2], 2**24), "png", "16777216"),
        (np.full([2, 2], -1), "png", "-1"),
        (np.zeros([2, 2]), "gif", "'gif'"),
    ],
)
def test_labels_that_do_not_fit_are_refused(label, label_format, message):
    with pytest.raises(ValueError, match=message):
        examples.encode_label_map(label, label_format)


def test_contradictions_in_a_record_name_the_image():
    record = examples.encode_panoptic_example(_png(_image(4, 4)), "png", np.zeros([2, 2], np.int32), "the_image")
    with pytest.raises(tf.errors.InvalidArgumentError, match="the_image"):
        panoptic.parse_example(tf.constant(record))
