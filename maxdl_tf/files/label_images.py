"""Label images, whose values are numbers: PNG files, and TIFF files as Cellpose, StarDist and Fiji write them."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from maxdl_tf.errors import UserError
from maxdl_tf.files import images, tiff

_LARGEST = 2**24 - 1  # As in a COCO panoptic PNG.
_PNG_BITS_AT = 24  # Offset in a PNG file.
_TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0


def open_label_png(content: bytes, name: str) -> Image.Image:
    """Opens and loads a PNG whose values are numbers, with Pillow.

    Raises:
      UserError: As in `images.open_image`; or several channels have 16 bits, of which Pillow would drop the lower 8.
    """
    return _open(content, name, ("PNG",))


def open_label_image(content: bytes, name: str) -> Image.Image:
    """As `open_label_png`, but also for TIFF files."""
    return _open(content, name, ("PNG", "TIFF"))


def read_label_image(content: bytes, name: str) -> tuple[np.ndarray, str]:
    """Reads the numbers in a PNG or TIFF file.

    Returns:
      int32 [height, width] for gray and palettes, as the file stores them; uint8 [height, width, channels] for others.
      The mode of the file in Pillow's terms ("L", "I;16", "P", "RGB", ...).

    Raises:
      UserError: The file cannot be decoded, or has values that are no numbers of labels.
    """
    values = images.tiff_values(io.BytesIO(content), name)
    if values is not None:
        mode = "I;16"
        if values.ndim == 3:
            raise UserError(f"{name}: a TIFF file with colors of 16 bits or several pages; expected a number per pixel")
    else:
        image = open_label_image(content, name)
        values, mode = tiff.stored_values(image) if image.format == "TIFF" else np.asarray(image), image.mode
        if values.ndim == 3:
            return values, mode
        values = _as_stored(values, image, content)
    if not values.size or 0 <= values.min() <= values.max() <= _LARGEST:
        numbers = values.astype(np.int32)
        if (numbers == values).all():
            return numbers, mode
    raise UserError(
        f"{name}: values {values.min()} to {values.max()}; expected whole numbers from 0 to {_LARGEST:,}, one for each "
        "label"
    )


def _open(content: bytes, name: str, formats: Sequence[str]) -> Image.Image:
    source = io.BytesIO(content)
    image = images.open_image(source, name, formats)
    if len(image.getbands()) > 1 and images.has_16_bits(image, source):
        raise UserError(f"{name}: a {image.format} with several channels of 16 bits; save it with 8 bits per channel")
    return image


def _as_stored(values: np.ndarray, image: Image.Image, content: bytes) -> np.ndarray:
    """Undoes what Pillow does to show gray values: it stretches 2 and 4 bits to 0..255, and inverts white as 0."""
    if image.mode not in ("1", "L"):
        return values
    bits = content[_PNG_BITS_AT] if image.format == "PNG" else tiff.bits(image)
    if image.mode == "L" and bits < 8:
        values = values // (255 // (2**bits - 1))
    if image.format == "TIFF" and image.tag_v2.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        return 2**bits - 1 - values
    return values
