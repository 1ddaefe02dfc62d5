r"""Converts images with annotations in the COCO instances format: a JSON file with a polygon or RLE for each object.

Objects may overlap in this format, but a pixel of a panoptic map belongs to one segment. --overlap selects the object
that gets a shared pixel. The default is the smaller object: an object on or in front of another one is usually smaller
(the tie and the person, the cup and the table), and it would vanish otherwise. Crowds (iscrowd) lie below all other
objects. Objects without a remaining pixel are dropped.

Pixels outside of all objects are void by default. --background assigns them to a class of stuff, a new one or the
category with this name. --semantic_dir names a folder of gray PNGs of stuff, IMAGE.png for each image, with category
ids as values. A thing category in these PNGs marks a crowd where there is no object.

The class table is built from the categories of the JSON file and from --stuff_categories. Categories of the JSON file
are things unless they have "isthing": 0. Images without an object are dropped if pixels outside of objects are void.

Example:
  maxdl-convert coco_instances --image_dir coco/train2017 --split train --output_dir tfrecords \
      --annotation_file coco/annotations/instances_train2017.json --background background
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data.coco_categories import table_of_categories
from maxdl_tf.data.coco_files import InstanceImage, load_instances
from maxdl_tf.data_gen import class_names, converter_flags, shard_writer
from maxdl_tf.data_gen.annotated_images import AnnotatedImage, Conversion
from maxdl_tf.data_gen.coco_masks import decode_mask
from maxdl_tf.data_gen.label_maps import CONTESTED, OVERLAPS, Numbering, paint, replace_values
from maxdl_tf.data_gen.source_files import check_size, read_gray_labels, read_image
from maxdl_tf.errors import UserError, some
from maxdl_tf.files import storage

FLAGS = flags.FlagValues()
_IMAGE_DIR = converter_flags.define_image_dir(FLAGS)
_INTENSITY = converter_flags.define_intensity(FLAGS)
_ANNOTATION_FILE = flags.DEFINE_string(
    "annotation_file", None, "JSON file, such as instances_train2017.json.", required=True, flag_values=FLAGS
)
_OVERLAP = flags.DEFINE_enum(
    "overlap", "smaller_on_top", OVERLAPS, "Object that gets a pixel of several objects.", flag_values=FLAGS
)
_BACKGROUND = converter_flags.define_background(FLAGS, "all pixels outside of objects: a new one, or a category.")
_SEMANTIC_DIR = flags.DEFINE_string(
    "semantic_dir",
    None,
    "Folder of gray PNGs of stuff with the names of the images; the values are category ids.",
    flag_values=FLAGS,
)
_STUFF_CATEGORIES = flags.DEFINE_string(
    "stuff_categories",
    None,
    "File with stuff categories that the annotations do not list: a JSON file with a list of {id, name}, or a text "
    "file with lines `id: name`.",
    flag_values=FLAGS,
)
_VOID_VALUES = converter_flags.define_void_values(FLAGS, ["0", "255"], "Values in --semantic_dir that mean void.")
_DATASET_NAME = converter_flags.define_dataset_name(FLAGS)
_LABEL_DIVISOR = converter_flags.define_label_divisor(FLAGS)
_CROWD_AS_IGNORE = converter_flags.define_treat_crowd_as_ignore(FLAGS)
converter_flags.define_output(FLAGS)


def main(argv: list[str]) -> int:
    del argv
    output = converter_flags.read_output(FLAGS)
    conversion = read_input(output.dataset_name(_DATASET_NAME.value), output.earlier_class_table())
    print(shard_writer.write_shards(conversion.tasks, conversion.annotate, conversion.dataset_info, output))
    return 0


def read_input(dataset_name: str, earlier: DatasetInfo | None = None) -> Conversion:
    """Reads the files of the flags; prints how many images are dropped.

    Args:
      dataset_name: Name of the data set in the class table.
      earlier: Class table of an earlier split, whose rule for values of more than 8 bits holds for all splits.

    Raises:
      UserError: The flags contradict each other, or the JSON file is faulty.
    """
    if _BACKGROUND.value and _SEMANTIC_DIR.value:
        raise UserError("--background and --semantic_dir both define the pixels outside of objects; pass one of them")
    image_dir = storage.check_folder(_IMAGE_DIR.value, "--image_dir")
    if _SEMANTIC_DIR.value:
        storage.check_folder(_SEMANTIC_DIR.value, "--semantic_dir")
    annotation_file = _ANNOTATION_FILE.value
    images, categories = load_instances(annotation_file)
    stuff = class_names.read_class_names(_STUFF_CATEGORIES.value) if _STUFF_CATEGORIES.value else {}
    stuff_names = {number: row.name for number, row in stuff.items()}
    table = build_table(categories, stuff_names, _BACKGROUND.value, annotation_file)
    info = table_of_categories(table.categories, annotation_file, dataset_name, _LABEL_DIVISOR.value)
    info = converter_flags.with_intensity(info, _INTENSITY, earlier)
    void_values = converter_flags.read_void_values(_VOID_VALUES)
    if _SEMANTIC_DIR.value:
        class_names.check_not_void(info.by_source_id, void_values)
    annotator = Annotator(
        image_dir,
        os.path.basename(annotation_file),
        info,
        overlap=_OVERLAP.value,
        background_id=table.background_id,
        semantic_dir=_SEMANTIC_DIR.value,
        void_values=void_values,
        treat_crowd_as_ignore=_CROWD_AS_IGNORE.value,
    )
    if not (_BACKGROUND.value or _SEMANTIC_DIR.value):
        empty = sum(not image.objects for image in images)
        images = [image for image in images if image.objects]
        if empty:
            print(f"dropping {empty} images without an object")
    return Conversion(images, annotator.annotate, info, annotator.image_path)


class Table(NamedTuple):
    """Categories with "isthing", and the id of the background category; None if there is no background."""

    categories: list[dict[str, Any]]
    background_id: int | None


def build_table(
    categories: Sequence[dict[str, Any]], stuff: dict[int, str], background: str | None, source: str
) -> Table:
    """Merges the categories of the JSON file, those of stuff and the background.

    A category with the name of the background is the background: tools list it, often with the id 0.

    Raises:
      UserError: A stuff category has the id of another category.
    """
    rows = [{"isthing": 1, **category} for category in categories]
    known = {row["id"]: row for row in rows}
    for number, name in stuff.items():
        if number not in known:
            rows.append({"id": number, "name": name, "isthing": 0})
        elif known[number]["name"] != name:
            raise UserError(
                f"--stuff_categories: category {number} is {name!r}, but in {source} it is {known[number]['name']!r}"
            )
    if background is None:
        return Table(rows, None)
    for row in rows:
        if row["name"] == background:
            row["isthing"] = 0
            return Table(rows, row["id"])
    background_id = max((row["id"] for row in rows), default=0) + 1
    return Table([*rows, {"id": background_id, "name": background, "isthing": 0}], background_id)


@dataclass(frozen=True)
class Annotator:
    """Converts images with objects and checks them.

    Attributes:
      image_dir: Folder of the images.
      annotation_name: Name of the JSON file in messages.
      dataset_info: The class table; its source_ids are the category ids.
      overlap: Object that gets a pixel of several objects, one of OVERLAPS.
      background_id: Category of pixels outside of objects; None for void or the values in `semantic_dir`.
      semantic_dir: Folder of PNGs of stuff; None if there is none.
      void_values: Values of those PNGs that mean void.
      treat_crowd_as_ignore: Whether crowds become void; otherwise they are instance 0 of their class.
    """

    image_dir: str
    annotation_name: str
    dataset_info: DatasetInfo
    overlap: str = "smaller_on_top"
    background_id: int | None = None
    semantic_dir: str | None = None
    void_values: frozenset[int] = frozenset({0, 255})
    treat_crowd_as_ignore: bool = True

    def image_path(self, image: InstanceImage) -> str:
        """Path of an image.

        Raises:
          UserError: The path leaves `image_dir`.
        """
        return storage.path_inside(self.image_dir, image.file_name)

    def annotate(self, image: InstanceImage) -> AnnotatedImage:
        """Converts an image; things are numbered from 1 within their class, in the order of the JSON file.

        Raises:
          UserError: The image or an annotation is faulty; the message has the file and the annotation id.
        """
        size = (image.height, image.width)
        path = self.image_path(image)
        file = read_image(path, self.dataset_info.intensity)
        check_size(path, file.size, size, f"its entry in {self.annotation_name}")
        numbering = Numbering(self.dataset_info, self.treat_crowd_as_ignore)
        label = self._label_behind(image, size, numbering)
        label = self._with_objects(label, image, size, numbering)
        return AnnotatedImage(file.content, file.format, label, os.path.splitext(image.file_name)[0])

    def _label_behind(self, image: InstanceImage, size: tuple[int, int], numbering: Numbering) -> np.ndarray:
        """int32 [height, width], the labels behind the objects."""
        rows, void = self.dataset_info.by_source_id, self.dataset_info.void
        if self.semantic_dir is None:
            label = void if self.background_id is None else numbering.label(rows[self.background_id])
            return np.full(size, label, np.int32)
        path = storage.path_inside(self.semantic_dir, os.path.splitext(image.file_name)[0] + ".png")
        semantic = read_gray_labels(path)
        check_size(path, semantic.shape, size, "its image")

        def label_of(value: int) -> int:
            row = rows.get(value)
            if row is not None:
                return numbering.label(row, is_crowd=row.is_thing)
            if value in self.void_values:
                return void
            raise UserError("no category has this id; add it to --stuff_categories or to --void_values")

        return replace_values(semantic, label_of, path)

    def _with_objects(
        self, label: np.ndarray, image: InstanceImage, size: tuple[int, int], numbering: Numbering
    ) -> np.ndarray:
        masks = self._masks(image, size)
        crowds = [number for number, thing in enumerate(image.objects) if thing.get("iscrowd")]
        others = [number for number, thing in enumerate(image.objects) if not thing.get("iscrowd")]
        label = label.copy()
        for numbers in (crowds, others):
            painted = paint([masks[number] for number in numbers], size, self.overlap)
            visible = set(np.unique(painted).tolist())
            label[painted == CONTESTED] = self.dataset_info.void
            for position, number in enumerate(numbers):
                if position in visible:
                    thing = image.objects[number]
                    row = self.dataset_info.by_source_id[thing["category_id"]]
                    try:
                        value = numbering.label(row, bool(thing.get("iscrowd")))
                    except UserError as error:
                        raise UserError(f"{self._name(image)}: annotation {thing['id']}: {error}") from error
                    label[painted == position] = value
        return label

    def _masks(self, image: InstanceImage, size: tuple[int, int]) -> list[np.ndarray]:
        """bool [height, width] of each object, after checks of all objects."""
        masks, faults, seen = [], [], set()
        for thing in image.objects:
            try:
                if thing["id"] in seen:
                    raise UserError("its id occurs twice")
                if thing["category_id"] not in self.dataset_info.by_source_id:
                    raise UserError(f"unknown category {thing['category_id']}")
                masks.append(decode_mask(thing.get("segmentation"), *size))
            except UserError as error:
                faults.append(f"annotation {thing['id']}: {error}")
            seen.add(thing["id"])
        if faults:
            raise UserError(f"{self._name(image)}: {some(faults)}")
        return masks

    def _name(self, image: InstanceImage) -> str:
        return f"{self.annotation_name}, {image.file_name}"
