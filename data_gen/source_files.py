"""Files that converters read: images, label images, and pairs of both with matching names."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from maxdl_tf.errors import UserError, size_mismatch, some
from maxdl_tf.files import images, label_images, storage
from maxdl_tf.files.intensity import IntensityRule, NoIntensityRule, advice

FORMATS = ("jpeg", "png", "tiff")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")  # Formats that records hold.
TIFF_SUFFIXES = (".tif", ".tiff")
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


def read_image(path: str | os.PathLike, intensity: IntensityRule | None = None) -> ImageFile:
    """Reads an image file as a record holds it.

    Gray, palette, CMYK and EXIF-rotated images, TIFF files, and images that the rule `intensity` maps to 8 bits become
    upright RGB PNGs. Other files stay unchanged.

    Raises:
      UserError: The file cannot be read or decoded, is not a JPEG, PNG or TIFF, or needs a rule.
    """
    content = storage.read_file(path)
    image = images.decode_image(content, os.fspath(path), images.MAX_DATA_PIXELS, intensity)
    if image.format not in FORMATS:
        raise UserError(
            f"{path}: a {image.format.upper()} file; expected JPEG, PNG or TIFF; convert it to a PNG of 8 bits per "
            "channel"
        )
    if image.value_range and not intensity:
        low, high = image.value_range
        raise NoIntensityRule(f"{path}: values {low} to {high} of more than 8 bits; {advice(low, high)}")
    size = image.pixels.shape[:2]
    if image.mode == "RGB" and image.orientation == 1 and image.format != "tiff" and not image.value_range:
        return ImageFile(content, image.format, size)
    return ImageFile(images.encode_png(image.pixels, compress_level=6), "png", size)


def read_labels(path: str | os.PathLike) -> tuple[np.ndarray, str]:
    """Reads the numbers in a label PNG or TIFF file; see `label_images.read_label_image`.

    Raises:
      UserError: The file cannot be read or decoded.
    """
    return label_images.read_label_image(storage.read_file(path), os.fspath(path))


def read_label_colors(path: str | os.PathLike) -> np.ndarray:
    """Reads the colors of a label PNG or TIFF file of 8 bits, palette or not: uint8 [height, width, 3].

    Raises:
      UserError: The file cannot be read or decoded, has 16 bits, or transparent pixels.
    """
    image = label_images.open_label_image(storage.read_file(path), os.fspath(path))
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        raise UserError(
            f"{path}: a {image.format} of mode {image.mode}; expected RGB or a palette, whose colors are classes"
        )
    if image.mode in ("LA", "RGBA") and np.asarray(image)[..., -1].min(initial=255) < 255:
        raise UserError(f"{path}: has transparent pixels, which have no color; save the mask without transparency")
    return np.asarray(image.convert("RGB"))


def read_gray_labels(path: str | os.PathLike) -> np.ndarray:
    """Reads a label PNG or TIFF file without channels: int32 [height, width].

    Raises:
      UserError: The file cannot be read or decoded, or has channels.
    """
    pixels, mode = read_labels(path)
    if pixels.ndim != 2:
        raise UserError(f"{path}: an image of mode {mode}; expected gray, whose values are class numbers")
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
    """Pairs the images of a folder with the label maps of another one, subfolders included, sorted by name.

    Args:
      image_dir: Folder of the images. A TIFF file with the name of a JPEG or PNG is ignored.
      label_dir: Folder of the label maps: PNGs, or TIFF files if there are no PNGs. It may be the same or lie in the
        other one: label maps are not images.
      image_ending: End of the image names before the suffix; images without it are ignored.
      label_ending: End of the label map names before the suffix; label maps without it are ignored.

    Raises:
      UserError: No names match, or two files have the same name.
    """
    labels = _by_name(label_dir, label_ending, (".png",)) or _by_name(label_dir, label_ending, TIFF_SUFFIXES)
    label_paths = {os.path.normpath(path) for path in labels.values()}
    images = {
        **_by_name(image_dir, image_ending, TIFF_SUFFIXES, label_paths),
        **_by_name(image_dir, image_ending, IMAGE_SUFFIXES, label_paths),
    }
    others = [] if images else storage.find_files(image_dir, ("",))
    if others and not any(path.lower().endswith(IMAGE_SUFFIXES + TIFF_SUFFIXES) for path in others):
        raise UserError(
            f"{image_dir} has no JPEG, PNG or TIFF files, only others such as {min(others)}; convert images to JPEG or "
            "PNG with 8 bits per channel"
        )
    if not images.keys() & labels.keys():
        raise UserError(
            f"no image in {image_dir} ({_examples(images)}) has a label map of the same name in {label_dir} "
            f"({_examples(labels)}); give the files matching names, and label maps the suffix .png or .tif"
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
