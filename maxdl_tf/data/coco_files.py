"""Reads the COCO panoptic format: a JSON file that lists segments, and a folder of PNGs that draw them."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from maxdl_tf import panoptic_ids
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage

_NAMED = 3  # Faults of one image, in one message.


class ImageEntry(NamedTuple):
    """What the JSON says of one image.

    Attributes:
      file_name: Below the image folder.
      height: In pixels.
      width: In pixels.
      png_name: Below the folder of PNGs; None if the JSON has no annotation of the image.
      segments: The `segments_info` of the annotation.
      image_id: The id by which annotations name the image.
    """

    file_name: str
    height: int
    width: int
    png_name: str | None
    segments: list[dict[str, Any]]
    image_id: Any = None


class Annotations(NamedTuple):
    """A JSON file: its images in the order of the file, and its categories."""

    images: list[ImageEntry]
    categories: list[dict[str, Any]]


class ImageAnnotation(NamedTuple):
    """The annotation of one image: its PNG, below the folder of PNGs, and its `segments_info`."""

    png_name: str
    segments: list[dict[str, Any]]


def load_annotations(path: str | os.PathLike) -> Annotations:
    """Reads a COCO panoptic JSON file with its images and categories.

    Raises:
      UserError: If it cannot be read or does not have the format.
    """
    content = _load(path)
    with _Format(path):
        annotations = _annotations_by_image(content["annotations"], path)
        images = [_image_entry(image, annotations.pop(image["id"], None)) for image in content["images"]]
        if annotations:
            raise UserError(
                f"{path}: annotations of images that are not in its list: {some(sorted(annotations, key=str))}"
            )
        return Annotations(images, content["categories"])


def load_results(path: str | os.PathLike) -> tuple[dict[Any, ImageAnnotation], list[dict[str, Any]]]:
    """Reads a JSON file of predictions, of which only `annotations` is asked for.

    Returns:
      {image id: annotation}, and the categories, none if the file does not list them.

    Raises:
      UserError: If it cannot be read or does not have the format.
    """
    content = _load(path)
    with _Format(path):
        return _annotations_by_image(content["annotations"], path), list(content.get("categories") or [])


def read_panoptic_png(path: str | os.PathLike, size: tuple[int, int] | None = None) -> np.ndarray:
    """Segment ids, int32 [height, width], of a PNG of that size, or of any if it is None.

    Raises:
      UserError: If it cannot be read or decoded, is not RGB or has another size.
    """
    try:
        with Image.open(io.BytesIO(storage.read_file(path))) as image:
            if image.mode != "RGB":
                raise UserError(
                    f"{path}: a PNG of mode {image.mode}; wanted RGB, where a segment's id is R + 256 G + 65536 B"
                )
            colors = np.asarray(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be decoded: {error}") from error
    if size is not None and colors.shape[:2] != size:
        raise UserError(size_mismatch(path, colors.shape[:2], size))
    return panoptic_ids.color_to_id(colors)


def size_mismatch(path: str | os.PathLike, got: tuple[int, int], wanted: tuple[int, int]) -> str:
    return f"{path}: {got[0]} x {got[1]} (height x width), but the JSON file says {wanted[0]} x {wanted[1]}"


def some(faults: Sequence[Any]) -> str:
    """The first few, and how many more there are."""
    named = "; ".join(str(fault) for fault in faults[:_NAMED])
    return named if len(faults) <= _NAMED else f"{named}; and {len(faults) - _NAMED} more"


def _load(path: str | os.PathLike) -> Any:
    try:
        content = storage.read_file(path)
    except UserError as error:
        raise UserError(f"cannot read {error}; check the path") from error
    try:
        return json.loads(content)
    except ValueError as error:
        raise UserError(f"{path} is not a JSON file: {error}") from error


def _annotations_by_image(annotations: list[dict[str, Any]], path: str | os.PathLike) -> dict[Any, ImageAnnotation]:
    found: dict[Any, ImageAnnotation] = {}
    for annotation in annotations:
        if annotation["image_id"] in found:
            raise UserError(f"{path}: image {annotation['image_id']} has more than one annotation")
        found[annotation["image_id"]] = ImageAnnotation(annotation["file_name"], annotation["segments_info"])
    return found


def _image_entry(image: Mapping[str, Any], annotation: ImageAnnotation | None) -> ImageEntry:
    png_name, segments = annotation or (None, [])
    return ImageEntry(image["file_name"], image["height"], image["width"], png_name, segments, image["id"])


class _Format:
    """Tells what a file lacks of the format."""

    def __init__(self, path: str | os.PathLike):
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, traceback) -> None:
        if isinstance(error, KeyError):
            raise UserError(
                f"{self._path} has no {error} where COCO panoptic files have one; is it a panoptic_*.json?"
            ) from error
        if isinstance(error, (TypeError, AttributeError)):
            raise UserError(f"{self._path} is not laid out as COCO panoptic files are: {error}") from error
