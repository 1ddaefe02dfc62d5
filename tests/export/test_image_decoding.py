"""What clients send, and what they send by mistake or in bad faith."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maxdl_tf.export.image_decoding import decode_image, image_sizes
from maxdl_tf.files import images
from maxdl_tf.files.intensity import Percentiles, Range
from tests.files import png_files

MAX_PIXELS = 100_000


@pytest.fixture(scope="module")
def decode():
    """Decodes the last image of a batch, in a graph; returns uint8 [h, w, 3]."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def decode(encoded):
        sizes = image_sizes(encoded, MAX_PIXELS)
        index = tf.size(encoded) - 1
        return decode_image(encoded, index, sizes[index])

    return decode


def _picture(mode, size=(37, 23)):
    """Smooth, so that JPEG changes little."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    channels = np.stack([x, y, (x + y) / 2, 1 - x / 2], axis=-1)
    if mode == "I;16":
        return Image.fromarray((channels[..., 0] * 65535).astype(np.uint16))
    pixels = np.round(channels * 255).astype(np.uint8)
    if mode == "P":
        return Image.fromarray(pixels[..., :3]).quantize(64)
    count = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    return Image.fromarray(pixels[..., 0] if count == 1 else pixels[..., :count], mode)


def _encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (37, 23)])
@pytest.mark.parametrize("kind, mode", [("PNG", "RGB"), ("PNG", "L"), ("PNG", "LA"), ("PNG", "RGBA"), ("PNG", "P")])
def test_every_png_becomes_rgb(decode, kind, mode, size):
    image = _picture(mode, size)
    pixels = decode(tf.constant([_encoded(image, kind)])).numpy()
    wanted = image.convert("RGBA" if mode in ("LA", "RGBA") else "RGB")
    np.testing.assert_array_equal(pixels, np.asarray(wanted)[..., :3])


def test_of_16_bits_the_upper_8_are_taken(decode):
    image = _picture("I;16")
    pixels = decode(tf.constant([_encoded(image, "PNG")])).numpy()
    np.testing.assert_array_equal(pixels, np.repeat(np.asarray(image)[..., np.newaxis] >> 8, 3, axis=-1))


@pytest.mark.parametrize(
    "rule", [Range(100, 4095.5), Range(0, 1000), Percentiles(0.3, 99.7), Percentiles(0, 100)], ids=str
)
def test_a_rule_for_16_bits_gives_the_pixels_of_the_reader_of_files(rule):
    """To the last bit, so that an export sees what training saw."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def decode(encoded):
        return decode_image(encoded, tf.constant(0), image_sizes(encoded, MAX_PIXELS)[0], rule)

    generator = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for encoded in (
        png_files.png(generator.integers(0, 65536, (70, 90)).astype(np.uint16)),
        png_files.png((generator.gamma(2.0, 300.0, (70, 90, 3))).astype(np.uint16)),
        png_files.png(np.full((4, 5, 3), 77, np.uint16)),
        _encoded(Image.fromarray(generator.integers(0, 4096, (7, 9)).astype(np.uint16)), "PNG", exif=exif),
        _encoded(_picture("RGB"), "PNG"),
    ):
        wanted = images.decode_image(encoded, "a", intensity=rule).pixels
        np.testing.assert_array_equal(decode(tf.constant([encoded])), wanted)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (37, 23)])
def test_every_jpeg_becomes_rgb(decode, mode, progressive, size):
    encoded = _encoded(_picture(mode, size), "JPEG", quality=95, progressive=progressive)
    pixels = decode(tf.constant([encoded])).numpy()
    wanted = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")).astype(int)
    assert pixels.shape == wanted.shape
    difference = np.abs(pixels - wanted)  # Of two inverse cosine transforms.
    assert difference.mean() <= 2 and difference.max() <= 12


def test_of_an_animation_the_first_frame_is_taken(decode):
    frames = [_picture("RGB"), _picture("RGB").transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    encoded = _encoded(frames[0], "PNG", save_all=True, append_images=frames[1:], loop=0)
    assert b"acTL" in encoded
    pixels = decode(tf.constant([encoded])).numpy()
    np.testing.assert_array_equal(pixels, np.asarray(frames[0]))


def _exif(orientation, big_endian=False):
    """A TIFF header with a description and an orientation."""
    order = ">" if big_endian else "<"
    header = (b"MM" if big_endian else b"II") + struct.pack(order + "HI", 42, 8)
    description = struct.pack(order + "HHI4s", 0x010E, 2, 4, b"abc\0")
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"Exif\0\0" + header + struct.pack(order + "H", 2) + description + entry + bytes(4)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("big_endian", [False, True])
def test_exif_orientation_is_applied_as_by_the_reader_of_files(decode, kind, orientation, big_endian):
    encoded = _encoded(_picture("RGB"), kind, exif=_exif(orientation, big_endian))
    wanted = images.decode_image(encoded, "turned")
    assert wanted.orientation == (orientation if 1 <= orientation <= 8 else 1)
    pixels = decode(tf.constant([encoded])).numpy()
    assert pixels.shape == wanted.pixels.shape == ((37, 23, 3) if 5 <= orientation <= 8 else (23, 37, 3))
    np.testing.assert_allclose(pixels, wanted.pixels.astype(int), atol=0 if kind == "PNG" else 12)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "I;16"])
