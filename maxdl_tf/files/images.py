"""Image files: found, decoded by one policy, written whole or not at all.

The policy, which `maxdl_tf.export.image_decoding` follows inside SavedModels:

- Only the formats of `FORMATS` are opened, whatever the name of the file. Damaged files are refused.
- The size is read first. An image of more pixels than allowed, or with a side over `MAX_SIDE`, is refused before it is
  decoded.
- Pixels stand upright: an EXIF orientation is applied. Orientations in XMP are ignored.
- Gray, palette and CMYK images become RGB. Transparency is dropped.
- Values of more than 8 bits are mapped by the rule of the data set (`intensity`). Without a rule, channels of 16 bits
  keep their upper 8 bits. If all values are below `DARK_16_BIT`, the result would be almost black, and the image is
  refused. Pixels of 32 bits are treated as 16 bits if they fit; floating point pixels are refused.
- An animation is reduced to its first frame. A TIFF file holds one image (`tiff`).
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, NamedTuple, Union

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from maxdl_tf.errors import UserError
from maxdl_tf.files import png_structure, storage, tiff
from maxdl_tf.files.intensity import DARK_16_BIT, IntensityRule, in_8_bits, too_dark, value_range

ImageLike = Union[str, os.PathLike, Image.Image, np.ndarray]  # See `as_pixels`.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
MAX_PIXELS = 50_000_000  # Default limit of a photograph.
MAX_DATA_PIXELS = 178_956_970  # Limit of an image or label map of a data set, which is Pillow's default.
MAX_SIDE = 65_000  # With a legend beside it, the overlay still fits into a JPEG file, whose limit is 65,500.
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_VARIANTS = {"MPO": "JPEG"}  # Photographs with further images behind the first.
_EXIF_ORIENTATION = 0x0112
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DecodedImage(NamedTuple):
    """The content of an image file.

    Attributes:
      pixels: uint8 [height, width, 3], RGB, upright.
      format: Format of the file in lower case, such as "jpeg" or "png".
      mode: Pillow's name for the channels of the file, such as "RGB", "L" or "I;16".
      orientation: EXIF orientation of the file, which `pixels` no longer have; 1 if the file is upright.
      value_range: Smallest and largest value of more than 8 bits, from which `pixels` were made; None if Pillow made
        them.
    """

    pixels: np.ndarray
    format: str
    mode: str
    orientation: int
    value_range: tuple[float, float] | None = None


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
        # Folders and pipes are not images, whatever their names. A dead link is reported when it is read.
        paths = [path for path in paths if not storage.exists(path) or _is_file(path)]
        if not paths:
            raise UserError(
                f"folder {pattern} has no images (files ending in {' '.join(IMAGE_SUFFIXES)}); "
                f"for images in folders below it, give '{os.path.join(pattern, '**', '*.jpg')}'"
            )
    else:
        paths = storage.matching_files(pattern)
        if not paths:
            raise UserError(f"no file matches {pattern!r}; give an image file, a folder of images or a glob")
    return sorted(paths)


def read_image(
    path: str, max_pixels: int = MAX_PIXELS, *, limit_flag: str = "", intensity: IntensityRule | None = None
) -> np.ndarray:
    """The pixels of an image file, uint8 [height, width, 3], by the policy of this module.

    Args:
      path: Path of the file.
      max_pixels: Largest number of pixels.
      limit_flag: Flag that raises this limit, for the error.
      intensity: Rule for values of more than 8 bits, which the class table has.

    Raises:
      UserError: The file is not an image, is damaged or too large, or 8 bits per channel cannot show it.
    """
    with storage.open_file(path) as file:
        # A local file is read as far as needed: only its header if it is too large.
        source = io.BytesIO(file.read()) if storage.is_remote(path) else file
        return _decode(source, path, max_pixels, limit_flag, intensity).pixels


def as_pixels(image: ImageLike, intensity: IntensityRule | None = None) -> np.ndarray:
    """The pixels of an image in any form that a predictor takes.

    Args:
      image: A path; a PIL image, which is turned upright by its EXIF orientation and converted to RGB; or an array,
        uint8 [height, width, 3] in RGB. With a rule, also an array of other numbers, [height, width] or
        [height, width, 3].
      intensity: Rule for values of more than 8 bits.

    Returns:
      uint8 [height, width, 3], RGB.

    Raises:
      UserError: The file cannot be read, or the array has another shape or type.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(os.fspath(image), intensity=intensity)
    if isinstance(image, Image.Image):
        with _user_errors("PIL image", FORMATS):
            return _as_rgb(ImageOps.exif_transpose(image), "PIL image", intensity)
    if not isinstance(image, np.ndarray):
        raise UserError(f"image {type(image).__name__}: want a path, a PIL image or a uint8 [height, width, 3] array")
    is_image = image.size and (image.ndim == 2 or (image.ndim == 3 and image.shape[-1] == 3))
    if intensity and is_image and image.dtype.kind in "uif" and image.dtype != np.uint8:
        return _three_channels(in_8_bits(image, "image", intensity))
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


