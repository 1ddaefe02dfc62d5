"""TIFF files of microscopes: what is an image in them, and what is refused."""

import sys

import numpy as np
import pytest
from PIL import Image

from maxdl_tf.errors import UserError
from maxdl_tf.files import images, tiff
from maxdl_tf.files.intensity import Range

RULE = Range(0, 4095)
GRAY = np.linspace(0, 4095, 48).astype(np.uint16).reshape(6, 8)
COLORS = np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1]], axis=-1)


def in_8_bits(values):
    return np.floor(values.astype(np.float64) * 255 / 4095 + 0.5).astype(np.uint8)


@pytest.fixture
def tifffile():
    return pytest.importorskip("tifffile", reason="tifffile, extra [microscopy], is not installed")


GRAY_FILES = {
    "plain": {},
    "big-endian": {"byteorder": ">"},
    "deflated": {"compression": "zlib", "predictor": True},
    "ImageJ": {"imagej": True},
    "OME": {"ome": True, "metadata": {"axes": "YX"}},
    "BigTIFF": {"bigtiff": True},
}


@pytest.mark.parametrize("kind", GRAY_FILES)
def test_a_rule_maps_a_gray_image_however_it_is_stored(tifffile, tmp_path, kind):
    path = str(tmp_path / "a.tif")
    tifffile.imwrite(path, GRAY, **GRAY_FILES[kind])
    np.testing.assert_array_equal(
        images.read_image(path, intensity=RULE), in_8_bits(GRAY)[..., np.newaxis].repeat(3, 2)
    )


@pytest.mark.parametrize("dtype", ["u2", "i2", "u4", "i4", "i8", "f4", "f8"])
def test_a_rule_reads_all_types_of_numbers(tifffile, tmp_path, dtype):
    path = str(tmp_path / "a.tif")
    tifffile.imwrite(path, GRAY.astype(dtype))
    np.testing.assert_array_equal(images.read_image(path, intensity=RULE)[..., 0], in_8_bits(GRAY))


@pytest.mark.parametrize("values", [[-100, 0, 100], [0, 2**31 - 1, 2**32 - 1]], ids=["i1", "u4"])
def test_numbers_keep_the_sign_that_pillow_mistakes(tifffile, tmp_path, values):
    path = str(tmp_path / "a.tif")
    tifffile.imwrite(path, np.array([values], np.int8 if values[0] else np.uint32))
    rule = Range(values[0], values[-1])
    assert images.read_image(path, intensity=rule)[..., 0].tolist() == [[0, 128, 255] if values[0] else [0, 127, 255]]


CHANNELS = np.moveaxis(COLORS, -1, 0)
COLOR_FILES = {
    "RGB": (COLORS, {"photometric": "rgb"}),
    "RGB with alpha": (np.concatenate([COLORS, COLORS[..., :1]], -1), {"photometric": "rgb"}),
    "planes of color": (CHANNELS, {"photometric": "rgb", "planarconfig": "separate"}),
    "ImageJ hyperstack": (CHANNELS, {"imagej": True, "metadata": {"axes": "CYX"}}),
    "OME": (CHANNELS, {"ome": True, "metadata": {"axes": "CYX"}}),
    "two channels": (CHANNELS[:2], {"imagej": True, "metadata": {"axes": "CYX"}}),
    "floats": (COLORS.astype(np.float32), {"photometric": "rgb"}),
}


@pytest.mark.parametrize("kind", COLOR_FILES)
def test_one_to_three_channels_become_red_green_and_blue(tifffile, tmp_path, kind):
    values, options = COLOR_FILES[kind]
    path = str(tmp_path / "a.tif")
    tifffile.imwrite(path, values, **options)
    wanted = in_8_bits(COLORS)
    if kind == "two channels":
        wanted[..., 2] = 0
    np.testing.assert_array_equal(images.read_image(path, intensity=RULE), wanted)


