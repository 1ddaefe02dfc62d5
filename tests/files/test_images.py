import io
import os
import zlib

import numpy as np
import pytest
from PIL import Image

from maxdl_tf.data import coco_files, examples
from maxdl_tf.data_gen import source_files
from maxdl_tf.errors import UserError
from maxdl_tf.files import images
from tests.files import png_files
from tests.files.turned_pictures import save_turned
from tests.helpers import REPOSITORY


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)


def test_rgb_is_read_as_it_is(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    np.testing.assert_array_equal(images.read_image(str(tmp_path / "a.png")), rgb)


def test_transparency_is_dropped_and_gray_and_palette_become_rgb(tmp_path, rgb):
    alpha = np.concatenate([rgb, np.zeros((5, 7, 1), np.uint8)], axis=-1)
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(images.read_image(str(tmp_path / "alpha.png")), rgb)

    Image.fromarray(rgb[..., 0]).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(images.read_image(str(tmp_path / "gray.png")), np.repeat(rgb[..., :1], 3, axis=-1))

    two_colors = np.where(rgb[..., :1] > 128, np.uint8([255, 128, 0]), np.uint8([0, 0, 255]))
    Image.fromarray(two_colors).convert("P", palette=Image.Palette.ADAPTIVE, colors=2).save(tmp_path / "palette.png")
    np.testing.assert_array_equal(images.read_image(str(tmp_path / "palette.png")), two_colors)


def test_sixteen_bits_keep_the_upper_eight(tmp_path, rgb):
    wide = rgb[..., 0].astype(np.uint16) * 256 + 77
    Image.fromarray(wide).save(tmp_path / "wide.png")
    np.testing.assert_array_equal(images.read_image(str(tmp_path / "wide.png")), np.repeat(rgb[..., :1], 3, axis=-1))


def test_the_exif_orientation_is_reported(tmp_path, rgb):
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was turned: rotate by 270 degrees to see it upright.
    Image.fromarray(rgb).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(images.read_image(str(tmp_path / "turned.png")), np.rot90(rgb, 3))
    decoded = images.decode_image((tmp_path / "turned.png").read_bytes(), "turned.png")
    assert (decoded.format, decoded.mode, decoded.orientation, decoded.pixels.shape) == ("png", "RGB", 6, (7, 5, 3))


@pytest.mark.parametrize("suffix, orientation", [("jpg", 6), ("png", 3), ("gif", None), ("webp", None), ("bmp", None)])
def test_an_upright_file_holds_what_is_read(tmp_path, rgb, suffix, orientation):
    """A JPEG or PNG file that is turned, and every other format, becomes PNG."""
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(rgb).save(path, **({"exif": exif} if orientation else {}))
    content = images.as_upright_file(path.read_bytes(), path.name)
    assert content.startswith(b"\x89PNG")
    np.testing.assert_array_equal(images.decode_image(content, "upright").pixels, images.read_image(str(path)))


def test_an_upright_jpeg_or_png_file_stays_as_it_is(rgb):
    for kind in ("JPEG", "PNG"):
        file = io.BytesIO()
        Image.fromarray(rgb).save(file, kind)
        content = file.getvalue()
        assert images.as_upright_file(content, "upright") is content


@pytest.mark.parametrize("damage", ["text", "empty", "truncated"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "bad.jpg"
    if damage == "truncated":
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3)).astype(np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    else:
        path.write_bytes(b"" if damage == "empty" else b"no image")
    with pytest.raises(UserError, match=r"bad\.jpg: cannot be read as an image"):
        images.read_image(str(path))


def test_files_folders_and_globs(tmp_path):
    (tmp_path / "below").mkdir()
    for name in ("b.JPG", "a.png", "notes.txt", ".hidden.png", "below/c.jpg"):
        (tmp_path / name).touch()

    def found(pattern):
        return [os.path.relpath(path, tmp_path) for path in images.find_images(str(tmp_path / pattern))]

    assert found("") == ["a.png", "b.JPG"]
    assert found("**/*.jpg") == ["below/c.jpg"]
    assert found("notes.txt") == ["notes.txt"]  # Named outright: reading it will say what is wrong with it.
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no images"):
        found("empty")
    with pytest.raises(UserError, match="no file matches"):
        found("*.tiff")


def test_folders_and_pipes_are_no_images_but_a_dead_link_is_to_be_told(tmp_path):
    (tmp_path / "a.png").mkdir()
    os.mkfifo(tmp_path / "b.png")  # Opening it would wait forever.
    (tmp_path / "c.png").symlink_to(tmp_path / "nowhere")
    assert images.find_images(str(tmp_path)) == [str(tmp_path / "c.png")]


def test_an_image_that_several_patterns_mean_is_found_once(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    patterns = [str(tmp_path), f"{tmp_path}/./b.png", f"{tmp_path}/*.png"]
    assert images.find_all_images(patterns) == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]


def test_a_large_image_is_refused_before_it_is_decoded(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[:60])  # Decoding it would fail otherwise.
    with pytest.raises(UserError, match=r"cut\.png: 7x5 pixels, but the limit is 34"):
        images.read_image(str(tmp_path / "cut.png"), max_pixels=34)
    assert images.read_image(str(tmp_path / "a.png"), max_pixels=35).shape == (5, 7, 3)


def test_pillows_own_limit_is_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    assert images.read_image(str(tmp_path / "a.png")).shape == (30, 30, 3)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_a_failed_write_leaves_nothing(tmp_path, rgb):
    with pytest.raises(TypeError):
        images.write_image(str(tmp_path / "a.png"), rgb.astype(np.float64))
    assert os.listdir(tmp_path) == []
    images.write_image(str(tmp_path / "a.png"), rgb)
    np.testing.assert_array_equal(images.read_image(str(tmp_path / "a.png")), rgb)
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_all_exif_orientations_are_applied(tmp_path, suffix, orientation):
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24], upright[:16, 24:] = 255, 128  # All eight turns of this differ.
    path = str(tmp_path / f"a.{suffix}")
    save_turned(path, upright, orientation, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_allclose(images.read_image(path), upright.astype(int), atol=4)


def test_an_orientation_in_xmp_is_ignored_as_browsers_and_tensorflow_do(tmp_path, rgb):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    Image.fromarray(rgb).save(tmp_path / "a.jpg", xmp=xmp)
    assert Image.open(tmp_path / "a.jpg").getexif().get(0x0112) == 6
    assert images.read_image(str(tmp_path / "a.jpg")).shape == rgb.shape


def test_only_named_formats_are_opened_whatever_the_name(tmp_path, rgb):
    """An EPS file would start Ghostscript."""
    for kind in ("EPS", "PPM", "ICO", "TGA", "PDF"):
        path = tmp_path / "a.png"
        Image.fromarray(rgb).save(path, kind)
        with pytest.raises(UserError, match=r"a\.png: cannot be read as an image: not a BMP or GIF or JPEG or PNG"):
            images.read_image(str(path))


def test_nothing_else_opens_images_with_pillow():
    sources = [path for folder in ("maxdl_tf", "data_gen") for path in (REPOSITORY / folder).rglob("*.py")]
    opening = {path.name for path in sources if "Image.open(" in path.read_text()}
    assert opening == {"images.py", "tiff.py"}


@pytest.mark.parametrize("damage", png_files.DAMAGED)
def test_all_readers_refuse_damaged_pngs_with_a_user_error(tmp_path, damage):
    path = tmp_path / "a.png"
    path.write_bytes(png_files.DAMAGED[damage])
    for read in (images.read_image, source_files.read_image, source_files.read_labels, coco_files.read_panoptic_png):
        with pytest.raises(UserError, match=r"a\.png: cannot be read as an image: "):
            read(str(path))
    with pytest.raises(UserError, match="cannot be read as an image"):
        examples.decode_label_map(png_files.DAMAGED[damage], "png", (5, 7))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (9, 3), (5, 7, 3)])
