"""Records cannot claim more memory than an image may take, and hold JPEG and PNG files only."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maxdl_tf.data import decoding
from maxdl_tf.data.examples import encode_label_map

PIXELS = np.random.default_rng(0).integers(0, 256, [5, 7, 3], dtype=np.uint8)


def _file(kind: str, pixels=PIXELS, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def _png_of(width: int, height: int) -> bytes:
    """A PNG whose header announces this size; it has few rows."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(bytes(100_000)), b"IEND"]
    framed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def _jpeg_of(width: int, height: int) -> bytes:
    content = bytearray(_file("JPEG"))
    start = content.index(b"\xff\xc0")  # Start of frame: length 2, precision 1, height 2, width 2.
    content[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def _in_graph(decode):
    """The function in a map of a data set, where operations may run in any order."""

    def run(content: bytes) -> np.ndarray:
        dataset = tf.data.Dataset.from_tensors(content).map(lambda encoded: decode(encoded, "image7"))
        return next(iter(dataset)).numpy()

    return run


def _eager(decode):
    return lambda content: decode(tf.constant(content), "image7").numpy()


@pytest.mark.parametrize("mode", [_eager, _in_graph])
def test_images_and_label_maps_are_decoded_as_before(mode):
    np.testing.assert_array_equal(mode(decoding.decode_image)(_file("PNG")), PIXELS)
    np.testing.assert_array_equal(
        mode(decoding.decode_image)(_file("JPEG", quality=90)), tf.io.decode_image(_file("JPEG", quality=90), 3)
    )
    for label in (np.arange(35).reshape(5, 7), np.arange(35).reshape(5, 7) * 30_000):
        np.testing.assert_array_equal(mode(decoding.decode_png_label)(encode_label_map(label, "png")), label)
    np.testing.assert_array_equal(mode(decoding.decode_png_label)(_file("PNG", PIXELS[..., 0])), PIXELS[..., 0])


@pytest.mark.parametrize("mode", [_eager, _in_graph])
@pytest.mark.parametrize("decode", [decoding.decode_image, decoding.decode_png_label])
@pytest.mark.parametrize(
    "content, words",
    [
        (_png_of(20_000, 20_000), r"size.*20000,? 20000.*at most 178956970 pixels"),
        (_png_of(1, 2**31 - 1), "at most 178956970"),
        (_png_of(2**32 - 1, 2**32 - 1), "at most 178956970"),
        (_png_of(0, 10), "at most 178956970"),
        (_jpeg_of(65_500, 65_500), "at most 178956970"),
        (_file("GIF"), "not a JPEG or PNG"),
        (_file("BMP"), "not a JPEG or PNG"),
        (b"\x89PNG\r\n\x1a\n", "at most 178956970"),
        (b"", "not a JPEG or PNG"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_header(mode, decode, content, words):
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"(?s)image7.*{words}"):
        mode(decode)(content)
