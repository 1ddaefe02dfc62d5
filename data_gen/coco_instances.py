r"""Converts images with annotations in the COCO instances format: a JSON file with a polygon or RLE for each object.

Objects may overlap there, and a panoptic map has one segment at each pixel. --overlap says who gets a pixel of several
objects. By default it is the smaller one: what lies on or in front of something is mostly smaller than it (the tie and
the person, the cup and the table), and a small object that lost its pixels would be gone. Crowds (iscrowd) are below
all others. An object of which no pixel is left is left out.

Pixels of no object are void, unless --background makes them a class of stuff, or --semantic_dir has PNGs of stuff:
gray, IMAGE.png to each image, with category ids as values. A value that is a category of things, where there is no
object, is a crowd.

The class table is made of the JSON's categories, which are things unless they say "isthing": 0, and of
--stuff_categories. Images without an object are left out, unless something is said of what is behind the objects.

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

from maxdl_tf import class_table
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data.coco_files import InstanceImage, load_instances, some
from maxdl_tf.data_gen import class_tables, image_files, output_flags, shard_writer
from maxdl_tf.data_gen.examples import AnnotatedImage
from maxdl_tf.data_gen.instance_masks import CONTESTED, OVERLAPS, decode_mask, paint
from maxdl_tf.data_gen.label_maps import Numbering, check_size, read_gray_png, replace_values
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage

FLAGS = flags.FlagValues()
_IMAGE_DIR = flags.DEFINE_string("image_dir", None, "Folder of the images.", required=True, flag_values=FLAGS)
_ANNOTATION_FILE = flags.DEFINE_string(
    "annotation_file", None, "The JSON file, such as instances_train2017.json.", required=True, flag_values=FLAGS
)
_OVERLAP = flags.DEFINE_enum(
    "overlap", "smaller_on_top", OVERLAPS, "Who gets a pixel of several objects.", flag_values=FLAGS
)
_BACKGROUND = flags.DEFINE_string(
    "background", None, "Name of a class of stuff that all pixels of no object get.", flag_values=FLAGS
)
_SEMANTIC_DIR = flags.DEFINE_string(
    "semantic_dir",
    None,
    "Folder of gray PNGs of stuff, called as the images; values are category ids.",
    flag_values=FLAGS,
)
_STUFF_CATEGORIES = flags.DEFINE_string(
    "stuff_categories",
    None,
    "Categories of stuff that the JSON does not list: a JSON file with a list of {id, name}, or a text file with lines "
    "`id: name`.",
    flag_values=FLAGS,
)
_VOID_VALUES = flags.DEFINE_list(
    "void_values", ["0", "255"], "Values in --semantic_dir that mean void.", flag_values=FLAGS
)
_DATASET_NAME = flags.DEFINE_string(
    "dataset_name", None, "Name in the class table; if not given, that of --output_dir.", flag_values=FLAGS
)
_LABEL_DIVISOR = flags.DEFINE_integer(
    "label_divisor",
    256,
    "Of the class table: one more than the most instances that a class can have in an image.",
    lower_bound=2,
    flag_values=FLAGS,
)
_CROWD_AS_IGNORE = flags.DEFINE_boolean(
    "treat_crowd_as_ignore", True, "Make crowds void; otherwise they are instance 0 of their class.", flag_values=FLAGS
)
output_flags.define(FLAGS)


def main(argv: list[str]) -> int:
    del argv
    output = output_flags.read(FLAGS)
    if _BACKGROUND.value and _SEMANTIC_DIR.value:
        raise UserError("--background and --semantic_dir both say what is behind the objects; give one of them")
    image_dir = storage.check_folder(_IMAGE_DIR.value, "--image_dir")
    if _SEMANTIC_DIR.value:
        storage.check_folder(_SEMANTIC_DIR.value, "--semantic_dir")
    images, categories = load_instances(_ANNOTATION_FILE.value)
    name = class_tables.dataset_name(_DATASET_NAME.value, output.folder)
    stuff = class_tables.read_class_names(_STUFF_CATEGORIES.value) if _STUFF_CATEGORIES.value else {}
    table = build_table(
        categories, {number: row.name for number, row in stuff.items()}, _BACKGROUND.value, _ANNOTATION_FILE.value
    )
    info = class_table.from_categories(table.categories, _ANNOTATION_FILE.value, name, _LABEL_DIVISOR.value)
    annotator = Annotator(
        image_dir,
        os.path.basename(_ANNOTATION_FILE.value),
        info,
        overlap=_OVERLAP.value,
        background_id=table.background_id,
        semantic_dir=_SEMANTIC_DIR.value,
        void_values=class_tables.parse_numbers(_VOID_VALUES.value, "--void_values"),
        treat_crowd_as_ignore=_CROWD_AS_IGNORE.value,
    )
    if not (_BACKGROUND.value or _SEMANTIC_DIR.value):
        empty = sum(not image.objects for image in images)
        images = [image for image in images if image.objects]
        if empty:
            print(f"{empty} images without an object are left out")
    print(shard_writer.write_shards(images, annotator.annotate, info, output))
    return 0


class Table(NamedTuple):
    """Categories with "isthing", and the id of the one that is the background, if there is one."""

    categories: list[dict[str, Any]]
    background_id: int | None


def build_table(
    categories: Sequence[dict[str, Any]], stuff: dict[int, str], background: str | None, source: str
) -> Table:
    """The categories of the JSON and those of stuff beside them.

    Raises:
      UserError: If an id of stuff is that of another category.
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
    background_id = max((row["id"] for row in rows), default=0) + 1
    return Table([*rows, {"id": background_id, "name": background, "isthing": 0}], background_id)


