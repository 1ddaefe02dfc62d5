r"""Converts images with annotations in the COCO panoptic format: a JSON file and a folder of PNGs.

Beside the shards it leaves dataset_info.textproto, the class table, made of the JSON's categories: ids 1, 2, ... in the
order of the category ids. Every image is checked against its annotation on the way.

Example:
  maxdl-convert coco_panoptic --image_dir coco/train2017 --split train --output_dir coco_tfrecords \
      --annotation_file coco/annotations/panoptic_train2017.json
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from absl import flags

from maxdl_tf import class_table
from maxdl_tf.class_table import DatasetInfo, from_categories
from maxdl_tf.data.coco_files import ImageEntry, load_annotations, read_panoptic_png, size_mismatch, some
from maxdl_tf.data_gen import class_tables, image_files, output_flags, shard_writer
from maxdl_tf.data_gen.examples import AnnotatedImage
from maxdl_tf.data_gen.label_maps import Numbering
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage

FLAGS = flags.FlagValues()
_IMAGE_DIR = flags.DEFINE_string("image_dir", None, "Folder of the images.", required=True, flag_values=FLAGS)
_ANNOTATION_FILE = flags.DEFINE_string(
    "annotation_file", None, "The JSON file, such as panoptic_train2017.json.", required=True, flag_values=FLAGS
)
_PANOPTIC_DIR = flags.DEFINE_string(
    "panoptic_dir", None, "Folder of the PNGs; if not given, --annotation_file without .json.", flag_values=FLAGS
)
_DATASET_INFO = flags.DEFINE_string(
    "dataset_info",
    None,
    "Class table to use instead of one made of the categories: a textproto as in configs/datasets, whose source_ids "
    "are the category ids.",
    flag_values=FLAGS,
)
_DATASET_NAME = flags.DEFINE_string(
    "dataset_name", None, "Name in the class table made; if not given, that of --output_dir.", flag_values=FLAGS
)
_LABEL_DIVISOR = flags.DEFINE_integer(
    "label_divisor",
    256,
    "Of the class table made: one more than the most instances that a class can have in an image.",
    lower_bound=2,
    flag_values=FLAGS,
)
_CROWD_AS_IGNORE = flags.DEFINE_boolean(
    "treat_crowd_as_ignore", True, "Make crowds void; otherwise they are instance 0 of their class.", flag_values=FLAGS
)
_ONLY = flags.DEFINE_list(
    "only", None, "File names of the images to convert, for a part of a data set; all if not given.", flag_values=FLAGS
)
output_flags.define(FLAGS)


def main(argv: list[str]) -> int:
    del argv
    output = output_flags.read(FLAGS)
    annotation_file = _ANNOTATION_FILE.value
    image_dir = storage.check_folder(_IMAGE_DIR.value, "--image_dir")
    panoptic_dir = storage.check_folder(_PANOPTIC_DIR.value or os.path.splitext(annotation_file)[0], "--panoptic_dir")
    annotations = load_annotations(annotation_file)
    if _DATASET_INFO.value:
        info = class_table.load(_DATASET_INFO.value)
    else:
        name = class_tables.dataset_name(_DATASET_NAME.value, output.folder)
        info = from_categories(annotations.categories, annotation_file, name, _LABEL_DIVISOR.value)
    name = os.path.basename(annotation_file)
    annotator = Annotator(image_dir, panoptic_dir, name, info, treat_crowd_as_ignore=_CROWD_AS_IGNORE.value)
    images = only(_ONLY.value, annotations.images) if _ONLY.value else annotations.images
    print(shard_writer.write_shards(images, annotator.annotate, info, output))
    return 0


def only(file_names: Sequence[str], images: Sequence[ImageEntry]) -> list[ImageEntry]:
    """The images of these names, in the order of the names.

    Raises:
      UserError: If there is none of a name.
    """
    by_name = {image.file_name: image for image in images}
    missing = [name for name in file_names if name not in by_name]
    if missing:
        raise UserError(f"--only: the annotations have no image {some(missing)}; they have {some(sorted(by_name))}")
    return [by_name[name] for name in file_names]


@dataclass(frozen=True)
class Annotator:
    """Makes label maps of images and their annotations, and tells what is wrong with them.

    Attributes:
      image_dir: Folder of the images.
      panoptic_dir: Folder of the PNGs.
      annotation_name: What messages call the JSON file.
      dataset_info: The class table; its source_ids are the category ids.
      treat_crowd_as_ignore: Make crowds void; otherwise they are instance 0 of their class.
    """

    image_dir: str | os.PathLike
    panoptic_dir: str | os.PathLike
    annotation_name: str
    dataset_info: DatasetInfo
    treat_crowd_as_ignore: bool = True

    def annotate(self, entry: ImageEntry) -> AnnotatedImage:
        """The image and its label map.

        Raises:
          UserError: With file and segment id.
        """
        if entry.png_name is None:
            raise UserError(f"{entry.file_name}: {self.annotation_name} has no annotation of this image")
        size = (entry.height, entry.width)
        path = os.path.join(self.image_dir, entry.file_name)
        image = image_files.read_image(path)
        if image.size != size:
            raise UserError(size_mismatch(path, image.size, size))
        segment_ids = read_panoptic_png(os.path.join(self.panoptic_dir, entry.png_name), size)
        label = self._label_map(entry, segment_ids)
        image_id = os.path.splitext(entry.file_name)[0]
        return AnnotatedImage(image.content, image.format, label, image_id)

    def _label_map(self, entry: ImageEntry, segment_ids: np.ndarray) -> np.ndarray:
        """int32 [height, width] of a PNG's segment ids, after checking them against the JSON."""
        labels = np.array([self.dataset_info.void, *self._segment_labels(entry)])
        listed = np.array([0, *(segment["id"] for segment in entry.segments)])
        order = np.argsort(listed)
        position = np.minimum(np.searchsorted(listed[order], segment_ids), len(listed) - 1)
        unlisted = listed[order][position] != segment_ids
        areas = np.zeros(len(listed), np.int64)
        areas[order] = np.bincount(position[~unlisted], minlength=len(listed))

        faults = [
            f"segment {segment_id}: in the PNG but not in {self.annotation_name}"
            for segment_id in np.unique(segment_ids[unlisted])
        ]
        for segment, area in zip(entry.segments, areas[1:]):
            if area == 0:
                faults.append(f"segment {segment['id']}: in {self.annotation_name} but not in the PNG")
            elif "area" in segment and segment["area"] != area:
                faults.append(
                    f"segment {segment['id']}: area {area} in the PNG, {segment['area']} in {self.annotation_name}"
                )
        if faults:
            raise UserError(f"{os.path.join(self.panoptic_dir, entry.png_name)}: {some(faults)}")
        return labels[order][position].astype(np.int32)

    def _segment_labels(self, entry: ImageEntry) -> list[int]:
        """The label of each segment: things are numbered from 1 within their class, in the order of the JSON."""
        class_of_category = {row.source_id: row for row in self.dataset_info.classes}
        numbering = Numbering(self.dataset_info, self.treat_crowd_as_ignore)
        labels, faults, seen = [], [], {0}
        for segment in entry.segments:
            segment_id, category = segment["id"], segment["category_id"]
            row = class_of_category.get(category)
            try:
                if segment_id in seen:
                    raise UserError("listed twice" if segment_id else "the id 0 stands for void")
                if row is None:
                    raise UserError(f"unknown category {category}")
                labels.append(numbering.label(row, bool(segment.get("iscrowd", 0))))
            except UserError as error:
                faults.append(f"segment {segment_id}: {error}")
            seen.add(segment_id)
        if faults:
            raise UserError(f"{self.annotation_name}, {entry.png_name}: {some(faults)}")
        return labels
