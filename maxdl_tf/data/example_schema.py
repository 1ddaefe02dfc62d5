"""What one TFRecord example holds, and how it is written and read (architecture section 8).

An example is a `tf.train.Example`. Its keys are DeepLab2's, so that records of either program can be read by the other
as long as labels are written raw; PNG, the default here, takes about a fiftieth of the space. Images that are
classified as a whole have the keys of the common ImageNet records.

Writing needs NumPy and Pillow only: the processes that convert a data set would otherwise each spend seconds and
hundreds of megabytes on importing TensorFlow.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from maxdl_tf import panoptic_ids
from maxdl_tf.structs import Tensor

IMAGE_ENCODED = "image/encoded"
IMAGE_FILENAME = "image/filename"
IMAGE_FORMAT = "image/format"
IMAGE_HEIGHT = "image/height"
IMAGE_WIDTH = "image/width"
IMAGE_CHANNELS = "image/channels"
LABEL_ENCODED = "image/segmentation/class/encoded"
LABEL_FORMAT = "image/segmentation/class/format"
CLASS_LABEL = "image/class/label"
CLASS_TEXT = "image/class/text"

LABEL_FORMATS = ("png", "raw")
IMAGE_FORMATS = ("jpeg", "png")

_LARGEST_16_BIT = 2**16 - 1
_LARGEST_24_BIT = 2**24 - 1
_PNG_BIT_DEPTH_AT = 24  # Offset of the byte in a PNG's header chunk.


class Example(NamedTuple):
    """A decoded example.

    Attributes:
      image: uint8 [height, width, 3], RGB.
      label: int32 [height, width], class id * label divisor + instance.
      image_id: scalar string, the image's file name without its extension.
    """

    image: Tensor
    label: Tensor
    image_id: Tensor


class ClassifiedExample(NamedTuple):
    """A decoded example of a classified image.

    Attributes:
      image: uint8 [height, width, 3], RGB.
      label: scalar int64, class id, from 1.
      image_id: scalar string; empty where the example has no file name.
    """

    image: Tensor
    label: Tensor
    image_id: Tensor


def encode_example(
    image_bytes: bytes, image_format: str, label: np.ndarray, image_id: str, label_format: str = "png"
) -> bytes:
    """Serializes an annotated image, the same bytes for the same input wherever it runs.

    Args:
      image_bytes: The image file's content, RGB.
      image_format: What it is: "jpeg" or "png".
      label: int [height, width], class id * label divisor + instance, of the image's size.
      image_id: The image's file name without its extension.
      label_format: "png" or "raw" (int32, little-endian).

    Returns:
      A serialized `tf.train.Example`.

    Raises:
      ValueError: If a format is unknown or a label does not fit into it.
    """
    annotation = {LABEL_ENCODED: encode_label_map(label, label_format), LABEL_FORMAT: label_format.encode()}
    return _serialize_image(image_bytes, image_format, label.shape, image_id, annotation)


def encode_classified_example(
    image_bytes: bytes, image_format: str, size: tuple[int, int], class_id: int, class_name: str, image_id: str
) -> bytes:
    """Serializes an image that has a class as a whole.

    Args:
      image_bytes: The image file's content, RGB.
      image_format: What it is: "jpeg" or "png".
      size: (height, width).
      class_id: From 1.
      class_name: For people.
      image_id: What messages call the image.

    Returns:
      A serialized `tf.train.Example`.

    Raises:
      ValueError: If the format is unknown.
    """
    annotation = {CLASS_LABEL: class_id, CLASS_TEXT: class_name.encode()}
    return _serialize_image(image_bytes, image_format, size, image_id, annotation)


def _serialize_image(
    image_bytes: bytes,
    image_format: str,
    size: tuple[int, int],
    image_id: str,
    annotation: Mapping[str, bytes | int],
) -> bytes:
    if image_format not in IMAGE_FORMATS:
        raise ValueError(f"image format {image_format!r}: must be one of {', '.join(IMAGE_FORMATS)}")
    height, width = size
    return _serialize(
        {
            IMAGE_ENCODED: image_bytes,
            IMAGE_FILENAME: image_id.encode(),
            IMAGE_FORMAT: image_format.encode(),
            IMAGE_HEIGHT: height,
            IMAGE_WIDTH: width,
            IMAGE_CHANNELS: 3,
            **annotation,
        }
    )


def encode_image_example(image_bytes: bytes) -> bytes:
    """A serialized tf.Example of an image file and nothing else, as an export's signature `tf_example` takes it."""
    return _serialize({IMAGE_ENCODED: image_bytes})


