"""Checks data in the COCO panoptic format as they are, before any conversion: a JSON file, PNGs and images.

Unlike the converter, which refuses at the first fault, it goes on and lists all.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from maxdl_tf.data import coco_files
from maxdl_tf.data_gen.checks.findings import Finding, Split
from maxdl_tf.files import storage

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class Source(NamedTuple):
    """Where a split is, and what its JSON file says.

    Attributes:
      split: Its name in messages.
      image_dir: Folder of the images.
      annotation_file: The JSON file.
      panoptic_dir: Folder of the PNGs.
      content: Of the JSON file; `images`, `annotations` and `categories` are lists of dictionaries.
    """

    split: str
    image_dir: str
    annotation_file: str
    panoptic_dir: str
    content: dict[str, list[dict[str, Any]]]


class ImageTask(NamedTuple):
    """An image to check.

    Attributes:
      image: Its entry in the JSON's `images`.
      annotation: Its entry in `annotations`; None if there is none, or if it is incomplete.
    """

    image: dict[str, Any]
    annotation: dict[str, Any] | None


def load_source(image_dir: str, annotation_file: str, panoptic_dir: str | None) -> Source:
    """Reads the JSON file of a split.

    Raises:
      UserError: A folder is not there, or the file is no JSON file with the three lists.
    """
    panoptic_dir = panoptic_dir or os.path.splitext(annotation_file)[0]
    storage.check_folder(image_dir, "--image_dir")
    storage.check_folder(panoptic_dir, "--panoptic_dir")
    content = coco_files.read_json(annotation_file, ("images", "annotations", "categories"), "panoptic_*.json")
    name = os.path.splitext(os.path.basename(annotation_file))[0].removeprefix("panoptic_")
    return Source(name, image_dir, annotation_file, panoptic_dir, content)


def check_lists(source: Source) -> tuple[Split, list[ImageTask]]:
    """What is wrong in the JSON's lists themselves, and the images that can be looked at."""
    json_name = os.path.basename(source.annotation_file)
    split = Split(source.split, {})

    def find(kind: str, file: str, what: str) -> None:
        split.findings.append(Finding(kind, source.split, file, what))

    for kind, what in _check_categories(source.content["categories"], split.categories):
        find(kind, json_name, what)
    annotation_of: dict[Any, dict[str, Any]] = {}
    image_of_png: dict[str, Any] = {}
    for annotation in source.content["annotations"]:
        missing = [key for key in ("image_id", "file_name", "segments_info") if key not in annotation]
        name = str(annotation.get("file_name", json_name))
        if not missing and not isinstance(annotation["segments_info"], list):
            missing = ["segments_info"]
            annotation = {key: value for key, value in annotation.items() if key != "segments_info"}
        if missing:
            find("annotation-incomplete", name, f"an annotation without {' and '.join(missing)}")
        if "image_id" in missing:
            continue
        image_id = annotation["image_id"]
        if image_id in annotation_of:
            find("annotation-repeated", name, f"image {image_id} has another annotation, too")
            continue
        annotation_of[image_id] = annotation
        if "file_name" in missing:
            continue
        if name in image_of_png:
            find("png-shared", name, f"the PNG of image {image_id} and of image {image_of_png[name]}")
        image_of_png.setdefault(name, image_id)
    tasks, findings = _match_images(source, annotation_of)
    split.findings += findings
    listed = {task.image["id"] for task in tasks}
    for image_id, annotation in annotation_of.items():
        if image_id not in listed:
            find(
                "annotation-without-image",
                str(annotation.get("file_name", json_name)),
                f"image {image_id} is not in the list of images",
            )
    return split, tasks


def _check_categories(
    entries: Sequence[dict[str, Any]], categories: dict[int, tuple[str, bool]]
) -> Iterator[tuple[str, str]]:
    """Yields (kind, what); fills {id: (name, is_thing)}."""
    names: Counter[str] = Counter()
    for entry in entries:
        if not (is_integer(entry.get("id")) and entry.get("name") and entry.get("isthing") in (0, 1)):
            yield "category-incomplete", f"category {entry.get('id')}: {_shortened(entry)}"
        if not is_integer(entry.get("id")):
            continue
        name = str(entry.get("name", entry["id"]))
        if entry["id"] in categories:
            yield "category-repeated", f"id {entry['id']} of {categories[entry['id']][0]!r} and of {name!r}"
            continue
        names[name] += 1
        if names[name] == 2:
            yield "category-name-repeated", f"{name!r} is the name of several categories, {entry['id']} is one"
        categories[entry["id"]] = (name, bool(entry.get("isthing")))