@dataclass(frozen=True)
class Annotator:
    """Makes label maps of images and their objects, and tells what is wrong with them.

    Attributes:
      image_dir: Folder of the images.
      annotation_name: What messages call the JSON file.
      dataset_info: The class table; its source_ids are the category ids.
      overlap: Who gets a pixel of several objects, one of OVERLAPS.
      background_id: Category of pixels of no object; None: void, or what semantic_dir says.
      semantic_dir: Folder of PNGs of stuff; None if there are none.
      void_values: Values of those PNGs that mean void.
      treat_crowd_as_ignore: Make crowds void; otherwise they are instance 0 of their class.
    """

    image_dir: str
    annotation_name: str
    dataset_info: DatasetInfo
    overlap: str = "smaller_on_top"
    background_id: int | None = None
    semantic_dir: str | None = None
    void_values: frozenset[int] = frozenset({0, 255})
    treat_crowd_as_ignore: bool = True

    def annotate(self, image: InstanceImage) -> AnnotatedImage:
        """The image and its label map; things are numbered from 1 within their class, in the order of the JSON.

        Raises:
          UserError: With file and annotation id.
        """
        size = (image.height, image.width)
        path = os.path.join(self.image_dir, image.file_name)
        file = image_files.read_image(path)
        check_size(path, file.size, size, f"its entry in {self.annotation_name}")
        numbering = Numbering(self.dataset_info, self.treat_crowd_as_ignore)
        label = self._label_behind(image, size, numbering)
        label = self._with_objects(label, image, size, numbering)
        return AnnotatedImage(file.content, file.format, label, os.path.splitext(image.file_name)[0])

    def _rows(self) -> dict[Any, Any]:
        return {row.source_id: row for row in self.dataset_info.classes}

    def _label_behind(self, image: InstanceImage, size: tuple[int, int], numbering: Numbering) -> np.ndarray:
        """int32 [height, width], of what is behind the objects."""
        rows, void = self._rows(), self.dataset_info.void
        if self.semantic_dir is None:
            label = void if self.background_id is None else numbering.label(rows[self.background_id])
            return np.full(size, label, np.int32)
        path = os.path.join(self.semantic_dir, os.path.splitext(image.file_name)[0] + ".png")
        semantic = read_gray_png(path)
        check_size(path, semantic.shape, size, "its image")

        def label_of(value: int) -> int:
            row = rows.get(value)
            if row is not None:
                return numbering.label(row, is_crowd=row.is_thing)
            if value in self.void_values:
                return void
            raise UserError("there is no such category; add it to --stuff_categories or to --void_values")

        return replace_values(semantic, label_of, path)

    def _with_objects(
        self, label: np.ndarray, image: InstanceImage, size: tuple[int, int], numbering: Numbering
    ) -> np.ndarray:
        masks = self._masks(image, size)
        crowds = [number for number, thing in enumerate(image.objects) if thing.get("iscrowd", 0)]
        others = [number for number, thing in enumerate(image.objects) if not thing.get("iscrowd", 0)]
        rows, label = self._rows(), label.copy()
        for numbers in (crowds, others):
            painted = paint([masks[number] for number in numbers], size, self.overlap)
            visible = set(np.unique(painted).tolist())
            label[painted == CONTESTED] = self.dataset_info.void
            for position, number in enumerate(numbers):
                if position in visible:
                    thing = image.objects[number]
                    try:
                        value = numbering.label(rows[thing["category_id"]], bool(thing.get("iscrowd", 0)))
                    except UserError as error:
                        raise UserError(f"{self._name(image)}: annotation {thing['id']}: {error}") from error
                    label[painted == position] = value
        return label

    def _masks(self, image: InstanceImage, size: tuple[int, int]) -> list[np.ndarray]:
        """bool [height, width] of each object, after checking all of them."""
        masks, faults, known, seen = [], [], self._rows(), set()
        for thing in image.objects:
            try:
                if thing["id"] in seen:
                    raise UserError("its id occurs twice")
                if thing["category_id"] not in known:
                    raise UserError(f"unknown category {thing['category_id']}")
                masks.append(decode_mask(thing["segmentation"], *size))
            except UserError as error:
                faults.append(f"annotation {thing['id']}: {error}")
            seen.add(thing["id"])
        if faults:
            raise UserError(f"{self._name(image)}: {some(faults)}")
        return masks

    def _name(self, image: InstanceImage) -> str:
        return f"{self.annotation_name}, {image.file_name}"
