"""Reads the COCO instances format: a JSON file that lists objects, each with its polygons or its RLE."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from maxdl_tf.data.coco_files import some
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage


class InstanceImage(NamedTuple):
    """What the JSON says of one image.

    Attributes:
      file_name: Below the image folder.
      height: In pixels.
      width: In pixels.
      objects: Its annotations: dictionaries with id, category_id, segmentation and iscrowd.
    """

    file_name: str
    height: int
    width: int
    objects: list[dict[str, Any]]


_NEEDED = ("id", "category_id", "segmentation")
_KEPT = (*_NEEDED, "iscrowd")


def load_instances(path: str) -> tuple[list[InstanceImage], list[dict[str, Any]]]:
    """The images, in the order of the file, and the categories of a COCO instances JSON file.

    Raises:
      UserError: If it cannot be read or does not have the format.
    """
    try:
        content = json.loads(storage.read_file(path))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not a JSON file: {error}") from error
    try:
        images = {
            image["id"]: InstanceImage(image["file_name"], image["height"], image["width"], [])
            for image in content["images"]
        }
        if len(images) < len(content["images"]):
            raise UserError(f"{path}: two images have one id")
        strangers = set()
        for annotation in content["annotations"]:
            missing = [key for key in _NEEDED if key not in annotation]
            if missing:
                raise UserError(
                    f"{path}: annotation {annotation.get('id')} has no {missing[0]!r}; is it an instances_*.json?"
                )
            if annotation["image_id"] not in images:
                strangers.add(annotation["image_id"])
                continue
            # What is not needed, such as boxes, need not travel to the processes.
            images[annotation["image_id"]].objects.append({key: annotation[key] for key in _KEPT if key in annotation})
        if strangers:
            raise UserError(
                f"{path}: annotations of images that are not in its list: {some(sorted(strangers, key=str))}"
            )
        return list(images.values()), content["categories"]
    except KeyError as error:
        raise UserError(f"{path} has no {error} where COCO instances files have one") from error
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path} is not laid out as COCO instances files are: {error}") from error
