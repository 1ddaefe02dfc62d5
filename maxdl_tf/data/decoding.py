"""Images and label maps of records, decoded by operations of TensorFlow after a check of their headers."""

from __future__ import annotations

import tensorflow as tf

from maxdl_tf.data.image_headers import has_format, png_bit_depth, stored_size
from maxdl_tf.files.images import MAX_DATA_PIXELS
from maxdl_tf.structs import Tensor


def decode_image(encoded: Tensor, image_id: Tensor) -> Tensor:
    """uint8 [height, width, 3] of a JPEG or PNG file, scalar string.

    Args:
      encoded: Content of the file.
      image_id: scalar string, the name of the record in errors.

    Raises:
      tf.errors.InvalidArgumentError: It is not a JPEG or PNG, has too many pixels, or cannot be decoded.
    """
    image = tf.io.decode_image(_checked(encoded, "an image", image_id), channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


def decode_png_label(png: Tensor, image_id: Tensor) -> Tensor:
    """int32 [height, width] of a PNG of `examples.encode_label_map`, or of an 8-bit gray PNG.

    Args:
      png: scalar string.
      image_id: scalar string, the name of the record in errors.

    Raises:
      tf.errors.InvalidArgumentError: As in `decode_image`.
    """
    png = _checked(png, "a label map", image_id)
    pixels = tf.cast(tf.io.decode_png(png, dtype=tf.uint16), tf.int32)  # [height, width, 1 or 3]
    # Decoded to 16 bits, a value v of 8 bits becomes v * 257.
    pixels = tf.cond(tf.equal(png_bit_depth(png), 16), lambda: pixels, lambda: pixels // 257)
    return tf.cond(
        tf.equal(tf.shape(pixels)[-1], 1),
        lambda: pixels[..., 0],
        lambda: pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2],
    )


def _checked(encoded: Tensor, what: str, image_id: Tensor) -> Tensor:
    """Returns the file itself, after a check of its header."""
    size = stored_size(encoded)
    small = tf.reduce_prod(tf.cast(size, tf.int64)) <= MAX_DATA_PIXELS
    checks = [
        tf.debugging.Assert(
            has_format(encoded, "jpeg") | has_format(encoded, "png"),
            ["image", image_id, f"has {what} that is not a JPEG or PNG; convert it again"],
        ),
        tf.debugging.Assert(
            tf.reduce_all(size > 0) & small,
            ["image", image_id, f"has {what} of size", size, f"; a record holds at most {MAX_DATA_PIXELS} pixels"],
        ),
    ]
    # Eagerly, the checks are None.
    with tf.control_dependencies([check for check in checks if check is not None]):
        return tf.identity(encoded)
