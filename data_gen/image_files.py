"""Image files as they go into examples."""

from __future__ import annotations

import io
import os
from typing import NamedTuple

from PIL import Image

from maxdl_tf.errors import UserError
from maxdl_tf.files import storage


class ImageFile(NamedTuple):
    """An RGB image file.

    Attributes:
      content: Its bytes.
      format: "jpeg" or "png".
      size: (height, width).
    """

    content: bytes
    format: str
    size: tuple[int, int]


def read_image(path: str | os.PathLike) -> ImageFile:
    """An image file as it is; gray, palette and CMYK images become RGB PNGs.

    Raises:
      UserError: If it cannot be read or decoded, or is not a JPEG or PNG of 8 bits.
    """
    content = storage.read_file(path)
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            kind = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png"}.get(image.format)
            if kind is None:
                raise UserError(f"{path}: a {image.format} file; wanted a JPEG or PNG one")
            if image.mode != "RGB":
                if image.mode.startswith(("I", "F")):
                    raise UserError(f"{path}: more than 8 bits per channel; wanted 8")
                file = io.BytesIO()
                image.convert("RGB").save(file, format="PNG")  # Few are, and so nothing is lost.
                content, kind = file.getvalue(), "png"
            return ImageFile(content, kind, (image.height, image.width))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow reports broken PNGs as SyntaxError.
        raise UserError(f"{path}: cannot be decoded: {error}") from error
