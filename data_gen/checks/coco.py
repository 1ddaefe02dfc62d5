r"""Checks images with COCO panoptic annotations: a JSON file, a folder of PNGs and a folder of images.

Unlike the converter, which stops at the first fault, the check lists all faults. Give --image_dir and --annotation_file
once for each split, in the same order. Images that occur in two splits are found by their pixels. The check changes no
file.

Exit status: 0 without errors (warnings and notes are possible), 1 with errors, 2 if the check could not run.

Example:
  maxdl-check-data coco_panoptic --image_dir coco/val2017 --annotation_file coco/panoptic_val2017.json \
      --html report.html
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from maxdl_tf.class_table import DatasetInfo, SourceClass, from_source_classes
from maxdl_tf.data import coco_fields, coco_files
from maxdl_tf.data.coco_fields import shown
from maxdl_tf.data_gen import converter_flags
from maxdl_tf.data_gen.checks import command
from maxdl_tf.data_gen.checks.coco_images import CocoImageChecker, ImageTask
from maxdl_tf.data_gen.checks.findings import Finding, Loaded, Split
from maxdl_tf.data_gen.checks.images import inspect_image
from maxdl_tf.data_gen.label_maps import Numbering, replace_values
from maxdl_tf.data_gen.source_files import FORMATS, IMAGE_SUFFIXES, TIFF_SUFFIXES
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage
from maxdl_tf.files.intensity import IntensityRule

FLAGS = flags.FlagValues()
_IMAGE_DIR = flags.DEFINE_multi_string("image_dir", None, "Folder of the images.", required=True, flag_values=FLAGS)
_ANNOTATION_FILE = flags.DEFINE_multi_string(
    "annotation_file", None, "JSON file, such as panoptic_train2017.json.", required=True, flag_values=FLAGS
)
_PANOPTIC_DIR = flags.DEFINE_multi_string(
    "panoptic_dir", [], "Folder of the PNGs; --annotation_file without .json if not given.", flag_values=FLAGS
)
_LABEL_DIVISOR = converter_flags.define_label_divisor(FLAGS)
_INTENSITY = converter_flags.define_intensity(FLAGS)
command.define_flags(FLAGS)

_SAMPLE_DIVISOR = 2**16  # More than the number of instances in an image.
_INSTANCES = "holds objects (polygons or RLEs), not panoptic segments; run maxdl-check-data coco_instances"


class Source(NamedTuple):
    """Files of a split.

    Attributes:
      split: Name of the split in messages.
      image_dir: Folder of the images.
      annotation_file: Path of the JSON file.
      panoptic_dir: Folder of the PNGs.
      content: Content of the JSON file; `images`, `annotations` and `categories` are lists of dictionaries.
    """

    split: str
    image_dir: str
    annotation_file: str
    panoptic_dir: str
    content: dict[str, list[dict[str, Any]]]


def main(argv: list[str]) -> int:
    del argv
    options = command.read_flags(FLAGS)
    image_dirs, files, panoptic_dirs = _IMAGE_DIR.value, _ANNOTATION_FILE.value, _PANOPTIC_DIR.value
    if len(image_dirs) != len(files) or len(panoptic_dirs) not in (0, len(files)):
        raise UserError(
            f"{len(image_dirs)} --image_dir, {len(files)} --annotation_file and {len(panoptic_dirs)} --panoptic_dir; "
            "pass each flag once per split (--panoptic_dir is optional)"
        )
    intensity = converter_flags.read_intensity(_INTENSITY)
    sources = [load_source(*paths) for paths in zip(image_dirs, files, panoptic_dirs or [None] * len(files))]
    if len({source.split for source in sources}) < len(sources):  # Equal file names: the paths become the names.
        sources = [source._replace(split=source.annotation_file) for source in sources]
    splits, tasks_of_split = zip(*(check_lists(source) for source in sources))
    splits[0].findings.extend(categories_differ(sources, splits))
    splits[0].findings.extend(files_not_listed(sources))
    for source, split, tasks in zip(sources, splits, tasks_of_split):
        checker = CocoImageChecker(
            source.split,
            source.image_dir,
            source.panoptic_dir,
            split.categories,
            options.num_slots,
            _LABEL_DIVISOR.value,
            intensity,
        )
        split.images.extend(command.check_all(f"checking {source.split}", checker, tasks, "images", options.processes))
    source_of = {source.split: source for source in sources}

    def load(split: Split, names: tuple[str, str | None]) -> Loaded:
        return load_image(source_of[split.name], split, *names, intensity)

    return command.write_reports("Check of " + ", ".join(source_of), list(splits), load, options)


def load_source(image_dir: str, annotation_file: str, panoptic_dir: str | None) -> Source:
    """Reads the JSON file of a split.

    Raises:
      UserError: A folder is missing, or the file is not a panoptic JSON file.
    """
    panoptic_dir = panoptic_dir or os.path.splitext(annotation_file)[0]
    storage.check_folder(image_dir, "--image_dir")
    content = coco_files.read_json(annotation_file, ("images", "annotations", "categories"), "panoptic_*.json")
    if any("segmentation" in entry and "segments_info" not in entry for entry in content["annotations"][:1]):
        raise UserError(f"{annotation_file} {_INSTANCES}")
    storage.check_folder(panoptic_dir, "--panoptic_dir")
    name = os.path.splitext(os.path.basename(annotation_file))[0].removeprefix("panoptic_")
    return Source(name, image_dir, annotation_file, panoptic_dir, content)


def load_image(
    source: Source, split: Split, image_name: str, png_name: str | None, intensity: IntensityRule | None = None
) -> Loaded:
    """Reads an image and its segments."""
    pixels = id_map = None
    with contextlib.suppress(UserError):
        content = storage.read_file(storage.path_inside(source.image_dir, image_name))
        pixels = inspect_image(content, FORMATS, intensity).pixels
    if png_name is not None:
        with contextlib.suppress(Exception):  # Pillow raises many kinds for broken files; the check has reported it.
            id_map = coco_files.read_panoptic_png(storage.path_inside(source.panoptic_dir, png_name))
    if id_map is None or not split.categories:
        return Loaded(pixels, id_map)
    rows = [SourceClass(number, *row) for number, row in split.categories.items()]
    info = from_source_classes(rows, split.name, _SAMPLE_DIVISOR)
    return Loaded(pixels, id_map, _label_map(source, png_name, id_map, info), info)


def _label_map(source: Source, png_name: str, id_map: np.ndarray, info: DatasetInfo) -> np.ndarray:
    """int32 [height, width], labels of the segments; void where the JSON file is faulty."""
    annotations = (
        coco_fields.split(entry, coco_fields.PANOPTIC_ANNOTATION)[0] for entry in source.content["annotations"]
    )
    entries = (entry for entry in annotations if entry.get("file_name") == png_name)
    numbering = Numbering(info, treat_crowd_as_ignore=False)
    labels = {}
    for entry in next(entries, {}).get("segments_info", []):
        segment, _ = coco_fields.split(entry, coco_fields.SEGMENT)
        row = info.by_source_id.get(segment.get("category_id"))
        if row is not None:
            labels[segment.get("id")] = numbering.label(row, segment.get("iscrowd", False))
    return replace_values(id_map, lambda value: labels.get(value, info.void), png_name)


def check_lists(source: Source) -> tuple[Split, list[ImageTask]]:
    """Checks the lists of the JSON file; returns the findings and the images to check."""
    json_name = os.path.basename(source.annotation_file)
    split = Split(source.split, {})

    def find(kind: str, file: str, what: str) -> None:
        split.findings.append(Finding(kind, source.split, file, what))

    for kind, what in _check_categories(source.content["categories"], split.categories):
        find(kind, json_name, what)
    annotation_of: dict[Any, dict[str, Any]] = {}
    image_of_png: dict[str, Any] = {}
    for entry in source.content["annotations"]:
        annotation, faults = coco_fields.split(entry, coco_fields.PANOPTIC_ANNOTATION)
        name = annotation.get("file_name", json_name)
        if faults:
            find("annotation-incomplete", name, _all(faults, "an annotation"))
        if "image_id" in faults:
            continue
        image_id = annotation["image_id"]
        if image_id in annotation_of:
            find("annotation-repeated", name, f"image {image_id} has another annotation")
            continue
        annotation_of[image_id] = annotation
        if "file_name" in faults:
            continue
        if name in image_of_png:
            find("png-shared", name, f"the PNG of image {image_id} and of image {image_of_png[name]}")
        image_of_png.setdefault(name, image_id)
    tasks = _match_images(source.content["images"], annotation_of, find, json_name)
    listed = {task.image["id"] for task in tasks}
    for image_id, annotation in annotation_of.items():
        if image_id not in listed:
            name = annotation.get("file_name", json_name)
            find("annotation-without-image", name, f"image {image_id} is not in the list of images")
    return split, tasks


def _check_categories(
    entries: Sequence[dict[str, Any]], categories: dict[int, tuple[str, bool]]
) -> Iterator[tuple[str, str]]:
    """Yields (kind, what), and fills {id: (name, is_thing)}."""
    names: Counter[str] = Counter()
    for entry in entries:
        found, faults = coco_fields.split(entry, coco_fields.CATEGORY)
        if "isthing" not in {**found, **faults}:
            faults["isthing"] = "has no 'isthing'"
        if faults:
            yield "category-incomplete", _all(faults, f"category {shown(entry.get('id'))}")
        if "id" in faults:
            continue
        number, name = found["id"], found.get("name", str(found["id"]))
        if number in categories:
            yield "category-repeated", f"id {number} of {categories[number][0]!r} and of {name!r}"
            continue
        names[name] += 1
        if names[name] == 2:
            yield "category-name-repeated", f"{name!r} is the name of several categories, such as {number}"
        categories[number] = (name, found.get("isthing", False))


def _match_images(
    images: Sequence[dict[str, Any]], annotation_of: dict[Any, dict[str, Any]], find, json_name: str
) -> list[ImageTask]:
    """Pairs images with annotations; removes annotations of incomplete images from `annotation_of`."""
    tasks = []
    id_of_file: dict[str, Any] = {}
    file_of_stem: dict[str, str] = {}
    seen_ids = set()
    for entry in images:
        image, faults = coco_fields.split(entry, coco_fields.IMAGE)
        name = image.get("file_name", json_name)
        if faults:
            find("image-incomplete", name, _all(faults, f"image {shown(entry.get('id'))}"))
            annotation_of.pop(image.get("id"), None)
            continue
        image_id, stem = image["id"], os.path.splitext(name)[0]
        if image_id in seen_ids:
            find("image-id-repeated", name, f"its id {image_id} is also the id of another image")
            continue
        seen_ids.add(image_id)
        if name in id_of_file:
            find("image-listed-twice", name, f"listed as image {id_of_file[name]} and as image {image_id}")
        elif file_of_stem.setdefault(stem, name) != name:
            find("image-name-shared", name, f"has the name of {file_of_stem[stem]} except for the extension")
        id_of_file.setdefault(name, image_id)
        annotation = annotation_of.get(image_id)
        if annotation is None:
            find("image-not-annotated", name, f"{json_name} has no annotation of image {image_id}")
        is_complete = annotation is not None and {"file_name", "segments_info"} <= annotation.keys()
        tasks.append(ImageTask(image, annotation if is_complete else None))
    return tasks


def files_not_listed(sources: Sequence[Source]) -> Iterator[Finding]:
    """Finds images and PNGs in the folders of the splits that no JSON file lists."""
    kinds = (("image-not-listed", "image_dir", "images"), ("png-not-listed", "panoptic_dir", "annotations"))
    listed: dict[str, set[str]] = {}  # Images and PNGs may share a folder.
    for source in sources:
        for _, folder_of, key in kinds:
            entries = (coco_fields.split(entry, coco_fields.FILE)[0] for entry in source.content[key])
            names = {os.path.normpath(entry["file_name"]) for entry in entries if entry}
            listed.setdefault(os.path.normpath(getattr(source, folder_of)), set()).update(names)
    for kind, folder_of, key in kinds:
        suffixes = IMAGE_SUFFIXES + TIFF_SUFFIXES if key == "images" else (".png",)
        split_of: dict[str, str] = {}
        for source in sources:
            split_of.setdefault(os.path.normpath(getattr(source, folder_of)), source.split)
        for folder, split in split_of.items():
            for name in storage.find_files(folder, suffixes):
                is_other_kind = key == "images" and any(_lies_in(folder, name, s.panoptic_dir) for s in sources)
                if os.path.normpath(name) not in listed[folder] and not is_other_kind:
                    yield Finding(kind, split, name, f"in {folder}, but in no JSON file")


def categories_differ(sources: Sequence[Source], splits: Sequence[Split]) -> Iterator[Finding]:
    """Finds splits whose categories differ from those of the first split."""
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


def _all(faults: dict[str, str], entry: str) -> str:
    """The faults of an entry in one line."""
    return f"{entry} {' and '.join(dict.fromkeys(faults.values()))}"
