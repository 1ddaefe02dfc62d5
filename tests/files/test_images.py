import io
import os

import numpy as np
import pytest
from PIL import Image

from maxdl_tf.errors import UserError
from maxdl_tf.files import images


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


def test_exif_orientation_is_applied(tmp_path, rgb):
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