def test_both_readers_have_one_policy(decode, mode):
    encoded = _encoded(_picture(mode), "PNG")
    np.testing.assert_array_equal(decode(tf.constant([encoded])), images.decode_image(encoded, mode).pixels)


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_damaged_exif_is_ignored(decode, cut):
    """The block is cut, or says that its entries lie beyond the file."""
    block = _exif(6)
    for damaged in (block[:cut], block[:10] + b"\xff\xff\xff\xff" + block[14:]):
        encoded = _encoded(_picture("RGB"), "JPEG", exif=damaged)
        assert decode(tf.constant([encoded])).shape in ((23, 37, 3), (37, 23, 3))


def _claims(kind, width, height):
    """A small file whose header claims a size."""
    encoded = bytearray(_encoded(_picture("RGB"), kind))
    if kind == "PNG":
        encoded[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    else:
        at = encoded.index(b"\xff\xc0") + 5
        encoded[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(encoded)


GOOD = _encoded(_picture("RGB"), "PNG")
JPEG = _encoded(_picture("RGB"), "JPEG")


@pytest.mark.parametrize(
    "encoded, message",
    [
        (b"", "image 1 of the batch is empty; send the bytes of a JPEG or PNG file"),
        (b"hello", "image 1 of the batch is not a JPEG or PNG"),
        (b"BM" + bytes(100), "image 1 of the batch is not a JPEG or PNG"),
        (GOOD[:20], "image 1 of the batch has a damaged header"),
        (JPEG[:20], "image 1 of the batch has a damaged header"),
        (_claims("PNG", 0, 5), "image 1 of the batch has a damaged header"),
        (_claims("PNG", 2**31 + 5, 5), "image 1 of the batch has a damaged header"),
        (GOOD[:-40], "image 1 of the batch is damaged or cut off"),
        (JPEG[:-40], "image 1 of the batch is damaged or cut off"),
        (
            _claims("PNG", 12_000, 9_000),
            "image 1 of the batch has 9000 x 12000 pixels; send at most 100000 or export with",
        ),
        (_claims("PNG", 2**31 - 1, 2**31 - 1), "image 1 of the batch has 2147483647 x 2147483647 pixels"),
        (_claims("JPEG", 12_000, 9_000), "image 1 of the batch has 9000 x 12000 pixels"),
        (_encoded(_picture("P"), "GIF"), "image 1 of the batch is not a JPEG or PNG"),
        (_claims("PNG", 1, 70_000), "image 1 of the batch has a side of more than 65000 pixels; cut it into tiles"),
        (png_files.png(np.full((5, 7), 4095, np.uint16)), "image 1 of the batch has only values below 16384 of 65535"),
        (png_files.png(np.zeros((5, 7, 3), np.uint16)), "image 1 of the batch has only values below 16384 of 65535"),
    ],
)
def test_what_cannot_be_taken_is_told(decode, encoded, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        decode(tf.constant([GOOD, encoded]))


@pytest.mark.parametrize("damage", png_files.DAMAGED)
def test_pngs_that_the_reader_of_files_refuses_are_refused_here(decode, damage):
    """All but bombs beside the pixels, which TensorFlow does not unpack."""
    encoded = tf.constant([png_files.DAMAGED[damage]])
    if "bomb" in damage:
        np.testing.assert_array_equal(decode(encoded)[..., 0], png_files.GRAY)
        return
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"image 0 of the batch (is damaged|has a damaged header)"):
        decode(encoded)


@pytest.mark.parametrize("behind", [b"", b"text", bytes(100)])
@pytest.mark.parametrize("interlaced", [False, True])
def test_both_readers_take_whole_pngs_with_bytes_behind_their_end(decode, interlaced, behind):
    pixels = np.array([[1, 2, 3], [0, 0, 0]], np.uint8)
    encoded = png_files.png(pixels, interlaced=interlaced) + behind
    for read in (decode(tf.constant([encoded])), images.decode_image(encoded, "a").pixels):
        np.testing.assert_array_equal(read[..., 0], pixels)


def test_hostile_bytes_give_pixels_or_a_clear_error(decode):
    """300 files that are cut, stretched, have bytes changed at random or are of parts of several."""
    generator = np.random.default_rng(0)
    modes = [("PNG", mode) for mode in ("RGB", "L", "LA", "RGBA", "P", "I;16")]
    modes += [("JPEG", mode) for mode in ("RGB", "L", "CMYK")] + [("GIF", "P")]
    files = [_encoded(_picture(mode), kind) for kind, mode in modes]
    taken = refused = 0
    for number in range(300):
        file = bytearray(files[number % len(files)])
        where = int(generator.integers(0, len(file)))
        harm = number % 5
        if harm == 0:
            file = file[:where]
        elif harm == 1:
            file += generator.bytes(where)
        elif harm == 2:
            for place in generator.integers(0, len(file), 5):
                file[place] = generator.integers(0, 256)
        elif harm == 3:
            file[where:where] = files[int(generator.integers(0, len(files)))][:where]
        else:
            for place in generator.integers(0, min(64, len(file)), 2):
                file[place] = generator.integers(0, 256)
        try:
            pixels = decode(tf.constant([bytes(file)])).numpy()
            assert pixels.dtype == np.uint8 and pixels.shape[2] == 3 and 0 < pixels.size <= 3 * MAX_PIXELS
            taken += 1
        except tf.errors.InvalidArgumentError as error:
            assert "image 0 of the batch " in str(error), str(error)
            refused += 1
    assert taken > 60 and refused > 60
