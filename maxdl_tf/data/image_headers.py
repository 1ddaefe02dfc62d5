"""Format and size of encoded images, read from their headers by operations of TensorFlow.

A PNG of some kilobytes may announce more pixels than fit into memory, so sizes are checked before anything is decoded.
"""

from __future__ import annotations

import tensorflow as tf

from maxdl_tf.structs import Tensor

_MAGIC = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}
_SIZE_AT, _BIT_DEPTH_AT, _HEADER = 16, 24, 25  # Offsets in a PNG file: width and height, 4 bytes each; then a byte.


def has_format(encoded: Tensor, name: str) -> Tensor:
    """bool scalar, whether a file, scalar string, begins like those of a format: "jpeg" or "png"."""
    return tf.equal(tf.strings.substr(encoded, 0, len(_MAGIC[name])), _MAGIC[name])


def stored_size(encoded: Tensor) -> Tensor:
    """int32 [2], the (height, width) of a JPEG or PNG file, scalar string, as stored: EXIF is not applied.

    It is 0 or negative for damaged headers of PNGs, and meaningless for other files.

    Raises:
      tf.errors.InvalidArgumentError: The header of a JPEG is damaged.
    """

    def of_png() -> Tensor:
        sides = tf.io.decode_raw(tf.strings.substr(_header(encoded), _SIZE_AT, 8), tf.int32, little_endian=False)
        return tf.stack([sides[1], sides[0]])

    return tf.cond(has_format(encoded, "jpeg"), lambda: tf.image.extract_jpeg_shape(encoded)[:2], of_png)


def png_bit_depth(encoded: Tensor) -> Tensor:
    """uint8 scalar, the bits per channel of a PNG file, scalar string."""
    return tf.io.decode_raw(tf.strings.substr(_header(encoded), _BIT_DEPTH_AT, 1), tf.uint8)[0]


def _header(encoded: Tensor) -> Tensor:
    """The beginning of a file. Zeros follow one that is shorter than a header."""
    return tf.strings.join([tf.strings.substr(encoded, 0, _HEADER), bytes(_HEADER)])
