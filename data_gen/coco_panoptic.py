r"""Converts images with annotations in the COCO panoptic format: a JSON file and a folder of PNGs.

The class table, dataset_info.textproto, is built from the categories of the JSON file: class ids count from 1 in the
order of the category ids. The converter checks every image against its annotation.

Example:
  maxdl-convert coco_panoptic --image_dir coco/train2017 --output_dir coco_tfrecords \
      --annotation_file coco/annotations/panoptic_train2017.json
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from absl import flags

from maxdl_tf import class_table
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data.coco_categories import table_of_categories
from maxdl_tf.data.coco_files import ImageEntry, load_annotations, read_panoptic_png
from maxdl_tf.data_gen import converter_flags, shard_writer
from maxdl_tf.data_gen.annotated_images import AnnotatedImage
from maxdl_tf.data_gen.label_maps import Numbering
from maxdl_tf.data_gen.source_files import read_image
from maxdl_tf.errors import UserError, size_mismatch, some
from maxdl_tf.files import storage

FLAGS = flags.FlagValues()
_IMAGE_DIR = converter_flags.define_image_dir(FLAGS)
_INTENSITY = converter_flags.define_intensity(FLAGS)
_ANNOTATION_FILE = flags.DEFINE_string(
    "annotation_file", None, "JSON file, such as panoptic_train2017.json.", required=True, flag_values=FLAGS
)
_PANOPTIC_DIR = flags.DEFINE_string(
    "panoptic_dir", None, "Folder of the PNGs; --annotation_file without .json if not given.", flag_values=FLAGS
)
_DATASET_INFO = flags.DEFINE_string(
    "dataset_info",
    None,
    "Class table that replaces the one built from the categories: a textproto as in configs/datasets, whose source_ids "
    "are the category ids.",
    flag_values=FLAGS,
)
_DATASET_NAME = converter_flags.define_dataset_name(FLAGS)
_LABEL_DIVISOR = converter_flags.define_label_divisor(FLAGS)
_CROWD_AS_IGNORE = converter_flags.define_treat_crowd_as_ignore(FLAGS)
_ONLY = flags.DEFINE_list(
    "only", None, "File names of the images to convert; all images if not given.", flag_values=FLAGS
)
converter_flags.define_output(FLAGS)


def main(argv: list[str]) -> int:
    del argv
    output = converter_flags.read_output(FLAGS)
    annotation_file = _ANNOTATION_FILE.value
    image_dir = storage.check_folder(_IMAGE_DIR.value, "--image_dir")
    panoptic_dir = storage.check_folder(_PANOPTIC_DIR.value or os.path.splitext(annotation_file)[0], "--panoptic_dir")
    images, categories = load_annotations(annotation_file)
    if _DATASET_INFO.value:
        info = class_table.load(_DATASET_INFO.value)
    else:
        name = output.dataset_name(_DATASET_NAME.value)
        try:
            info = table_of_categories(categories, annotation_file, name, _LABEL_DIVISOR.value)
        except UserError as error:
            raise UserError(f"{error}; or pass a class table as --dataset_info") from error
    info = converter_flags.with_intensity(info, _INTENSITY, output.earlier_class_table())
    json_name = os.path.basename(annotation_file)
    annotator = Annotator(image_dir, panoptic_dir, json_name, info, treat_crowd_as_ignore=_CROWD_AS_IGNORE.value)
    if _ONLY.value:
        images = only(_ONLY.value, images)
    print(shard_writer.write_shards(images, annotator.annotate, info, output))
    return 0


def only(file_names: Sequence[str], images: Sequence[ImageEntry]) -> list[ImageEntry]:
    """Returns the images with the given names, in the order of the names.

    Raises:
      UserError: No image has one of the names.
    """
    by_name = {image.file_name: image for image in images}
    missing = [name for name in file_names if name not in by_name]
    if missing:
        raise UserError(f"--only: the annotations have no image {some(missing)}; they have {some(sorted(by_name))}")
    return [by_name[name] for name in file_names]


@dataclass(frozen=True)
class Annotator:
    """Converts images with panoptic annotations and checks them.

    Attributes:
      image_dir: Folder of the images.
      panoptic_dir: Folder of the PNGs.
      annotation_name: Name of the JSON file in messages.
      dataset_info: The class table; its source_ids are the category ids.
      treat_crowd_as_ignore: Whether crowds become void; otherwise they are instance 0 of their class.
    """

    image_dir: str | os.PathLike
    panoptic_dir: str | os.PathLike
    annotation_name: str
    dataset_info: DatasetInfo
    treat_crowd_as_ignore: bool = True

    def annotate(self, entry: ImageEntry) -> AnnotatedImage:
        """Converts an image.

        Raises:
          UserError: The image or the annotation is faulty; the message has the file and the segment id.
        """
        if entry.png_name is None:
            raise UserError(f"{entry.file_name}: {self.annotation_name} has no annotation of this image")
        size = (entry.height, entry.width)
        path = storage.path_inside(self.image_dir, entry.file_name)
        image = read_image(path, self.dataset_info.intensity)
        if image.size != size:
            raise UserError(size_mismatch(path, image.size, size))
        segment_ids = read_panoptic_png(storage.path_inside(self.panoptic_dir, entry.png_name), size)
        label = self._label_map(entry, segment_ids)
        return AnnotatedImage(image.content, image.format, label, os.path.splitext(entry.file_name)[0])

    def _label_map(self, entry: ImageEntry, segment_ids: np.ndarray) -> np.ndarray:
        """Converts segment ids, int [height, width], to labels, int32 [height, width], and checks them."""
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
        """The label of each segment; things are numbered from 1 within their class, in the order of the JSON file."""
        numbering = Numbering(self.dataset_info, self.treat_crowd_as_ignore)
        labels, faults, seen = [], [], {0}
        for segment in entry.segments:
            segment_id, category = segment["id"], segment["category_id"]
            row = self.dataset_info.by_source_id.get(category)
            try:
                if segment_id in seen:
                    raise UserError("listed twice" if segment_id else "the id 0 stands for void")
                if row is None:
                    raise UserError(f"unknown category {category}")
                labels.append(numbering.label(row, bool(segment.get("iscrowd"))))
            except UserError as error:
                faults.append(f"segment {segment_id}: {error}")
            seen.add(segment_id)
        if faults:
            raise UserError(f"{self.annotation_name}, {entry.png_name}: {some(faults)}")
        return labels
