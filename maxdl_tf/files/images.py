"""Image files: found, read as the network wants them, written whole or not at all."""

from __future__ import annotations

import contextlib
import functools
import glob
import io
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from typing import Union

import numpy as np
from PIL import Image, ImageOps

from maxdl_tf.errors import UserError
from maxdl_tf.files import storage

ImageLike = Union[str, os.PathLike, Image.Image, np.ndarray]  # See `as_pixels`.
MAX_PIXELS = 50_000_000  # Of an image that is read, unless more are asked for.
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def find_all_images(patterns: Iterable[str]) -> list[str]:
    """The image files that any of the patterns means, each once, sorted by path; as `find_images`."""
    paths = (path for pattern in patterns for path in find_images(pattern))
    return sorted({path if storage.is_remote(path) else os.path.normpath(path) for path in paths})


def find_images(pattern: str) -> list[str]:
    """The image files that `pattern` means, sorted by path.

    Args:
      pattern: A file; a folder, which means the files right in it that have the suffix of an image; or a glob, in
        which `**` stands for any number of folders. All may be where tf.io.gfile reaches, where a glob knows no `**`.

    Raises:
      UserError: It means no file.
    """
    if storage.is_folder(pattern):
        paths = [
            os.path.join(pattern, name)
            for name in storage.list_folder(pattern)
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
        # Folders and pipes are no images, whatever they are called; a link to nowhere is told when it is read.
        paths = [path for path in paths if not storage.exists(path) or _is_file(path)]
        if not paths:
            raise UserError(
                f"folder {pattern} has no images (files ending in {' '.join(IMAGE_SUFFIXES)}); "
                f"for images in folders below it give '{os.path.join(pattern, '**', '*.jpg')}'"
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
    """Reads an image as RGB, upright.

    The size is read first: nothing is decoded of an image of more than `max_pixels`.

    An EXIF orientation is applied, so that photographs stand as they were taken. Gray and palette images become RGB,
    16-bit ones keep their upper 8 bits, transparency is dropped, of an animation the first frame is taken.

    Returns:
      uint8 [height, width, 3].

    Raises:
      UserError: The file is not an image, is damaged, too large, or holds floating point pixels.
    """
    try:
        with _pillow_without_a_word(), _open_image(path) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise UserError(
                    f"{path}: {width}x{height} pixels, but at most {max_pixels:,} are read; make it smaller or allow "
                    "more with --max_pixels"
                )
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image, path)
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files, SyntaxError among them.
        reason = re.sub(
            r"cannot identify image file .*", "not an image of a known format", str(error) or type(error).__name__
        )
        raise UserError(f"{path}: cannot be read as an image: {reason}") from error


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
        return _rgb(ImageOps.exif_transpose(image), "PIL image")
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


def _rgb(image: Image.Image, name: str) -> np.ndarray:
    """uint8 [height, width, 3] of a loaded image; `name` is its name in errors."""
    if image.mode.startswith("I"):
        gray = (np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(gray[..., np.newaxis], 3, axis=-1)
    if image.mode == "F":
        raise UserError(f"{name}: floating point pixels; convert it to 8 or 16 bits for each channel")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def write_image(path: str, pixels: np.ndarray) -> None:
    """Writes uint8 [h, w, 3] in the format that the suffix names; another process never sees a part of it.

    Raises:
      OSError: It cannot be written.
    """
    options = {"quality": 92, "subsampling": 0} if path.endswith(".jpg") else {"compress_level": 3}
    if storage.is_remote(path):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="JPEG" if path.endswith(".jpg") else "PNG", **options)
        storage.write_file(path, file.getvalue())  # Remote files appear when they are closed.
        return
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=".", suffix=os.path.splitext(path)[1])
    os.close(handle)
    try:
        Image.fromarray(pixels).save(temporary, **options)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _is_file(path: str) -> bool:
    return storage.exists(path) and not storage.is_folder(path) if storage.is_remote(path) else os.path.isfile(path)


def _open_image(path: str) -> Image.Image:
    """Local files are read as far as they are needed, which of those that are too large is their head."""
    return Image.open(io.BytesIO(storage.read_file(path)) if storage.is_remote(path) else path)


@contextlib.contextmanager
def _pillow_without_a_word() -> Iterator[None]:
    """No warnings of damaged EXIF blocks, which do not hinder us; none of large images, as the limit is our own."""
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