def decode_image(
    content: bytes, name: str, max_pixels: int = MAX_PIXELS, intensity: IntensityRule | None = None
) -> DecodedImage:
    """Decodes the content of an image file by the policy of this module.

    Args:
      content: Content of the file.
      name: Name of the file in errors.
      max_pixels: Largest number of pixels.
      intensity: Rule for values of more than 8 bits.

    Raises:
      UserError: As in `read_image`.
      NoIntensityRule: The image needs a rule, and there is none.
    """
    return _decode(io.BytesIO(content), name, max_pixels, intensity=intensity)


def open_image(
    source: IO[bytes],
    name: str,
    formats: Sequence[str] = FORMATS,
    max_pixels: int = MAX_DATA_PIXELS,
    limit_flag: str = "",
) -> Image.Image:
    """Opens and loads an image with Pillow; nothing else in this package does (`tiff` looks at headers).

    Args:
      source: Content of the file.
      name: Name of the file in errors.
      formats: Formats to try, of `FORMATS`.
      max_pixels: Largest number of pixels.
      limit_flag: Flag that raises this limit, for the error.

    Raises:
      UserError: The file is not of these formats, is damaged or too large.
    """
    with _user_errors(name, formats):
        image = Image.open(source, formats=formats)
        _check_size(*image.size, name, max_pixels, limit_flag)
        image.load()
        if image.format == "PNG":
            last_row = np.asarray(image.crop((0, image.height - 1, *image.size)))
            source.seek(0)
            fault = png_structure.fault(source.read(), last_row_is_zero=not last_row.any())
            if fault:
                raise ValueError(fault)
        return image


def tiff_values(
    source: IO[bytes], name: str, max_pixels: int = MAX_DATA_PIXELS, limit_flag: str = "", *, exact: bool = True
) -> np.ndarray | None:
    """The values of a TIFF file that Pillow does not read as they are; None for other files.

    Args:
      source: Content of the file.
      name: Name of the file in errors.
      max_pixels: Largest number of pixels.
      limit_flag: Flag that raises this limit, for the error.
      exact: Whether the upper 8 of 16 bits are not enough.

    Returns:
      Numbers [height, width] or [height, width, 3], upright.

    Raises:
      UserError: As in `read_image`; or the file has several images, or tifffile is not installed.
    """
    with _user_errors(name, ("TIFF",)):
        reason = tiff.beyond_pillow(source, exact)
        if not reason:
            return None
        return tiff.read_values(source, name, lambda *size: _check_size(*size, name, max_pixels, limit_flag), reason)


def has_16_bits(image: Image.Image, source: IO[bytes]) -> bool:
    """Whether channels of which Pillow keeps only the upper 8 bits had 16 bits."""
    if image.format == "TIFF":
        return tiff.bits(image) > 8
    if image.format == "PNG":
        source.seek(24)
        return source.read(1)[0] > 8
    return False