def encode_label_map(label: np.ndarray, label_format: str) -> bytes:
    """Codes a label map without loss.

    Args:
      label: int [height, width], values from 0.
      label_format: "raw": int32, little-endian, row by row. "png": gray, 16 bits per pixel; where a value exceeds
        65535, RGB with value = red + 256 green + 65536 blue.

    Raises:
      ValueError: If the format is unknown or a value does not fit.
    """
    if label_format == "raw":
        return label.astype("<i4").tobytes()
    if label_format != "png":
        raise ValueError(f"label format {label_format!r}: must be one of {', '.join(LABEL_FORMATS)}")
    from PIL import Image

    smallest, largest = int(label.min(initial=0)), int(label.max(initial=0))
    if smallest < 0 or largest > _LARGEST_24_BIT:
        raise ValueError(
            f"label values {smallest}..{largest}: a PNG holds 0..{_LARGEST_24_BIT}; write raw labels or take a smaller "
            "label_divisor"
        )
    if largest <= _LARGEST_16_BIT:
        picture = Image.fromarray(label.astype(np.uint16))
    else:
        picture = Image.fromarray(panoptic_ids.id_to_color(label))
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def parse_example(serialized: Tensor) -> Example:
    """Reads an example, eagerly or in a graph.

    Labels are raw where the example does not name their format, as DeepLab2 assumes.

    Args:
      serialized: scalar string.

    Raises:
      tf.errors.InvalidArgumentError: If a feature is missing, cannot be decoded or contradicts another.
    """
    import tensorflow as tf

    required = {key: tf.io.FixedLenFeature([], tf.string) for key in (IMAGE_ENCODED, IMAGE_FILENAME, LABEL_ENCODED)}
    sizes = {key: tf.io.FixedLenFeature([], tf.int64) for key in (IMAGE_HEIGHT, IMAGE_WIDTH)}
    optional = {LABEL_FORMAT: tf.io.FixedLenFeature([], tf.string, default_value="raw")}
    features = tf.io.parse_single_example(serialized, {**required, **sizes, **optional})

    image = tf.io.decode_image(features[IMAGE_ENCODED], channels=3, expand_animations=False)
    image.set_shape([None, None, 3])
    size = tf.stack([features[IMAGE_HEIGHT], features[IMAGE_WIDTH]])
    image_id = features[IMAGE_FILENAME]
    label_format = features[LABEL_FORMAT]
    is_png = tf.equal(label_format, "png")
    tf.debugging.Assert(
        is_png | tf.equal(label_format, "raw"),
        ["image", image_id, LABEL_FORMAT, label_format, "must be png or raw; convert the data set again"],
    )
    label = tf.cond(
        is_png,
        lambda: _decode_png_label(features[LABEL_ENCODED]),
        lambda: tf.reshape(tf.io.decode_raw(features[LABEL_ENCODED], tf.int32), size),
    )
    label.set_shape([None, None])
    for name, tensor in (("image", image), ("label map", label)):
        got = tf.shape(tensor, out_type=tf.int64)[:2]
        tf.debugging.Assert(
            tf.reduce_all(got == size),
            ["image", image_id, "has a", name, "of size", got, "but says", size, "; convert the data set again"],
        )
    return Example(image, label, image_id)


def parse_classified_example(serialized: Tensor) -> ClassifiedExample:
    """Reads an example of a classified image, eagerly or in a graph.

    Args:
      serialized: scalar string.

    Raises:
      tf.errors.InvalidArgumentError: If image or label is missing, or the image cannot be decoded.
    """
    import tensorflow as tf

    features = tf.io.parse_single_example(
        serialized,
        {
            IMAGE_ENCODED: tf.io.FixedLenFeature([], tf.string),
            CLASS_LABEL: tf.io.FixedLenFeature([], tf.int64),
            IMAGE_FILENAME: tf.io.FixedLenFeature([], tf.string, default_value=""),
        },
    )
    image = tf.io.decode_image(features[IMAGE_ENCODED], channels=3, expand_animations=False)
    image.set_shape([None, None, 3])
    return ClassifiedExample(image, features[CLASS_LABEL], features[IMAGE_FILENAME])


def _decode_png_label(png: Tensor) -> Tensor:
    """int32 [height, width] of either PNG coding of `encode_label_map`, or of a gray 8-bit one."""
    import tensorflow as tf

    pixels = tf.cast(tf.io.decode_png(png, dtype=tf.uint16), tf.int32)  # [height, width, 1 or 3]
    # Read as 16 bits, a PNG of 8 bits comes with each byte doubled: v * 257.
    bit_depth = tf.io.decode_raw(tf.strings.substr(png, _PNG_BIT_DEPTH_AT, 1), tf.uint8)[0]
    pixels = tf.cond(tf.equal(bit_depth, 16), lambda: pixels, lambda: pixels // 257)
    return tf.cond(
        tf.equal(tf.shape(pixels)[-1], 1),
        lambda: pixels[..., 0],
        lambda: pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2],
    )


# --- the wire format of tf.train.Example, which is fixed: map<string, Feature> with Feature a oneof of lists ---

_EXAMPLE_FEATURES, _FEATURES_ENTRY, _ENTRY_KEY, _ENTRY_VALUE = 1, 1, 1, 2
_FEATURE_BYTES_LIST, _FEATURE_INT64_LIST, _LIST_VALUE = 1, 3, 1


def _serialize(features: Mapping[str, bytes | int]) -> bytes:
    """A serialized `tf.train.Example`, keys in alphabetical order; integers must not be negative."""
    entries = []
    for key in sorted(features):
        value = features[key]
        if isinstance(value, bytes):
            feature = _field(_FEATURE_BYTES_LIST, _field(_LIST_VALUE, value))
        else:
            feature = _field(_FEATURE_INT64_LIST, _field(_LIST_VALUE, _varint(value)))
        entries.append(_field(_FEATURES_ENTRY, _field(_ENTRY_KEY, key.encode()) + _field(_ENTRY_VALUE, feature)))
    return _field(_EXAMPLE_FEATURES, b"".join(entries))


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field (wire type 2)."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)
