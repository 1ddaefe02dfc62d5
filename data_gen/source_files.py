"""Files that converters read: images, label PNGs, and pairs of both with matching names."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from maxdl_tf.errors import UserError, size_mismatch, some
from maxdl_tf.files import images, storage

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")  # Formats that records hold.
_ADVICE = "or skip such files with --on_error skip"


class ImageFile(NamedTuple):
    """An RGB image file.

    Attributes:
      content: Content of the file.
      format: "jpeg" or "png".
      size: (height, width).
    """

    content: bytes
    format: str
    size: tuple[int, int]


def read_image(path: str | os.PathLike) -> ImageFile:
    """Reads an image file; gray, palette, CMYK and EXIF-rotated images become upright RGB PNGs, others stay unchanged.

    Raises:
      UserError: The file cannot be read or decoded, or is not a JPEG or PNG of 8 bits per channel.
    """
    content = storage.read_file(path)
    image = images.decode_image(content, os.fspath(path), images.MAX_DATA_PIXELS)
    if image.format not in ("jpeg", "png"):
        raise UserError(
            f"{path}: a {image.format.upper()} file; expected JPEG or PNG; convert it to a PNG of 8 bits per channel"
        )
    if image.mode.startswith("I"):
        raise UserError(f"{path}: more than 8 bits per channel; scale its values to 0..255 and save it with 8 bits")
    size = image.pixels.shape[:2]
    if image.mode == "RGB" and image.orientation == 1:
        return ImageFile(content, image.format, size)
    return ImageFile(images.encode_png(image.pixels, compress_level=6), "png", size)


def read_png(path: str | os.PathLike) -> tuple[np.ndarray, str]:
    """Reads a label PNG.

    Returns:
      int32 [height, width] for a gray or palette PNG, uint8 [height, width, channels] for others; the mode of the PNG
      in Pillow's terms ("L", "I;16", "P", "RGB", ...).

    Raises:
      UserError: The file cannot be read or decoded.
    """
    image = images.open_label_png(storage.read_file(path), os.fspath(path))
    pixels = np.asarray(image)
    return (pixels.astype(np.int32) if pixels.ndim == 2 else pixels), image.mode


def read_png_colors(path: str | os.PathLike) -> np.ndarray:
    """Reads the colors of a PNG of 8 bits, palette or not: uint8 [height, width, 3].

    Raises:
      UserError: The file cannot be read or decoded, has 16 bits, or transparent pixels.
    """
    image = images.open_label_png(storage.read_file(path), os.fspath(path))
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        raise UserError(f"{path}: a PNG of mode {image.mode}; expected RGB or a palette, whose colors are classes")
    if image.mode in ("LA", "RGBA") and np.asarray(image)[..., -1].min(initial=255) < 255:
        raise UserError(f"{path}: has transparent pixels, which have no color; save the mask without transparency")
    return np.asarray(image.convert("RGB"))


def read_gray_png(path: str | os.PathLike) -> np.ndarray:
    """Reads a label PNG without channels: int32 [height, width].

    Raises:
      UserError: The file cannot be read or decoded, or has channels.
    """
    pixels, mode = read_png(path)
    if pixels.ndim != 2:
        raise UserError(f"{path}: a PNG of mode {mode}; expected a gray PNG, whose values are class numbers")
    return pixels


def check_size(path: str | os.PathLike, got: tuple[int, ...], expected: tuple[int, ...], other: str) -> None:
    """Raises UserError if the size of a file differs from the size of `other`; sizes are (height, width)."""
    if tuple(got) != tuple(expected):
        raise UserError(size_mismatch(path, got, expected, f"{other} is"))


class FilePair(NamedTuple):
    """An image and its label map.

    Attributes:
      name: Common name of the two, relative to their folders and without suffix.
      image: Path of the image; None if it is missing.
      label: Path of the label map; None if it is missing.
      instances: Path of the mask of instances; None if the label map has none.
    """

    name: str
    image: str | None
    label: str | None
    instances: str | None = None

    def fault(self) -> str | None:
        """Describes the missing file, if any."""
        if self.image is None:
            return f"{self.label}: the image {self.name!r} is missing"
        if self.label is None:
            return f"{self.image}: the label map {self.name!r} is missing"
        return None

    def check(self) -> None:
        """Raises UserError if one of the two is missing."""
        if self.fault():
            raise UserError(f"{self.fault()}; add it, {_ADVICE}")


def find_pairs(image_dir: str, label_dir: str, *, image_ending: str = "", label_ending: str = "") -> list[FilePair]:
    """Pairs the images of a folder with the PNGs of another one, subfolders included, sorted by name.

    Args:
      image_dir: Folder of the images.
      label_dir: Folder of the label maps. It may be the same or lie in the other one: label maps are not images.
      image_ending: End of the image names before the suffix; images without it are ignored.
      label_ending: End of the label map names before the suffix; label maps without it are ignored.

    Raises:
      UserError: No names match, or two files have the same name.
    """
    labels = _by_name(label_dir, label_ending, (".png",))
    label_paths = {os.path.normpath(path) for path in labels.values()}
    images = _by_name(image_dir, image_ending, IMAGE_SUFFIXES, label_paths)
    others = [] if images else storage.find_files(image_dir, ("",))
    if others and not any(path.lower().endswith(IMAGE_SUFFIXES) for path in others):
        raise UserError(
            f"{image_dir} has no JPEG or PNG files, only others such as {min(others)}; convert images to JPEG or PNG "
            "with 8 bits per channel"
        )
    if not images.keys() & labels.keys():
        raise UserError(
            f"no image in {image_dir} ({_examples(images)}) has a label map of the same name in {label_dir} "
            f"({_examples(labels)}); give the files matching names, and label maps the suffix .png"
        )
    names = sorted({*images, *labels})
    return [FilePair(name, images.get(name), labels.get(name)) for name in names]


def check_pairs(pairs: Sequence[FilePair]) -> None:
    """Raises UserError if a file is missing, so that a long conversion does not stop halfway."""
    faults = [pair.fault() for pair in pairs if pair.fault()]
    if faults:
        raise UserError(f"{some(faults)}; add them, {_ADVICE}")


def _by_name(folder: str, ending: str, suffixes: tuple[str, ...], others: Collection[str] = ()) -> dict[str, str]:
    """{name: path} of the files with one of the suffixes; `others` are paths of files of another kind."""
    found: dict[str, str] = {}
    for path in storage.find_files(folder, suffixes):
        stem = path.rpartition(".")[0]
        if not stem.endswith(ending) or os.path.normpath(f"{folder}/{path}") in others:
            continue
        name = stem[: len(stem) - len(ending)]
        if name in found:
            raise UserError(f"{folder}/{path} and {found[name]} have the same name without suffix; rename one of them")
        found[name] = f"{folder}/{path}"
    return found


def _examples(files: dict[str, str]) -> str:
    return f"{len(files)} files, such as {min(files.values())}" if files else "no such files"