def _match_images(source: Source, annotation_of: dict[Any, dict[str, Any]]) -> tuple[list[ImageTask], list[Finding]]:
    json_name = os.path.basename(source.annotation_file)
    tasks, findings = [], []
    id_of_file: dict[str, Any] = {}
    file_of_stem: dict[str, str] = {}
    seen_ids = set()
    for image in source.content["images"]:
        missing = [key for key in ("id", "file_name", "height", "width") if key not in image]
        name = str(image.get("file_name", json_name))
        if missing:
            what = f"image {image.get('id')} has no {' and no '.join(missing)}"
            findings.append(Finding("image-incomplete", source.split, name, what))
            if "id" in image:  # Its annotation is not to be called one without an image.
                annotation_of.pop(image["id"], None)
            continue
        image_id, stem = image["id"], os.path.splitext(name)[0]
        if image_id in seen_ids:
            findings.append(
                Finding("image-id-repeated", source.split, name, f"its id {image_id} is that of another image, too")
            )
            continue
        seen_ids.add(image_id)
        if name in id_of_file:
            what = f"listed as image {id_of_file[name]} and as image {image_id}"
            findings.append(Finding("image-listed-twice", source.split, name, what))
        elif file_of_stem.setdefault(stem, name) != name:
            what = f"without the extension it has the name of {file_of_stem[stem]}"
            findings.append(Finding("image-name-shared", source.split, name, what))
        id_of_file.setdefault(name, image_id)
        annotation = annotation_of.get(image_id)
        if annotation is None:
            what = f"{json_name} has no annotation of image {image_id}"
            findings.append(Finding("image-not-annotated", source.split, name, what))
        is_complete = annotation is not None and {"file_name", "segments_info"} <= annotation.keys()
        tasks.append(ImageTask(image, annotation if is_complete else None))
    return tasks, findings


def files_not_listed(sources: Sequence[Source]) -> Iterator[Finding]:
    """Image files and PNGs that no split lists, though their folders are those of a split."""
    for kind, folder_of, key in (
        ("image-not-listed", "image_dir", "images"),
        ("png-not-listed", "panoptic_dir", "annotations"),
    ):
        listed: dict[str, set[str]] = {}
        first_split: dict[str, str] = {}
        for source in sources:
            folder = os.path.normpath(getattr(source, folder_of))
            names = {os.path.normpath(str(entry.get("file_name"))) for entry in source.content[key]}
            listed.setdefault(folder, set()).update(names)
            first_split.setdefault(folder, source.split)
        suffixes = _IMAGE_SUFFIXES if key == "images" else (".png",)
        for folder, names in listed.items():
            for name in storage.find_files(folder, suffixes):
                is_other_kind = key == "images" and any(_lies_in(folder, name, s.panoptic_dir) for s in sources)
                if os.path.normpath(name) not in names and not is_other_kind:
                    yield Finding(kind, first_split[folder], name, f"in {folder}, and in no JSON file")


def categories_differ(sources: Sequence[Source], splits: Sequence[Split]) -> Iterator[Finding]:
    """Splits whose categories are not those of the first one."""
    for source, split in zip(sources[1:], splits[1:]):
        first = splits[0].categories
        ids = [i for i in sorted({*first, *split.categories}) if first.get(i) != split.categories.get(i)]
        if ids:
            rows = [_category(table.get(ids[0])) for table in (split.categories, first)]
            more = f", and {len(ids) - 1} more differ" if len(ids) > 1 else ""
            what = f"category {ids[0]} is {rows[0]}, in {splits[0].name} it is {rows[1]}{more}"
            yield Finding("categories-differ", split.name, os.path.basename(source.annotation_file), what)


def _lies_in(folder: str, name: str, other: str) -> bool:
    other = os.path.normpath(other)
    return other != folder and os.path.normpath(os.path.join(folder, name)).startswith(other + os.sep)


def _category(row: tuple[str, bool] | None) -> str:
    return "absent" if row is None else f"{row[0]!r}, {'a thing' if row[1] else 'stuff'}"


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shortened(entry: dict[str, Any]) -> str:
    text = json.dumps(entry)
    return text if len(text) <= 80 else text[:77] + "..."
