"""COCO files: JSON files of panoptic annotations, of instances and of predictions, and the PNGs of segment ids.

All readers of COCO JSON files start with `read_json`, which checks that the lists of the format are there, and read the
entries by `coco_fields`. The converters and the evaluation need correct files: `load_annotations`, `load_instances` and
`load_results` raise an error at the first fault. The checks of maxdl-check-data read the lists themselves and report
every fault.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from maxdl_tf import panoptic_ids
from maxdl_tf.data import coco_fields
from maxdl_tf.data.coco_categories import read_categories
from maxdl_tf.data.coco_fields import shown
from maxdl_tf.errors import UserError, size_mismatch, some
from maxdl_tf.files import storage
from maxdl_tf.files.label_images import open_label_png


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
    """A panoptic JSON file: its images in the order of the file, and its categories as they are in the file."""

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


class Results(NamedTuple):
    """A JSON file of panoptic predictions.

    Attributes:
      annotations: {image id: prediction}.
      file_names: {image id: file name of the image, or of the PNG if the file lists no such image}.
      categories: Categories with id and name; none if the file lists none.
    """

    annotations: dict[Any, ImageAnnotation]
    file_names: dict[Any, str]
    categories: list[dict[str, Any]]


def read_json(path: str | os.PathLike, lists: Iterable[str], kind: str) -> dict[str, Any]:
    """Reads a COCO JSON file.

    Args:
      path: Path of the file.
      lists: Keys of the lists of objects that the file must have.
      kind: File name pattern of the format, such as "panoptic_*.json", for error messages.

    Returns:
      The JSON object; the values of `lists` are lists of dictionaries.

    Raises:
      UserError: The file cannot be read, is not JSON, lacks one of the lists, or an object in it has a key twice.
    """
    content = load_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a JSON {type(content).__name__}, not an object; expected a file like {kind}")
    for key in lists:
        _check_list(content.get(key), key, path, kind)
    return content


def load_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: The file cannot be read, is not JSON, is nested too deeply, or an object has a key twice.
    """
    try:
        # The content of the file has no name here, so that it is freed before the values are built.
        return json.loads(storage.read_file(path), object_pairs_hook=_without_repeated_keys)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} is not a JSON file: {error}") from error
    except RecursionError:
        raise UserError(f"{path}: lists or objects are nested too deeply; expected a COCO file") from None


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has the key {shown(repeated)} twice: {shown(found)}; keep one of them")
    return found


def _check_list(entries: Any, key: str, path: str | os.PathLike, kind: str) -> None:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path} has no list {key!r} of objects; expected a file like {kind}")


def load_annotations(path: str | os.PathLike) -> Annotations:
    """Reads a panoptic JSON file.

    Raises:
      UserError: The file cannot be read, or is not a panoptic JSON file.
    """
    content = read_json(path, ("images", "annotations", "categories"), "panoptic_*.json")
    annotations = _annotations_by_image(content["annotations"], path)
    images = []
    for image_id, image in _images_by_id(content["images"], path).items():
        png_name, segments = annotations.pop(image_id, (None, []))
        images.append(ImageEntry(image["file_name"], image["height"], image["width"], png_name, segments, image_id))
    _check_strangers(annotations, path)
    return Annotations(images, content["categories"])


def load_instances(path: str | os.PathLike) -> tuple[list[InstanceImage], list[dict[str, Any]]]:
    """Reads the images, in the order of the file, and the categories of an instances JSON file.

    Raises:
      UserError: The file cannot be read, or is not an instances JSON file.
    """
    content = read_json(path, ("images", "annotations", "categories"), "instances_*.json")
    images = {
        image_id: InstanceImage(image["file_name"], image["height"], image["width"], [])
        for image_id, image in _images_by_id(content["images"], path).items()
    }
    strangers = set()
    for annotation in coco_fields.read_all(content["annotations"], coco_fields.OBJECT, str(path)):
        image = images.get(annotation["image_id"])
        if image is None:
            strangers.add(annotation["image_id"])
        else:
            image.objects.append(annotation)
    _check_strangers(strangers, path)
    return list(images.values()), read_categories(content["categories"], path)


def load_results(path: str | os.PathLike) -> Results:
    """Reads a JSON file of panoptic predictions, which needs only `annotations`.

    Raises:
      UserError: The file cannot be read, or does not have the format.
    """
    kind = "panoptic.json of maxdl-predict"
    content = read_json(path, ("annotations",), kind)
    for key in ("images", "categories"):
        _check_list(content.setdefault(key, []), key, path, kind)
    annotations = _annotations_by_image(content["annotations"], path)
    file_names = {image_id: annotation.png_name for image_id, annotation in annotations.items()}
    images = _images_by_id(content["images"], path, coco_fields.IMAGE_NAME)
    file_names.update({image_id: row["file_name"] for image_id, row in images.items() if image_id in annotations})
    return Results(annotations, file_names, read_categories(content["categories"], path))


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
    image = open_label_png(storage.read_file(path), os.fspath(path))
    if image.mode != "RGB":
        raise UserError(f"{path}: a PNG of mode {image.mode}; expected RGB, where a segment id is R + 256 G + 65536 B")
    colors = np.asarray(image)
    if size is not None and colors.shape[:2] != size:
        raise UserError(size_mismatch(path, colors.shape[:2], size))
    return panoptic_ids.color_to_id(colors)


def _images_by_id(
    images: Iterable[Any], path: str | os.PathLike, kind: coco_fields.Kind = coco_fields.IMAGE
) -> dict[Any, dict[str, Any]]:
    found: dict[Any, dict[str, Any]] = {}
    for image in coco_fields.read_all(images, kind, str(path)):
        other = found.setdefault(image["id"], image)
        if other is not image:
            raise UserError(
                f"{path}: two images have the id {image['id']}, {other['file_name']} and {image['file_name']}; give "
                "each its own id"
            )
    return found


def _annotations_by_image(annotations: Iterable[Any], path: str | os.PathLike) -> dict[Any, ImageAnnotation]:
    found: dict[Any, ImageAnnotation] = {}
    for annotation in coco_fields.read_all(annotations, coco_fields.PANOPTIC_ANNOTATION, str(path)):
        image_id, png_name = annotation["image_id"], annotation["file_name"]
        if image_id in found:
            raise UserError(f"{path}: image {image_id} has more than one annotation")
        source = f"{path}: image {shown(image_id)}"
        found[image_id] = ImageAnnotation(
            png_name, coco_fields.read_all(annotation["segments_info"], coco_fields.SEGMENT, source)
        )
    return found


def _check_strangers(image_ids: Iterable[Any], path: str | os.PathLike) -> None:
    strangers = sorted(image_ids, key=str)
    if strangers:
        raise UserError(f"{path}: annotations refer to images that the file does not list: {some(strangers)}")
