"""TFRecord examples, written and read without TensorFlow (architecture section 8).

A record is a `tf.train.Example`. The keys are those of DeepLab2, and each program reads the records of the other if
label maps are stored raw. PNG, the default, takes about a fiftieth of the space. Classified images have the keys of the
common ImageNet records.

The processes that convert a data set do not import TensorFlow, which would cost each of them seconds and hundreds of
megabytes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from maxdl_tf import panoptic_ids
from maxdl_tf.files.label_images import open_label_png
from maxdl_tf.protos import example_pb2

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


def encode_panoptic_example(
    image_bytes: bytes, image_format: str, label: np.ndarray, image_id: str, label_format: str = "png"
) -> bytes:
    """Serializes an image with a label map; equal input gives equal bytes on every machine.

    Args:
      image_bytes: Content of the image file, RGB.
      image_format: Format of the image file: "jpeg" or "png".
      label: int [height, width], class id * label divisor + instance, with the size of the image.
      image_id: File name of the image without its extension.
      label_format: "png" or "raw" (int32, little-endian).

    Returns:
      A serialized `tf.train.Example`.

    Raises:
      ValueError: A format is unknown, or a label does not fit into the format.
    """
    annotation = {LABEL_ENCODED: encode_label_map(label, label_format), LABEL_FORMAT: label_format.encode()}
    return _encode_image(image_bytes, image_format, label.shape, image_id, annotation)


def encode_classified_example(
    image_bytes: bytes, image_format: str, size: tuple[int, int], class_id: int, class_name: str, image_id: str
) -> bytes:
    """Serializes an image with a class.

    Args:
      image_bytes: Content of the image file, RGB.
      image_format: Format of the image file: "jpeg" or "png".
      size: (height, width).
      class_id: Class id, from 1.
      class_name: Human-readable name of the class.
      image_id: Name of the image in messages.

    Returns:
      A serialized `tf.train.Example`.

    Raises:
      ValueError: The format is unknown.
    """
    annotation = {CLASS_LABEL: class_id, CLASS_TEXT: class_name.encode(errors="backslashreplace")}
    return _encode_image(image_bytes, image_format, size, image_id, annotation)


def encode_image_example(image_bytes: bytes) -> bytes:
    """Serializes an image file alone, the input of an export's signature `tf_example`."""
    return _serialize({IMAGE_ENCODED: image_bytes})


def _encode_image(
    image_bytes: bytes, image_format: str, size: tuple[int, int], image_id: str, annotation: Mapping[str, bytes | int]
) -> bytes:
    if image_format not in IMAGE_FORMATS:
        raise ValueError(f"image format {image_format!r}: must be one of {', '.join(IMAGE_FORMATS)}")
    height, width = size
    features = {
        IMAGE_ENCODED: image_bytes,
        IMAGE_FILENAME: image_id.encode(errors="backslashreplace"),  # File names may hold bytes that are not UTF-8.
        IMAGE_FORMAT: image_format.encode(),
        IMAGE_HEIGHT: height,
        IMAGE_WIDTH: width,
        IMAGE_CHANNELS: 3,
    }
    return _serialize({**features, **annotation})


def _serialize(features: Mapping[str, bytes | int]) -> bytes:
    example = example_pb2.Example()
    for key, value in features.items():
        feature = example.features.feature[key]
        values = feature.bytes_list if isinstance(value, bytes) else feature.int64_list
        values.value.append(value)
    return example.SerializeToString(deterministic=True)  # Keys in alphabetical order.


def read_features(serialized: bytes) -> dict[str, Any]:
    """Returns {key: value} for the features with a single value.

    Raises:
      ValueError: The bytes are not a `tf.train.Example`.
    """
    from google.protobuf.message import DecodeError

    try:
        example = example_pb2.Example.FromString(serialized)
    except DecodeError as error:
        raise ValueError("is not a tf.train.Example") from error
    features = {}
    for key, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        values = getattr(feature, kind).value if kind else ()
        if len(values) == 1:
            features[key] = values[0]
    return features


def encode_label_map(label: np.ndarray, label_format: str) -> bytes:
    """Encodes a label map without loss.

    Args:
      label: int [height, width], values from 0.
      label_format: "raw": int32, little-endian, row by row. "png": gray, 16 bits per pixel. If a value exceeds 65535,
        RGB with value = red + 256 green + 65536 blue.

    Raises:
      ValueError: The format is unknown, or a value does not fit into it.
    """
    if label_format == "raw":
        return label.astype("<i4").tobytes()
    if label_format != "png":
        raise ValueError(f"label format {label_format!r}: must be one of {', '.join(LABEL_FORMATS)}")
    smallest, largest = int(label.min(initial=0)), int(label.max(initial=0))
    if smallest < 0 or largest > panoptic_ids.MAX_SEGMENT_ID:
        raise ValueError(
            f"label values {smallest}..{largest}: a PNG holds 0..{panoptic_ids.MAX_SEGMENT_ID}; write raw labels or "
            "use a smaller label_divisor"
        )
    pixels = label.astype(np.uint16) if largest <= _LARGEST_16_BIT else panoptic_ids.id_to_color(label)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def decode_label_map(content: bytes, label_format: str, size: tuple[int, int]) -> np.ndarray:
    """Decodes the output of `encode_label_map`, or an 8-bit gray PNG.

    Args:
      content: The encoded label map.
      label_format: "png" or "raw".
      size: (height, width) of a raw label map.

    Returns:
      int32 [height, width].

    Raises:
      ValueError: The format is unknown, a raw label map has another size, or the PNG is damaged.
    """
    if label_format == "raw":
        return np.frombuffer(content, "<i4").reshape(size)
    if label_format != "png":
        raise ValueError(f"label format {label_format!r}: must be one of {', '.join(LABEL_FORMATS)}")
    pixels = np.asarray(open_label_png(content, "label map"))
    return panoptic_ids.color_to_id(pixels) if pixels.ndim == 3 else pixels.astype(np.int32)
