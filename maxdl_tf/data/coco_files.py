"""COCO files: JSON files of panoptic annotations, of instances and of predictions, and the PNGs of segment ids.

All readers of COCO JSON files start with `read_json`, which checks that the lists of the format are there. The
converters and the evaluation need correct files, so `load_annotations`, `load_instances` and `load_results` raise an
error at the first fault. The checks of maxdl-check-data read the lists themselves and report every fault.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from maxdl_tf import panoptic_ids
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage
from maxdl_tf.files.images import open_image

_NAMED = 3  # Faults in one message.
_NEEDED_OF_OBJECT = ("id", "category_id", "segmentation")


class ImageAnnotation(NamedTuple):
    """A panoptic annotation or prediction of an image.

    Attributes:
      png_name: Path of the PNG relative to the folder of PNGs.
      segments: `segments_info` of the annotation.
    """

    png_name: str
    segments: list[dict[str, Any]]


class ImageEntry(NamedTuple):
    """An image of a panoptic JSON file.

    Attributes:
      file_name: Path relative to the image folder.
      height: Height in pixels.
      width: Width in pixels.
      png_name: Path of the PNG relative to the folder of PNGs; None if the image has no annotation.
      segments: `segments_info` of the annotation.
      image_id: The id that annotations refer to.
    """

    file_name: str
    height: int
    width: int
    png_name: str | None
    segments: list[dict[str, Any]]
    image_id: Any = None


class Annotations(NamedTuple):
    """A panoptic JSON file: its images in the order of the file, and its categories."""

    images: list[ImageEntry]
    categories: list[dict[str, Any]]


class InstanceImage(NamedTuple):
    """An image of an instances JSON file.

    Attributes:
      file_name: Path relative to the image folder.
      height: Height in pixels.
      width: Width in pixels.
      objects: Annotations of the image: dictionaries with id, category_id, segmentation and iscrowd.
    """

    file_name: str
    height: int
    width: int
    objects: list[dict[str, Any]]


def read_json(path: str | os.PathLike, lists: Iterable[str], kind: str) -> dict[str, Any]:
    """Reads a COCO JSON file.

    Args:
      path: Path of the file.
      lists: Keys of the lists of objects that the file must have.
      kind: File name pattern of the format, such as "panoptic_*.json", for error messages.

    Returns:
      The JSON object; the values of `lists` are lists of dictionaries.

    Raises:
      UserError: The file cannot be read, is not JSON, or lacks one of the lists.
    """
    try:
        content = json.loads(storage.read_file(path))
    except UserError as error:
        raise UserError(f"cannot read {error}; check the path") from error
    except ValueError as error:
        raise UserError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a JSON {type(content).__name__}, not an object; expected a file like {kind}")
    for key in lists:
        entries = content.get(key)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{path} has no list {key!r} of objects; expected a file like {kind}")
    return content


def load_annotations(path: str | os.PathLike) -> Annotations:
    """Reads a panoptic JSON file.

    Raises:
      UserError: The file cannot be read, or is not a panoptic JSON file.
    """
    kind = "panoptic_*.json"
    content = read_json(path, ("images", "annotations", "categories"), kind)
    with _missing_keys(path, kind):
        annotations = _annotations_by_image(content["annotations"], path)
        images = []
        for image in content["images"]:
            png_name, segments = annotations.pop(image["id"], (None, []))
            images.append(
                ImageEntry(image["file_name"], image["height"], image["width"], png_name, segments, image["id"])
            )
    _check_strangers(annotations, path)
    return Annotations(images, content["categories"])


def load_instances(path: str | os.PathLike) -> tuple[list[InstanceImage], list[dict[str, Any]]]:
    """Reads the images, in the order of the file, and the categories of an instances JSON file.

    Raises:
      UserError: The file cannot be read, or is not an instances JSON file.
    """
    kind = "instances_*.json"
    content = read_json(path, ("images", "annotations", "categories"), kind)
    images: dict[Any, InstanceImage] = {}
    strangers = set()
    with _missing_keys(path, kind):
        for image in content["images"]:
            if image["id"] in images:
                raise UserError(f"{path}: two images have the id {image['id']}")
            images[image["id"]] = InstanceImage(image["file_name"], image["height"], image["width"], [])
        for annotation in content["annotations"]:
            missing = [key for key in _NEEDED_OF_OBJECT if key not in annotation]
            if missing:
                raise UserError(
                    f"{path}: annotation {annotation.get('id')} has no {missing[0]!r}; expected a file like {kind}"
                )
            if annotation["image_id"] not in images:
                strangers.add(annotation["image_id"])
                continue
            # Other entries, such as boxes, need not be sent to the processes.
            kept = {key: annotation[key] for key in (*_NEEDED_OF_OBJECT, "iscrowd") if key in annotation}
            images[annotation["image_id"]].objects.append(kept)
    _check_strangers(strangers, path)
    return list(images.values()), content["categories"]


def load_results(path: str | os.PathLike) -> dict[Any, ImageAnnotation]:
    """Reads {image id: prediction} of a JSON file of panoptic predictions, which needs only `annotations`.

    Raises:
      UserError: The file cannot be read, or does not have the format.
    """
    kind = "panoptic.json of maxdl-predict"
    content = read_json(path, ("annotations",), kind)
    with _missing_keys(path, kind):
        return _annotations_by_image(content["annotations"], path)


def read_panoptic_png(path: str | os.PathLike, size: tuple[int, int] | None = None) -> np.ndarray:
    """Reads a PNG of segment ids.

    Args:
      path: Path of the PNG.
      size: Expected (height, width); None accepts any size.

    Returns:
      int32 [height, width], segment ids.

    Raises:
      UserError: The file cannot be read or decoded, is not RGB or has another size.
    """
    image = open_image(io.BytesIO(storage.read_file(path)), os.fspath(path), ("PNG",))
    if image.mode != "RGB":
        raise UserError(f"{path}: a PNG of mode {image.mode}; expected RGB, where a segment id is R + 256 G + 65536 B")
    colors = np.asarray(image)
    if size is not None and colors.shape[:2] != size:
        raise UserError(size_mismatch(path, colors.shape[:2], size))
    return panoptic_ids.color_to_id(colors)


def size_mismatch(path: str | os.PathLike, got: tuple[int, int], expected: tuple[int, int]) -> str:
    """Describes a difference between the size of a file and the size in the JSON file, each (height, width)."""
    return f"{path}: {got[0]} x {got[1]} (height x width), but the JSON file states {expected[0]} x {expected[1]}"


def some(faults: Sequence[Any]) -> str:
    """Joins the first few faults and counts the others."""
    named = "; ".join(str(fault) for fault in faults[:_NAMED])
    return named if len(faults) <= _NAMED else f"{named}; and {len(faults) - _NAMED} more"


def _annotations_by_image(
    annotations: Iterable[Mapping[str, Any]], path: str | os.PathLike
) -> dict[Any, ImageAnnotation]:
    found: dict[Any, ImageAnnotation] = {}
    for annotation in annotations:
        if annotation["image_id"] in found:
            raise UserError(f"{path}: image {annotation['image_id']} has more than one annotation")
        found[annotation["image_id"]] = ImageAnnotation(annotation["file_name"], annotation["segments_info"])
    return found


def _check_strangers(image_ids: Iterable[Any], path: str | os.PathLike) -> None:
    strangers = sorted(image_ids, key=str)
    if strangers:
        raise UserError(f"{path}: annotations refer to images that the file does not list: {some(strangers)}")


@contextlib.contextmanager
def _missing_keys(path: str | os.PathLike, kind: str) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise UserError(f"{path}: an entry has no {error}; expected a file like {kind}") from error