def test_whole_pngs_with_black_rows_are_read(interlaced, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    pixels[-1] = 0
    decoded = images.decode_image(png_files.png(pixels, interlaced=interlaced), "a").pixels
    np.testing.assert_array_equal(decoded[..., 0], pixels if pixels.ndim == 2 else pixels[..., 0])


@pytest.mark.parametrize("size", [(1, 70_000), (70_000, 1), (1, 50_000_000)])
def test_a_long_side_is_refused_before_it_is_decoded(tmp_path, size):
    header = np.array(size, ">u4").tobytes()
    content = png_files.WHOLE[:16] + header + png_files.WHOLE[24:29]
    content += zlib.crc32(content[12:]).to_bytes(4, "big") + png_files.WHOLE[33:]
    with pytest.raises(UserError, match=rf"{size[0]}x{size[1]} pixels; a side has at most 65,000; cut it into tiles"):
        images.decode_image(content, "a.png")


def test_the_limit_names_a_flag_only_where_there_is_one(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    for flag in ("", "--max_pixels"):
        with pytest.raises(UserError) as error:
            images.read_image(str(tmp_path / "a.png"), 34, limit_flag=flag)
        assert ("--max_pixels" in str(error.value)) == bool(flag)


@pytest.mark.parametrize("kind, channels", [("PNG", 1), ("PNG", 3), ("TIFF", 1)])
@pytest.mark.parametrize("bits, shown", [(16, True), (15, True), (14, False), (12, False), (8, False)])
def test_what_16_bits_hold_is_never_shown_almost_black(tmp_path, kind, bits, shown, channels):
    """Cameras of 10, 12 and 14 bits store their values in 16 bits, unscaled."""
    values = np.linspace(0, 2**bits - 1, 48).reshape(6, 8).astype(np.uint16)
    path = str(tmp_path / f"a.{kind.lower()}")
    if channels == 3:
        with open(path, "wb") as file:
            file.write(png_files.png(np.repeat(values[..., np.newaxis], 3, axis=-1)))
    else:
        Image.fromarray(values).save(path)
    if shown:
        np.testing.assert_array_equal(images.read_image(path)[..., 0], values >> 8)
    else:
        with pytest.raises(UserError, match=r"a\.\w+: all values are below 16,384 of 65,535.*--intensity .*scale all"):
            images.read_image(path)


def test_label_pngs_with_channels_of_16_bits_are_refused_by_all_readers(tmp_path):
    """Pillow keeps the upper 8 bits: classes, instances and ids below 256 would all be 0."""
    path = tmp_path / "a.png"
    path.write_bytes(png_files.png(np.array([[[3, 1, 0], [5, 200, 0]]], np.uint16)))
    for read in (source_files.read_labels, source_files.read_label_colors, coco_files.read_panoptic_png):
        with pytest.raises(UserError, match=r"a\.png: a PNG with several channels of 16 bits; save it with 8"):
            read(str(path))
    path.write_bytes(png_files.png(np.array([[3, 60_000]], np.uint16)))
    np.testing.assert_array_equal(source_files.read_labels(str(path))[0], [[3, 60_000]])


@pytest.mark.parametrize(
    "values, message",
    [
        ([[0, 255]], "all values are below 16,384"),
        ([[0, 2**31 - 1]], r"values 0 to 2147483647, beyond 0\.\.65535; convert the training data"),
        ([[-5, 60_000]], r"values -5 to 60000, beyond"),
        ([[0, 60_000]], None),
    ],
)
def test_32_bit_integers_are_shown_faithfully_or_refused(tmp_path, values, message):
    path = str(tmp_path / "a.tif")
    Image.fromarray(np.array(values, np.int32)).save(path)
    if message:
        with pytest.raises(UserError, match=message):
            images.read_image(path)
    else:
        np.testing.assert_array_equal(images.read_image(path)[..., 0], np.array(values) >> 8)


def test_links_in_a_circle_below_a_glob_repeat_nothing(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("a.jpg", "b/c.jpg"):
        (tmp_path / name).touch()
    for name in ("one", "two", "b/up"):  # Two alone make 2^40 paths.
        (tmp_path / name).symlink_to(tmp_path)
    assert images.find_images(f"{tmp_path}/**/*.jpg") == [f"{tmp_path}/a.jpg", f"{tmp_path}/b/c.jpg"]
    assert images.find_images(f"{tmp_path}/*/**/*.jpg") == [f"{tmp_path}/b/c.jpg"]


def test_folders_in_a_glob_are_taken_by_their_names_if_they_exist(tmp_path):
    (tmp_path / "run [v2]" / "b").mkdir(parents=True)
    for name in ("a.jpg", "b/a.jpg"):
        (tmp_path / "run [v2]" / name).touch()
    folder = f"{tmp_path}/run [v2]"
    assert images.find_images(f"{folder}/*.jpg") == [f"{folder}/a.jpg"]
    assert images.find_images(f"{folder}/**/a.*") == [f"{folder}/a.jpg", f"{folder}/b/a.jpg"]
    assert images.find_images(folder) == images.find_images(f"{folder}/[ab].jpg") == [f"{folder}/a.jpg"]


@pytest.mark.parametrize("name", ["\udcff.png", "a\0b.png", "\ud800.png", "x" * 300 + ".png"])
def test_odd_names_are_user_errors(tmp_path, name):
    with pytest.raises(UserError, match=r"there is no such file|cannot be read"):
        images.read_image(f"{tmp_path}/{name}")
