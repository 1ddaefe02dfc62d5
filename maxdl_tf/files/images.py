"""Image files: found, decoded by one policy, written whole or not at all.

The policy, which `maxdl_tf.export.image_decoding` follows inside SavedModels:

- Pixels stand upright: an EXIF orientation is applied.
- Gray, palette and CMYK images become RGB. Transparency is dropped.
- Channels of 16 bits keep their upper 8 bits. Floating point pixels are refused.
- An animation is reduced to its first frame.
- The size is read first. An image of more pixels than allowed is refused before it is decoded.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import io
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Union

import numpy as np
from PIL import Image, ImageOps

from maxdl_tf.errors import UserError
from maxdl_tf.files import storage

ImageLike = Union[str, os.PathLike, Image.Image, np.ndarray]  # See `as_pixels`.
MAX_PIXELS = 50_000_000  # Default limit of an image that is decoded.
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_FORMATS = {"MPO": "jpeg"}  # Photographs with further images behind the first.
_EXIF_ORIENTATION = 0x0112


class DecodedImage(NamedTuple):
    """The content of an image file.

    Attributes:
      pixels: uint8 [height, width, 3], RGB, upright.
      format: Format of the file in lower case, such as "jpeg" or "png".
      mode: Pillow's name for the channels of the file, such as "RGB", "L" or "I;16".
      orientation: EXIF orientation of the file, which `pixels` no longer have; 1 if the file is upright.
    """

    pixels: np.ndarray
    format: str
    mode: str
    orientation: int


def find_all_images(patterns: Iterable[str]) -> list[str]:
    """The image files that match any of the patterns, each once, sorted by path; see `find_images`."""
    paths = (path for pattern in patterns for path in find_images(pattern))
    return sorted({path if storage.is_remote(path) else os.path.normpath(path) for path in paths})


def find_images(pattern: str) -> list[str]:
    """The image files that match `pattern`, sorted by path.

    Args:
      pattern: A file, a folder, or a glob. A folder stands for the files directly in it that have an image's suffix.
        In a glob, `**` stands for any number of folders, except where tf.io.gfile reads it.

    Raises:
      UserError: No file matches.
    """
    if storage.is_folder(pattern):
        paths = [
            os.path.join(pattern, name)
            for name in storage.list_folder(pattern)
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
        # Folders and pipes are no images, whatever their names. A dead link is reported when it is read.
        paths = [path for path in paths if not storage.exists(path) or _is_file(path)]
        if not paths:
            raise UserError(
                f"folder {pattern} has no images (files ending in {' '.join(IMAGE_SUFFIXES)}); "
                f"for images in folders below it, give '{os.path.join(pattern, '**', '*.jpg')}'"
            )
    elif _is_file(pattern):
        paths = [pattern]
    else:
        matching = storage.glob if storage.is_remote(pattern) else functools.partial(glob.glob, recursive=True)
        paths = [path for path in matching(pattern) if _is_file(path)]
        if not paths:
            raise UserError(f"no file matches {pattern!r}; give an image file, a folder of images or a glob")
    return sorted(paths)


def read_image(path: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The pixels of an image file, uint8 [height, width, 3], by the policy of this module.

    Raises:
      UserError: The file is not an image, is damaged, is too large, or holds floating point pixels.
    """
    # A local file is read as far as needed: only its header if it is too large.
    return _decode(io.BytesIO(storage.read_file(path)) if storage.is_remote(path) else path, path, max_pixels).pixels


def as_pixels(image: ImageLike) -> np.ndarray:
    """The pixels of an image in any form that a predictor takes.

    Args:
      image: A path; a PIL image, which is turned upright by its EXIF orientation and converted to RGB; or an array,
        uint8 [height, width, 3] in RGB.

    Returns:
      uint8 [height, width, 3], RGB.

    Raises:
      UserError: The file cannot be read, or the array has another shape or type.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(os.fspath(image))
    if isinstance(image, Image.Image):
        return _as_rgb(ImageOps.exif_transpose(image), "PIL image")
    if not isinstance(image, np.ndarray):
        raise UserError(f"image {type(image).__name__}: want a path, a PIL image or a uint8 [height, width, 3] array")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
        advice = "check how the image was read"
        if image.dtype != np.uint8:
            advice = "scale it to 0..255 and convert it with image.astype(np.uint8)"
        elif image.ndim == 2:
            advice = "convert gray to RGB with np.stack([image] * 3, axis=-1)"
        elif image.ndim == 4:
            advice = "pass one image at a time"
        elif image.shape[-1] == 4:
            advice = "drop the transparency with image[..., :3]"
        raise UserError(f"image {image.dtype} {list(image.shape)}: want uint8 [height, width, 3], RGB; {advice}")
    return image


def decode_image(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decodes the content of an image file by the policy of this module.

    Args:
      content: Content of the file.
      name: Name of the file in errors.
      max_pixels: Largest number of pixels.

    Raises:
      UserError: As in `read_image`.
    """
    return _decode(io.BytesIO(content), name, max_pixels)


def encode_png(pixels: np.ndarray, compress_level: int = 1) -> bytes:
    """The content of a PNG file with these pixels, uint8 [height, width, 3] or [height, width]."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=compress_level)
    return file.getvalue()


def as_upright_file(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> bytes:
    """`content` itself if it is an upright JPEG or PNG file, else the same image as a PNG file.

    Readers that ignore EXIF and know only these formats, such as TensorFlow, see the right pixels in the result.

    Raises:
      UserError: As in `read_image`.
    """
    image = decode_image(content, name, max_pixels)
    if image.format in ("jpeg", "png") and image.orientation == 1:
        return content
    return encode_png(image.pixels)


def write_image(path: str, pixels: np.ndarray) -> None:
    """Writes uint8 [height, width, 3] as JPEG if `path` ends in .jpg, else as PNG.

    The file appears whole or not at all.

    Raises:
      OSError: It cannot be written.
    """
    if path.endswith(".jpg"):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="JPEG", quality=92, subsampling=0)
        content = file.getvalue()
    else:
        content = encode_png(pixels, compress_level=3)
    storage.write_whole(path, content)


def _decode(file: str | io.BytesIO, name: str, max_pixels: int) -> DecodedImage:
    try:
        with _silent_pillow(), Image.open(file) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise UserError(
                    f"{name}: {width}x{height} pixels, but the limit is {max_pixels:,}; make the image smaller or "
                    "raise the limit with --max_pixels"
                )
            image.load()
            kind, mode = (image.format or "").lower(), image.mode
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
            ImageOps.exif_transpose(image, in_place=True)
            return DecodedImage(
                pixels=_as_rgb(image, name),
                format=_FORMATS.get(image.format, kind),
                mode=mode,
                orientation=orientation if orientation in range(1, 9) else 1,
            )
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files, SyntaxError among them.
        reason = re.sub(
            r"cannot identify image file .*", "not an image of a known format", str(error) or type(error).__name__
        )
        raise UserError(f"{name}: cannot be read as an image: {reason}") from error


def _as_rgb(image: Image.Image, name: str) -> np.ndarray:
    if image.mode.startswith("I"):
        gray = (np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(gray[..., np.newaxis], 3, axis=-1)
    if image.mode == "F":
        raise UserError(f"{name}: floating point pixels; convert it to 8 or 16 bits for each channel")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _is_file(path: str) -> bool:
    return storage.exists(path) and not storage.is_folder(path) if storage.is_remote(path) else os.path.isfile(path)


@contextlib.contextmanager
def _silent_pillow() -> Iterator[None]:
    """No warnings of damaged EXIF blocks, which do no harm here, and no size limit besides ours."""
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
