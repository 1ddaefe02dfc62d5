"""Rules from values of more than 8 bits to 0..255."""

import numpy as np
import pytest
from PIL import Image

from maxdl_tf.errors import UserError
from maxdl_tf.files import images
from maxdl_tf.files.intensity import NoIntensityRule, Percentiles, Range, in_8_bits, to_8_bits
from tests.files import png_files


def test_the_limits_of_a_range_become_0_and_255_and_halves_round_up():
    values = np.array([[-3, 100, 109, 110, 111, 4000, 610, 70_000]])
    assert to_8_bits(values, Range(100, 610)).tolist() == [[0, 0, 5, 5, 6, 255, 255, 255]]
    assert to_8_bits(values / 1024, Range(100 / 1024, 610 / 1024)).tolist() == [[0, 0, 5, 5, 6, 255, 255, 255]]


def test_percentiles_are_values_of_the_image_and_of_each_channel():
    values = np.random.default_rng(0).permutation(np.arange(1000)).reshape(25, 40).astype(np.uint16)
    assert Percentiles(0.3, 99.7).limits(values) == (2, 996)  # 3 values of 1,000 are at most 2.
    assert Percentiles(0, 100).limits(values) == (0, 999)
    channels = np.stack([values, values * 2 + 7], axis=-1)
    mapped = to_8_bits(channels, Percentiles(1, 99))
    np.testing.assert_array_equal(mapped[..., 0], mapped[..., 1])
    np.testing.assert_array_equal(mapped[..., 0], to_8_bits(values, Range(9, 989)))


def test_an_image_of_one_value_is_black():
    assert not to_8_bits(np.full((3, 3), 7, np.uint16), Percentiles(0.3, 99.7)).any()


def test_8_bits_stay_as_they_are():
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert in_8_bits(values, "a", Range(0, 4)) is values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e16, -1e16])
def test_values_that_are_no_measurements_are_refused(value):
    with pytest.raises(UserError, match="a: has values that are infinite, not a number, or beyond 1e"):
        in_8_bits(np.array([[1.0, value]]), "a", Range(0, 1))


@pytest.mark.parametrize(
    "values, range_",
    [
        (np.array([[90, 3900]], np.uint16), "low: 0 high: 4095"),
        (np.array([[90, 700]], np.uint16), "low: 0 high: 1023"),
        (np.array([[-90, 70_000]], np.int32), "low: -90 high: 70000"),
        (np.array([[0.25, 0.75]], np.float32), "low: 0.25 high: 0.75"),
    ],
)
def test_without_a_rule_the_error_names_one_for_this_image(values, range_):
    with pytest.raises(NoIntensityRule, match=rf"a\.tif: .* --intensity 'range {{ {range_} }}' for "):
        in_8_bits(values, "a.tif", None)


def test_without_a_rule_the_error_for_colors_names_the_bits_of_the_camera(tmp_path):
    values = np.full((5, 7, 3), 4095, np.uint16)
    (tmp_path / "a.png").write_bytes(png_files.png(values))
    with pytest.raises(NoIntensityRule, match=r"at most 4,095\).* 'range { low: 0 high: 4095 }' for 12 bits"):
        images.read_image(str(tmp_path / "a.png"))


@pytest.mark.parametrize("interlaced", [False, True])
def test_colors_of_16_bits_in_a_png_keep_their_lower_bits(tmp_path, interlaced):
    values = np.random.default_rng(0).integers(0, 4096, (5, 7, 3)).astype(np.uint16)
    content = png_files.png(values, interlaced=interlaced)
    decoded = images.decode_image(content, "a", intensity=Range(0, 4095))
    np.testing.assert_array_equal(decoded.pixels, to_8_bits(values, Range(0, 4095)))
    assert decoded.value_range == (values.min(), values.max())


def test_pictures_and_arrays_in_memory_follow_the_rule():
    values = np.arange(48, dtype=np.uint16).reshape(6, 8) * 80
    wanted = np.repeat(to_8_bits(values, Range(0, 4095))[..., np.newaxis], 3, axis=-1)
    for image in (values, values.astype(np.float32), np.stack([values] * 3, -1), Image.fromarray(values)):
        np.testing.assert_array_equal(images.as_pixels(image, Range(0, 4095)), wanted)
    with pytest.raises(UserError, match="want uint8"):
        images.as_pixels(values)
    with pytest.raises(UserError, match="want uint8"):
        images.as_pixels(np.zeros((5, 6, 8), np.uint16), Range(0, 4095))  # A stack.
