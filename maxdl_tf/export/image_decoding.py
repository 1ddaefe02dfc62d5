"""Encoded images to pixels inside of a SavedModel, where nobody looks at them first.

Everything is done by TensorFlow's operations. An image that cannot be taken raises InvalidArgumentError, which names
its place in the batch and what to do. The size is read from the header and checked before anything is decoded, so that
a small file cannot claim a lot of memory.

JPEG (also gray and CMYK) and PNG (also gray, palette, transparency, 16 bits; the first frame of an animation) become
RGB; transparency is dropped, 16 bits are cut to the upper 8. GIF is refused, because TensorFlow unpacks all its frames
at once, however large they say they are. An EXIF orientation is not applied: send upright pixels. (`maxdl-predict`
reads images otherwise, and does apply it.)
"""

from __future__ import annotations

import tensorflow as tf

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_PNG_SIZE_AT = 16  # Width and height follow, 4 bytes each.


def image_sizes(encoded: tf.Tensor, max_pixels: int) -> tf.Tensor:
    """int32 [batch, 2], the (height, width) of string [batch], from their headers.

    Raises:
      tf.errors.InvalidArgumentError: An image is empty, of another format, damaged in its header or too large.
    """

    def size_of(index):
        image = encoded[index]
        size = _header_size(image)
        height, width = tf.unstack(size)
        pixels = tf.cast(height, tf.int64) * tf.cast(width, tf.int64)
        text = tf.strings.as_string
        too_large = tf.strings.join(
            [
                "has ",
                text(height),
                " x ",
                text(width),
                f" pixels; send at most {max_pixels} or export with more --max_pixels",
            ]
        )
        complaint = _first_that_holds(
            (tf.strings.length(image) == 0, "is empty; send the bytes of a JPEG or PNG file"),
            (_kind(image) == "", "is no JPEG or PNG; send the bytes of such a file"),
            ((height < 1) | (width < 1), "has a damaged header; send the whole file, unchanged"),
            (pixels > max_pixels, too_large),
        )
        with tf.control_dependencies([_refuse(index, complaint)]):
            return tf.identity(size)

    indices = tf.range(tf.size(encoded))
    return tf.map_fn(size_of, indices, fn_output_signature=tf.TensorSpec([2], tf.int32), parallel_iterations=1)


def decode_image(encoded: tf.Tensor, index: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """uint8 [height, width, 3] of one of string [batch], whose `size` `image_sizes` told.

    Raises:
      tf.errors.InvalidArgumentError: The image is damaged.
    """

    def decode(image):
        return tf.ensure_shape(tf.io.decode_image(image, 3, expand_animations=False), [None, None, 3])

    image = _attempt(decode, encoded[index], tf.zeros([0, 0, 3], tf.uint8))
    damaged = tf.reduce_any(tf.shape(image)[:2] != size)
    complaint = _first_that_holds((damaged, "is damaged or cut off; send the whole file, unchanged"))
    with tf.control_dependencies([_refuse(index, complaint)]):
        return tf.identity(image)


def encoded_images(examples: tf.Tensor, key: str) -> tf.Tensor:
    """string [batch], the feature `key` of serialized tf.Examples; empty where an example has none or is none."""

    def read(example):
        return tf.io.parse_single_example(example, {key: tf.io.FixedLenFeature([], tf.string)})[key]

    return tf.map_fn(lambda example: _attempt(read, example, tf.constant("")), examples, parallel_iterations=1)


def _kind(image: tf.Tensor) -> tf.Tensor:
    """ "jpeg", "png" or "" by the first bytes."""
    kinds = ((_JPEG, "jpeg"), (_PNG, "png"))
    return _first_that_holds(*((tf.strings.substr(image, 0, len(magic)) == magic, kind) for magic, kind in kinds))


def _header_size(image: tf.Tensor) -> tf.Tensor:
    """int32 [2], (height, width); zeros where the header does not say."""
    unknown = tf.zeros([2], tf.int32)
    length = tf.strings.length(image)

    def of_jpeg():
        return _attempt(lambda image: tf.image.extract_jpeg_shape(image)[:2], image, unknown)

    def of_png():
        width, height = (_number(image, _PNG_SIZE_AT + 4 * place) for place in (0, 1))
        return tf.stack([height, width])

    kind = _kind(image)
    return tf.case(
        [
            (kind == "jpeg", of_jpeg),
            ((kind == "png") & (length >= _PNG_SIZE_AT + 8), of_png),
        ],
        default=lambda: unknown,
    )


def _number(image: tf.Tensor, offset: int) -> tf.Tensor:
    """int32 scalar of the four bytes at `offset`, the highest first; negative if the highest bit is set."""
    parts = tf.cast(tf.io.decode_raw(tf.strings.substr(image, offset, 4), tf.uint8), tf.int32)
    return tf.reduce_sum(tf.bitwise.left_shift(parts, tf.constant([24, 16, 8, 0])))


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
