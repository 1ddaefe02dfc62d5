r"""Converts ADE20K, as the scene parsing and the instance segmentation challenges of 2016 and 2017 ship it.

  ADEChallengeData2016/
    images/training/ADE_train_00000001.jpg               images
    annotations/training/ADE_train_00000001.png          gray: class 1..150, 0 is void
    annotations_instance/training/ADE_train_00000001.png red: one of 100 classes of things, green: instance from 1
    objectInfo150.txt                                    names

and `validation` in place of `training`. The things are numbered 1 to 100 by the instance files, in another order than
the 150 classes. Which class is which is found in the data, in a first pass: the class that most pixels of a thing's
instances have. Classes that instances have are things, the others are stuff. Where --output_dir has a class table of an
earlier split, that one says which are things: convert train first.

Where the two files disagree, the instance file counts. Pixels of things without an instance are a crowd.

Example:
  maxdl-convert ade20k --ade20k_dir ADEChallengeData2016 --split train --output_dir ade20k_tfrecords
  maxdl-convert ade20k --ade20k_dir ADEChallengeData2016 --split val --output_dir ade20k_tfrecords
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from absl import flags

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data_gen import class_tables, file_pairs, image_files, output_flags, shard_writer
from maxdl_tf.data_gen.class_tables import ClassName
from maxdl_tf.data_gen.examples import AnnotatedImage
from maxdl_tf.data_gen.file_pairs import FilePair
from maxdl_tf.data_gen.first_pass import gather
from maxdl_tf.data_gen.label_maps import Numbering, check_size, read_gray_png, read_png, replace_values
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage

NUM_CLASSES = 150
_FOLDERS = {"train": "training", "val": "validation"}
_INSTANCE_DIVISOR = 256  # red * 256 + green.

FLAGS = flags.FlagValues()
_ADE20K_DIR = flags.DEFINE_string(
    "ade20k_dir",
    None,
    "Folder with images, annotations, annotations_instance and objectInfo150.txt in it.",
    required=True,
    flag_values=FLAGS,
)
_CROWD_AS_IGNORE = flags.DEFINE_boolean(
    "treat_crowd_as_ignore", True, "Make crowds void; otherwise they are instance 0 of their class.", flag_values=FLAGS
)
output_flags.define(FLAGS)


def main(argv: list[str]) -> int:
    del argv
    output = output_flags.read(FLAGS)
    root = storage.check_folder(_ADE20K_DIR.value, "--ade20k_dir").rstrip("/")
    images = find_images(root, output.split)
    if not output.skip_bad_input:
        file_pairs.check_pairs([image.semantic for image in images])
        file_pairs.check_pairs([image.instances for image in images])
    whole = [image for image in images if image.semantic.label and image.instances.label]
    class_of_thing = find_things(whole, output.processes, output.skip_bad_input)
    info = class_tables.table_of_earlier_split(output.folder)
    if info is None:
        is_thing = {number: number in class_of_thing.values() for number in range(1, NUM_CLASSES + 1)}
        info = class_tables.table_of(is_thing, read_names(f"{root}/objectInfo150.txt"), "ade20k", 256, root)
    annotator = Annotator(info, class_of_thing, _CROWD_AS_IGNORE.value)
    print(shard_writer.write_shards(images, annotator.annotate, info, output))
    return 0


class AdeImage(NamedTuple):
    """An image with its map of classes, and the same image with its map of instances."""

    semantic: FilePair
    instances: FilePair


def find_images(root: str, split: str) -> list[AdeImage]:
    """The images of a split.

    Raises:
      UserError: If the split or a folder is unknown, or nothing fits together.
    """
    if split not in _FOLDERS:
        raise UserError(f"--split={split}: ADE20K has {' and '.join(_FOLDERS)}")
    folders = [f"{root}/{kind}/{_FOLDERS[split]}" for kind in ("images", "annotations", "annotations_instance")]
    for folder in folders:
        if not storage.is_folder(folder):
            raise UserError(
                f"{folder} is not a folder; --ade20k_dir is ADEChallengeData2016, into which annotations_instance.tar "
                "was unpacked, too"
            )
    image_dir, semantic_dir, instance_dir = folders
    semantic = {pair.name: pair for pair in file_pairs.find_pairs(image_dir, semantic_dir)}
    instances = {pair.name: pair for pair in file_pairs.find_pairs(image_dir, instance_dir)}
    return [
        AdeImage(
            semantic.get(name, FilePair(name, instances[name].image if name in instances else None, None)),
            instances.get(name, FilePair(name, semantic[name].image if name in semantic else None, None)),
        )
        for name in sorted({*semantic, *instances})
    ]


def read_names(path: str) -> dict[int, ClassName]:
    """The names in objectInfo150.txt, a table with columns Idx and Name; none if it is not there.

    A class's first name is taken: `person` of `person, individual, someone`.

    Raises:
      UserError: If it has not those columns.
    """
    if not storage.exists(path):
        return {}
    head, *rows = [re.split(r"\t+", line.strip()) for line in storage.read_text(path).splitlines() if line.strip()]
    columns = [column.strip() for column in head]
    try:
        number, name = columns.index("Idx"), columns.index("Name")
        return {int(row[number]): ClassName(re.split("[,;]", row[name])[0].strip()) for row in rows}
    except (ValueError, IndexError) as error:
        raise UserError(f"{path}: wanted columns Idx and Name, separated by tabs: {error}") from error


def find_things(images: Sequence[AdeImage], processes: int = 1, skip_bad_input: bool = False) -> dict[int, int]:
    """The class of each number that instance files have for a class of things.

    Raises:
      UserError: If a file cannot be read, unless those are to be skipped.
    """
    votes = np.zeros([_INSTANCE_DIVISOR, NUM_CLASSES + 1], np.int64)
    for found in gather(_votes, images, processes, "finding things", skip_bad_input):
        votes += found
    votes[:, 0] = 0  # Void tells nothing.
    return {int(thing): int(votes[thing].argmax()) for thing in np.flatnonzero(votes.any(axis=1)) if thing}


def _votes(image: AdeImage) -> np.ndarray:
    """int64 [things, classes]: how many pixels have both."""
    semantic, instances = _read_maps(image)
    joint = instances // _INSTANCE_DIVISOR * (NUM_CLASSES + 1) + semantic
    counts = np.bincount(joint.ravel(), minlength=_INSTANCE_DIVISOR * (NUM_CLASSES + 1))
    return counts.reshape(_INSTANCE_DIVISOR, NUM_CLASSES + 1)


def _read_maps(image: AdeImage) -> tuple[np.ndarray, np.ndarray]:
    """int32 [height, width] of classes, and of thing * 256 + instance."""
    semantic = read_gray_png(image.semantic.label)
    if semantic.max(initial=0) > NUM_CLASSES:
        raise UserError(f"{image.semantic.label}: value {semantic.max()}; ADE20K has the classes 1 to {NUM_CLASSES}")
    colors, mode = read_png(image.instances.label)
    if mode != "RGB":
        raise UserError(f"{image.instances.label}: a PNG of mode {mode}; wanted RGB: red = class, green = instance")
    check_size(image.instances.label, colors.shape[:2], semantic.shape, image.semantic.label)
    return semantic, colors[..., 0].astype(np.int32) * _INSTANCE_DIVISOR + colors[..., 1]


@dataclass(frozen=True)
class Annotator:
    """Makes label maps of the two maps of an image.

    Attributes:
      dataset_info: The class table; its source_ids are 1..150.
      class_of_thing: The class of each number that instance files have.
      treat_crowd_as_ignore: Make pixels of things without an instance void; otherwise they are instance 0.
    """

    dataset_info: DatasetInfo
    class_of_thing: Mapping[int, int]
    treat_crowd_as_ignore: bool = True

    def annotate(self, image: AdeImage) -> AnnotatedImage:
        """The image and its label map.

        Raises:
          UserError: With file and value.
        """
        image.semantic.check()
        image.instances.check()
        file = image_files.read_image(image.semantic.image)
        semantic, instances = _read_maps(image)
        check_size(image.semantic.label, semantic.shape, file.size, "its image")
        numbering = Numbering(self.dataset_info, self.treat_crowd_as_ignore)
        rows = {row.source_id: row for row in self.dataset_info.classes}

        def label_of_class(number: int) -> int:
            return numbering.label(rows[number], rows[number].is_thing) if number else self.dataset_info.void

        def label_of_instance(value: int) -> int:
            thing = value // _INSTANCE_DIVISOR
            if thing == 0:
                return -1  # Belongs to no instance.
            if thing not in self.class_of_thing:
                raise UserError(f"red {thing}: none of its instances has a class in annotations")
            row = rows[self.class_of_thing[thing]]
            if not row.is_thing:
                raise UserError(
                    f"red {thing}: is {row.name!r}, which the class table has as stuff; convert train first"
                )
            return numbering.label(row)

        label = replace_values(semantic, label_of_class, image.semantic.label)
        things = replace_values(instances, label_of_instance, image.instances.label)
        label = np.where(things >= 0, things, label)
        return AnnotatedImage(file.content, file.format, label, image.semantic.name)
