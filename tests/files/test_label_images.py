"""Label images keep their numbers, however a file stores them."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from maxdl_tf.errors import UserError
from maxdl_tf.files.label_images import read_label_image
from tests.files import png_files

LABELS = np.arange(12).reshape(3, 4)


def _read(image: Image.Image, kind="TIFF", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return read_label_image(file.getvalue(), "a")[0]


def _gray_png(values: np.ndarray, bits: int) -> bytes:
    """A PNG of 1, 2 or 4 bits per pixel."""
    rows = b"".join(
        b"\0" + np.packbits([int(bit) for value in row for bit in f"{value:0{bits}b}"]).tobytes() for row in values
    )
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    return png_files.SIGNATURE + b"".join(
        png_files.chunk(*part) for part in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_of_gray_are_not_stretched(bits):
    labels = LABELS % 2**bits
    np.testing.assert_array_equal(read_label_image(_gray_png(labels, bits), "a")[0], labels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_tiff_files_hold_whole_numbers_of_any_type(dtype):
    np.testing.assert_array_equal(_read(Image.fromarray(LABELS.astype(dtype))), LABELS)


@pytest.mark.parametrize("dtype", ["u4", "i8", "f8"])
def test_tiff_files_that_only_tifffile_reads(dtype):
    tifffile = pytest.importorskip("tifffile", reason="tifffile, extra [microscopy], is not installed")
    file = io.BytesIO()
    tifffile.imwrite(file, (LABELS + 70_000).astype(dtype))
    labels, _ = read_label_image(file.getvalue(), "a")
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, LABELS + 70_000)


def test_a_negative_label_of_8_bits_is_not_taken_for_a_large_one():
    tifffile = pytest.importorskip("tifffile", reason="tifffile, extra [microscopy], is not installed")
    file = io.BytesIO()
    tifffile.imwrite(file, np.array([[-1, 2]], np.int8))
    with pytest.raises(UserError, match="a: values -1 to 2; expected whole numbers from 0"):
        read_label_image(file.getvalue(), "a")


def test_an_inverting_lookup_table_changes_no_label():
    """Fiji stores binary masks like this: 255 is the object, shown black."""
    file = io.BytesIO()
    Image.fromarray(LABELS.astype(np.uint8)).save(file, "TIFF", tiffinfo={262: 0})
    labels, _ = read_label_image(file.getvalue(), "a")
    assert labels.astype(np.uint8).tobytes() in file.getvalue()


@pytest.mark.parametrize("value", [-1, 0.5, 2**24, np.nan])
def test_values_that_are_no_labels_are_refused(value):
    with pytest.raises(UserError, match=r"a: values .*; expected whole numbers from 0 to 16,777,215"):
        _read(Image.fromarray(np.array([[0, value]], np.float32)))