def encode_png(pixels: np.ndarray, compress_level: int = 1) -> bytes:
    """The content of a PNG file with these pixels, uint8 [height, width, 3] or [height, width]."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=compress_level)
    return file.getvalue()


def as_upright_file(
    content: bytes, name: str, max_pixels: int = MAX_PIXELS, intensity: IntensityRule | None = None
) -> bytes:
    """`content` itself if it is an upright JPEG or PNG file, else the same image as a PNG file.

    Readers that ignore EXIF and know only these formats, such as TensorFlow, see the right pixels in the result. An
    image to which the rule `intensity` applies also becomes a PNG file of 8 bits.

    Raises:
      UserError: As in `read_image`.
    """
    image = decode_image(content, name, max_pixels, intensity)
    is_mapped = intensity is not None and image.value_range is not None
    if image.format in ("jpeg", "png") and image.orientation == 1 and not is_mapped:
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


def _decode(
    source: IO[bytes], name: str, max_pixels: int, limit_flag: str = "", intensity: IntensityRule | None = None
) -> DecodedImage:
    values = tiff_values(source, name, max_pixels, limit_flag, exact=intensity is not None)
    if values is not None:
        mode = "RGB" if values.ndim == 3 else "L" if values.dtype == np.uint8 else "I;16"
        pixels = _three_channels(in_8_bits(values, name, intensity))
        return DecodedImage(pixels, "tiff", mode, 1, value_range(values))
    image = open_image(source, name, max_pixels=max_pixels, limit_flag=limit_flag)
    with _user_errors(name, FORMATS):
        orientation = _orientation(image)
        kind = _VARIANTS.get(image.format, image.format).lower()
        if intensity and kind == "png" and len(image.getbands()) > 1 and has_16_bits(image, source):
            values = tiff.turned(_png_colors(source, name), orientation)
            return DecodedImage(in_8_bits(values, name, intensity), kind, image.mode, orientation, value_range(values))
        if kind == "tiff" and image.mode in ("I", "L"):
            values = tiff.stored_values(image)
            return DecodedImage(
                _three_channels(in_8_bits(values, name, intensity)), kind, image.mode, 1, value_range(values)
            )
        turned = image.transpose(_TO_UPRIGHT[orientation]) if orientation in _TO_UPRIGHT else image
        pixels = _as_rgb(turned, name, intensity, has_16_bits=has_16_bits(image, source))
        values = np.asarray(image) if image.mode[0] in "IF" else pixels
        return DecodedImage(pixels, kind, image.mode, orientation, value_range(values))


def _png_colors(source: IO[bytes], name: str) -> np.ndarray:
    """uint16 [height, width, 3] of a PNG with colors of 16 bits, of which Pillow keeps the upper 8."""
    try:
        import tensorflow as tf
    except ImportError:
        raise UserError(f"{name}: a PNG with colors of 16 bits needs TensorFlow; convert the file to TIFF") from None
    source.seek(0)
    return tf.io.decode_png(source.read(), channels=3, dtype=tf.uint16).numpy()


def _check_size(width: int, height: int, name: str, max_pixels: int, limit_flag: str) -> None:
    if width * height > max_pixels:
        raise UserError(
            f"{name}: {width}x{height} pixels, but the limit is {max_pixels:,}; make the image smaller"
            + (f" or raise the limit with {limit_flag}" if limit_flag else "")
        )
    if max(width, height) > MAX_SIDE:
        raise UserError(f"{name}: {width}x{height} pixels; a side has at most {MAX_SIDE:,}; cut it into tiles")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1..8; 1 if the EXIF block is damaged.

    Pillow's `getexif` also searches XMP and text for an orientation, which browsers and TensorFlow ignore.
    """
    if image.format == "TIFF":  # Pillow turned it upright.
        return 1
    exif = Image.Exif()
    with contextlib.suppress(Exception):
        exif.load(image.info.get("exif", b""))
    orientation = exif.get(_EXIF_ORIENTATION)
    return orientation if orientation in range(1, 9) else 1


def _as_rgb(
    image: Image.Image, name: str, intensity: IntensityRule | None = None, *, has_16_bits: bool = False
) -> np.ndarray:
    if image.mode[0] in "IF":  # One channel of 16 or 32 bits.
        return _three_channels(in_8_bits(np.asarray(image), name, intensity))
    pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    if has_16_bits and pixels.max() < DARK_16_BIT >> 8:
        raise too_dark(name, int(pixels.max()) << 8 | 255)
    return pixels


def _three_channels(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., np.newaxis], 3, axis=-1) if values.ndim == 2 else values


def _is_file(path: str) -> bool:
    return storage.exists(path) and not storage.is_folder(path) if storage.is_remote(path) else os.path.isfile(path)


@contextlib.contextmanager
def _user_errors(name: str, formats: Sequence[str]) -> Iterator[None]:
    """Turns all that Pillow raises on damaged files, SyntaxError and MemoryError among them, into UserError.

    Pillow stays silent about damaged EXIF blocks, and applies no size limit of its own.
    """
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        except UserError:
            raise
        except UnidentifiedImageError:
            raise UserError(f"{name}: cannot be read as an image: not a {' or '.join(formats)} file") from None
        except Exception as error:
            raise UserError(f"{name}: cannot be read as an image: {str(error) or type(error).__name__}") from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit
