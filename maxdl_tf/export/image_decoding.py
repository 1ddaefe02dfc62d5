"""Encoded images to pixels inside a SavedModel, by TensorFlow's operations alone.

JPEG and PNG files are decoded by the policy of `maxdl_tf.files.images`: upright by EXIF, RGB, 8 bits, no transparency,
the first frame, 16 bits by the rule of the data set or else nothing that 8 bits show almost black. GIF is refused,
because TensorFlow unpacks all frames at once, whatever their claimed size.

The size is read from the header and checked before anything is decoded, so that a small file cannot claim a lot of
memory. A file that cannot be decoded raises InvalidArgumentError, which names its place in the batch and the remedy.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from maxdl_tf.data.image_headers import has_format, png_bit_depth, stored_size
from maxdl_tf.files.images import MAX_SIDE
from maxdl_tf.files.intensity import DARK_16_BIT, IntensityRule, Percentiles, Range, to_8_bits

_NUM_VALUES = 2**16  # Of 16 bits.
_MOST_SEGMENTS = 100  # Segments of a file that are searched for EXIF, which comes before the pixels.


def image_sizes(encoded: tf.Tensor, max_pixels: int) -> tf.Tensor:
    """int32 [batch, 2], the (height, width) of each upright image of string [batch], from the headers.

    Raises:
      tf.errors.InvalidArgumentError: An image is empty, of another format, damaged in its header or too large.
    """

    def size_of(index):
        image = encoded[index]
        size = _attempt(stored_size, image, tf.zeros([2], tf.int32))
        height, width = tf.unstack(size)
        pixels = tf.cast(height, tf.int64) * tf.cast(width, tf.int64)
        text = tf.strings.as_string
        too_large = tf.strings.join(
            [
                *("has ", text(height), " x ", text(width)),
                f" pixels; send at most {max_pixels} or export with more --max_pixels",
            ]
        )
        complaint = _first_that_holds(
            (tf.strings.length(image) == 0, "is empty; send the bytes of a JPEG or PNG file"),
            (
                ~(has_format(image, "jpeg") | has_format(image, "png")),
                "is not a JPEG or PNG; send the bytes of such a file",
            ),
            ((height < 1) | (width < 1), "has a damaged header; send the whole file, unchanged"),
            (pixels > max_pixels, too_large),
            (tf.reduce_max(size) > MAX_SIDE, f"has a side of more than {MAX_SIDE} pixels; cut it into tiles"),
        )
        with tf.control_dependencies([_refuse(index, complaint)]):
            return tf.where(_orientation(image) >= 5, tf.stack([width, height]), size)

    indices = tf.range(tf.size(encoded))
    return tf.map_fn(size_of, indices, fn_output_signature=tf.TensorSpec([2], tf.int32), parallel_iterations=1)


def decode_image(
    encoded: tf.Tensor, index: tf.Tensor, size: tf.Tensor, intensity: IntensityRule | None = None
) -> tf.Tensor:
    """uint8 [height, width, 3] of one of string [batch].

    Args:
      encoded: Image files.
      index: Index of the image.
      size: int32 [2], its (height, width) from `image_sizes`.
      intensity: Rule for PNG files of 16 bits.

    Raises:
      tf.errors.InvalidArgumentError: The image is damaged, or has 16 bits and would be almost black in 8 bits.
    """

    def has_16_bits(image):
        return has_format(image, "png") & (png_bit_depth(image) == 16)

    def decode(image):
        return tf.ensure_shape(tf.io.decode_image(image, 3, expand_animations=False), [None, None, 3])

    def decode_by_rule(image):
        return tf.cond(
            has_16_bits(image),
            lambda: _by_rule(tf.io.decode_png(image, 3, tf.uint16), intensity),
            lambda: decode(image),
        )

    image = _attempt(decode_by_rule if intensity else decode, encoded[index], tf.zeros([0, 0, 3], tf.uint8))
    orientation = _orientation(encoded[index])
    image = tf.cond(orientation > 1, lambda: _turned(image, orientation), lambda: image)
    damaged = tf.reduce_any(tf.shape(image)[:2] != size)
    too_dark = f"has only values below {DARK_16_BIT} of 65535; scale all images alike to 0..65535, or send 8 bits"
    cases = [(damaged, "is damaged or cut off; send the whole file, unchanged")]
    if not intensity:
        cases.append((has_16_bits(encoded[index]) & (tf.reduce_max(image) < DARK_16_BIT >> 8), too_dark))
    complaint = _first_that_holds(*cases)
    with tf.control_dependencies([_refuse(index, complaint)]):
        return tf.identity(image)


def encoded_images(examples: tf.Tensor, key: str) -> tf.Tensor:
    """string [batch], the feature `key` of serialized tf.Examples; empty if an example is invalid or lacks it."""

    def read(example):
        return tf.io.parse_single_example(example, {key: tf.io.FixedLenFeature([], tf.string)})[key]

    return tf.map_fn(lambda example: _attempt(read, example, tf.constant("")), examples, parallel_iterations=1)


def _by_rule(values: tf.Tensor, rule: IntensityRule) -> tf.Tensor:
    """uint8 [height, width, 3] of uint16 values; exactly what `intensity.to_8_bits` makes of them."""
    channels = []
    for channel in tf.unstack(tf.cast(values, tf.int32), axis=-1):
        if isinstance(rule, Range):
            table = tf.constant(to_8_bits(np.arange(_NUM_VALUES)[:, np.newaxis], rule)[:, 0])
        else:
            table = _table_of_percentiles(tf.reshape(channel, [-1]), rule)
        channels.append(tf.gather(table, channel))
    return tf.stack(channels, axis=-1)


def _table_of_percentiles(channel: tf.Tensor, rule: Percentiles) -> tf.Tensor:
    """uint8 [65536], the result of a rule for each value, in an image of these values, int32 [pixels]."""
    up_to_value = tf.cumsum(tf.math.bincount(channel, minlength=_NUM_VALUES, maxlength=_NUM_VALUES))
    percentiles = tf.constant([rule.low / 100, rule.high / 100], tf.float64)
    counts = tf.math.ceil(percentiles * tf.cast(tf.size(channel), tf.float64))
    limits = tf.searchsorted(up_to_value, tf.cast(tf.maximum(counts, 1), tf.int32))
    low, high = tf.unstack(tf.cast(limits, tf.float64))
    high = tf.where(high > low, high, low + 1)
    results = (tf.range(_NUM_VALUES, dtype=tf.float64) - low) * 255 / (high - low) + 0.5
    return tf.cast(tf.clip_by_value(results, 0, 255), tf.uint8)


def _orientation(image: tf.Tensor) -> tf.Tensor:
    """int64 scalar, the EXIF orientation of an encoded image, 1..8; 1 if it has none."""
    data = _bytes(image)
    is_jpeg = has_format(image, "jpeg")

    def next_segment(start, exif):
        """JPEG: FF, marker, length with itself, content. PNG: length of the content, name, content, checksum."""

        def of_jpeg():
            is_exif = (_number(data, start, 2) == 0xFFE1) & (tf.strings.substr(image, start + 4, 6) == b"Exif\0\0")
            # Pixels follow the marker DA; anything but a marker is damage.
            goes_on = (_number(data, start, 1) == 0xFF) & (_number(data, start + 1, 1) != 0xDA)
            return is_exif, start + 10, tf.where(goes_on, start + 2 + _number(data, start + 2, 2), length)

        def of_png():
            is_exif = tf.strings.substr(image, start + 4, 4) == b"eXIf"
            return is_exif, start + 8, start + 12 + _number(data, start, 4)

        is_exif, content, following = tf.cond(is_jpeg, of_jpeg, of_png)
        return following, tf.where(is_exif, content, exif)

    length = tf.cast(tf.strings.length(image), tf.int64)
    _, exif = tf.while_loop(
        lambda start, exif: (start + 12 <= length) & (exif == 0),
        next_segment,
        (tf.where(is_jpeg, tf.constant(2, tf.int64), 8), tf.constant(0, tf.int64)),
        maximum_iterations=_MOST_SEGMENTS,
    )
    return tf.cond(exif > 0, lambda: _tiff_orientation(data, exif), lambda: tf.constant(1, tf.int64))


def _tiff_orientation(data: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """int64 scalar, the orientation in the TIFF header that begins at `start`."""
    little = _number(data, start, 2) == 0x4949  # "II"; otherwise the high bytes come first, "MM".
    directory = start + _number(data, start + 4, 4, little)
    count = _number(data, directory, 2, little)
    entries = directory + 2 + 12 * tf.range(count)  # Each: tag 2, type 2, count 4, value 4 bytes.
    is_orientation = _number(data, entries, 2, little) == 0x0112
    values = tf.boolean_mask(_number(data, entries + 8, 2, little), is_orientation)
    value = tf.reduce_max(tf.concat([values[:1], tf.constant([1], tf.int64)], axis=0))
    return tf.where(value <= 8, value, 1)


def _turned(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """An image [height, width, 3] of this orientation, upright."""
    image = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    upside_down = tf.reduce_any(orientation == tf.constant([3, 4, 7, 8], tf.int64))
    mirrored = tf.reduce_any(orientation == tf.constant([2, 3, 6, 7], tf.int64))
    return tf.reverse(image, tf.where([upside_down, mirrored])[:, 0])


def _bytes(text: tf.Tensor) -> tf.Tensor:
    """uint8 [length + 1], the bytes of a string and a 0."""
    return tf.concat([tf.io.decode_raw(text, tf.uint8), [0]], axis=0)


def _number(data: tf.Tensor, offset: tf.Tensor | int, size: int, little: tf.Tensor | bool = False) -> tf.Tensor:
    """int64, the unsigned numbers of `size` bytes at each offset of `data`, which `_bytes` made; 0 beyond its end."""
    places = tf.cast(offset, tf.int64)[..., tf.newaxis] + tf.range(size, dtype=tf.int64)
    parts = tf.gather(data, tf.clip_by_value(places, 0, tf.size(data, tf.int64) - 1))
    shifts = [8 * place for place in range(size)]  # Reversed in Python: grappler fails on slices of negative stride.
    parts = tf.bitwise.left_shift(
        tf.cast(parts, tf.int64),
        tf.where(little, tf.constant(shifts, tf.int64), tf.constant(shifts[::-1], tf.int64)),
    )
    return tf.reduce_sum(parts, axis=-1)


def _attempt(function, argument: tf.Tensor, otherwise: tf.Tensor) -> tf.Tensor:
    """`function(argument)`, or `otherwise` where it raises.

    A graph cannot catch errors, but a data set can leave out elements that raise.
    """
    results = tf.data.Dataset.from_tensors(argument).map(function).ignore_errors()
    return results.reduce(otherwise, lambda _, result: result)


def _first_that_holds(*cases: tuple[tf.Tensor, str | tf.Tensor]) -> tf.Tensor:
    """The text of the first condition that holds, or ""."""
    text = tf.constant("")
    for condition, case in reversed(cases):
        text = tf.where(condition, case, text)
    return text


def _refuse(index: tf.Tensor, complaint: tf.Tensor) -> tf.Operation:
    """Raises if there is a complaint about an image of the batch."""
    message = tf.strings.join(["image ", tf.strings.as_string(index), " of the batch ", complaint])
    return tf.debugging.Assert(complaint == "", [message])