def test_planes_of_color_of_16_bits_are_not_taken_for_8_bits(tifffile, tmp_path):
    path = str(tmp_path / "a.tif")
    tifffile.imwrite(path, CHANNELS * 16, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(images.read_image(path), COLORS >> 4)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_four_planes_may_be_a_stack(tifffile, tmp_path, dtype):
    """tifffile has written arrays of this shape so by default."""
    path = str(tmp_path / "a.tif")
    tifffile.imwrite(path, np.ones((4, 6, 8), dtype), photometric="rgb", planarconfig="separate")
    with pytest.raises(UserError, match=r"a\.tif: four planes, which may be a stack or RGB with alpha; save each"):
        images.read_image(path, intensity=RULE)


STACKS = {
    "slices": ((5, 6, 8), "ZYX", r"a stack of 5 slices \(z\) of 8 x 6 pixels; save each image as a file of its own"),
    "times and slices": ((4, 3, 2, 6, 8), "TZCYX", r"a stack of 4 times \(t\) x 3 slices \(z\) x 2 channels of 8 x 6"),
    "four channels": ((4, 6, 8), "CYX", "4 channels; save an image with at most three of them"),
}


@pytest.mark.parametrize("kind", STACKS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_stacks_are_refused_with_their_shape(tifffile, tmp_path, kind, dtype):
    shape, axes, message = STACKS[kind]
    tifffile.imwrite(tmp_path / "a.tif", np.ones(shape, dtype), imagej=True, metadata={"axes": axes})
    with pytest.raises(UserError, match=rf"a\.tif: {message}"):
        images.read_image(str(tmp_path / "a.tif"))


def test_pages_without_a_meaning_are_refused(tifffile, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", CHANNELS, photometric="minisblack", metadata=None)
    with pytest.raises(
        UserError, match=r"a stack of 3 pages of 8 x 6 pixels; save each page .* if .* channels, state it"
    ):
        images.read_image(str(tmp_path / "a.tif"), intensity=RULE)
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        file.write(GRAY)
        file.write(GRAY.astype(np.float32))
    with tifffile.TiffWriter(tmp_path / "c.tif") as file:
        file.write(GRAY[::2, ::2])
        file.write(GRAY)
    for name in ("b.tif", "c.tif"):
        with pytest.raises(UserError, match=rf"{name}: 2 images in a TIFF file; save each"):
            images.read_image(str(tmp_path / name), intensity=RULE)


def test_a_file_without_pixels_is_no_image(tifffile, tmp_path):
    with pytest.warns(UserWarning, match="zero-size"):
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((0, 5), np.uint16))
    with pytest.raises(UserError, match=r"a\.tif: cannot be read as an image: it has no pixels"):
        images.read_image(str(tmp_path / "a.tif"))


def test_a_pyramid_is_its_largest_image(tifffile, tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(GRAY)
        file.write(GRAY[::2, ::2], subfiletype=1)
    np.testing.assert_array_equal(images.read_image(str(tmp_path / "a.tif"), intensity=RULE)[..., 0], in_8_bits(GRAY))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_colors_of_16_bits_stand_upright(tifffile, tmp_path, orientation):
    """The inverse of each turn is written, as a camera stores it."""
    stored = tiff.turned(COLORS, {6: 8, 8: 6}.get(orientation, orientation))
    path = str(tmp_path / "a.tif")
    tifffile.imwrite(path, stored, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    np.testing.assert_array_equal(images.read_image(path, intensity=RULE), in_8_bits(COLORS))
    eight_bits = np.asarray(Image.open(_with_8_bits(tifffile, tmp_path, stored, orientation)))  # Pillow's opinion.
    np.testing.assert_array_equal(eight_bits, in_8_bits(COLORS))


def _with_8_bits(tifffile, folder, stored, orientation):
    tifffile.imwrite(folder / "8.tif", in_8_bits(stored), photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    return folder / "8.tif"


def test_a_large_image_is_refused_before_it_is_decoded(tifffile, tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, COLORS, photometric="rgb")
    path.write_bytes(path.read_bytes()[:-100])  # Decoding it fails.
    with pytest.raises(
        UserError, match=r"a\.tif: 8x6 pixels, but the limit is 47; .* raise the limit with --max_pixels"
    ):
        images.read_image(str(path), 47, limit_flag="--max_pixels", intensity=RULE)
    with pytest.raises(UserError, match=r"a\.tif: cannot be read as an image"):
        images.read_image(str(path), intensity=RULE)


def test_without_tifffile_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    path = str(tmp_path / "a.tif")
    Image.fromarray(GRAY).save(path)
    np.testing.assert_array_equal(images.read_image(path, intensity=RULE)[..., 0], in_8_bits(GRAY))
    page = Image.fromarray(in_8_bits(GRAY))
    page.save(path, save_all=True, append_images=[page])
    with pytest.raises(UserError, match=r"several pages, which needs tifffile; .*pip install 'maxdl_tf\[microscopy\]'"):
        images.read_image(path)
