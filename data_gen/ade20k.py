r"""Converts ADE20K as distributed by the scene parsing and instance segmentation challenges of 2016 and 2017.

  ADEChallengeData2016/
    images/training/ADE_train_00000001.jpg               images
    annotations/training/ADE_train_00000001.png          gray: class 1..150, 0 is void
    annotations_instance/training/ADE_train_00000001.png red: one of 100 classes of things, green: instance from 1
    objectInfo150.txt                                    names

The val split has `validation` in place of `training`. The instance files number 100 thing classes from 1, in another
order than the 150 classes. A first pass matches the two: each thing class is the class that most pixels of its
instances have. Classes with instances are things, and other classes are stuff. If --output_dir has the class table of
an earlier split, that table decides which classes are things, so convert train first.

configs/datasets/ade20k.textproto has the published lists of the classes and of the 100 things.

Where the two files disagree, the instance file wins. Pixels of things without an instance are a crowd.

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
from maxdl_tf.data_gen import class_names, converter_flags, shard_writer, source_files
from maxdl_tf.data_gen.annotated_images import AnnotatedImage
from maxdl_tf.data_gen.class_names import ClassName
from maxdl_tf.data_gen.label_maps import Numbering, replace_values
from maxdl_tf.data_gen.source_files import FilePair, check_size
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage

NUM_CLASSES = 150
LABEL_DIVISOR = 1000  # As in DeepLab2. With copy-paste, it allows up to 499 instances of a class in an image.
_FOLDERS = {"train": "training", "val": "validation"}
_INSTANCE_DIVISOR = 256  # red * 256 + green.

FLAGS = flags.FlagValues()
_ADE20K_DIR = flags.DEFINE_string(
    "ade20k_dir",
    None,
    "Folder that contains images, annotations, annotations_instance and objectInfo150.txt.",
    required=True,
    flag_values=FLAGS,
)
_CROWD_AS_IGNORE = converter_flags.define_treat_crowd_as_ignore(FLAGS)
converter_flags.define_output(FLAGS)


def main(argv: list[str]) -> int:
    del argv
    output = converter_flags.read_output(FLAGS)
    root = storage.check_folder(_ADE20K_DIR.value, "--ade20k_dir").rstrip("/")
    images = find_images(root, output.split)
    if not output.skip_bad_input:
        source_files.check_pairs([image.semantic for image in images])
        source_files.check_pairs([image.instances for image in images])
    whole = [image for image in images if image.semantic.label and image.instances.label]
    class_of_thing = find_things(whole, output.processes, output.skip_bad_input)
    info = output.earlier_class_table()
    if info is None:
        is_thing = {number: number in class_of_thing.values() for number in range(1, NUM_CLASSES + 1)}
        info = class_names.named_table(is_thing, read_names(f"{root}/objectInfo150.txt"), "ade20k", LABEL_DIVISOR, root)
    annotator = Annotator(info, class_of_thing, _CROWD_AS_IGNORE.value)
    print(shard_writer.write_shards(images, annotator.annotate, info, output))
    return 0


class AdeImage(NamedTuple):
    """An image with its class map, and the same image with its instance map."""

    semantic: FilePair
    instances: FilePair


def find_images(root: str, split: str) -> list[AdeImage]:
    """Finds the images of a split.

    Raises:
      UserError: The split is unknown, a folder is missing, or no names match.
    """
    if split not in _FOLDERS:
        raise UserError(f"--split={split}: must be one of {', '.join(_FOLDERS)}")
    folders = [f"{root}/{kind}/{_FOLDERS[split]}" for kind in ("images", "annotations", "annotations_instance")]
    for folder in folders:
        if not storage.is_folder(folder):
            raise UserError(
                f"{folder} is not a folder; --ade20k_dir must be ADEChallengeData2016 with annotations_instance.tar "
                "unpacked into it"
            )
    image_dir, semantic_dir, instance_dir = folders
    semantic = {pair.name: pair for pair in source_files.find_pairs(image_dir, semantic_dir)}
    instances = {pair.name: pair for pair in source_files.find_pairs(image_dir, instance_dir)}
    return [
        AdeImage(
            semantic.get(name, FilePair(name, instances[name].image if name in instances else None, None)),
            instances.get(name, FilePair(name, semantic[name].image if name in semantic else None, None)),
        )
        for name in sorted({*semantic, *instances})
    ]


def read_names(path: str) -> dict[int, ClassName]:
    """Reads the names in objectInfo150.txt, a table with columns Idx and Name; {} if the file is missing.

    Of several names, the first one counts: `person` of `person, individual, someone`.

    Raises:
      UserError: The table lacks one of the columns.
    """
    if not storage.exists(path):
        return {}
    head, *rows = [re.split(r"\t+", line.strip()) for line in storage.read_text(path).splitlines() if line.strip()]
    columns = [column.strip() for column in head]
    try:
        number, name = columns.index("Idx"), columns.index("Name")
        return {int(row[number]): ClassName(re.split("[,;]", row[name])[0].strip()) for row in rows}
    except (ValueError, IndexError) as error:
        raise UserError(f"{path}: expected columns Idx and Name, separated by tabs: {error}") from error


def find_things(images: Sequence[AdeImage], processes: int = 1, skip_bad_input: bool = False) -> dict[int, int]:
    """Matches the thing classes of instance files with classes: {thing number: class number}.

    Raises:
      UserError: A file is faulty and not skipped.
    """
    votes = np.zeros([_INSTANCE_DIVISOR, NUM_CLASSES + 1], np.int64)
    for found in class_names.first_pass(_votes, images, processes, "finding things", skip_bad_input):
        votes += found
    votes[:, 0] = 0  # Void pixels have no class.
    return {int(thing): int(votes[thing].argmax()) for thing in np.flatnonzero(votes.any(axis=1)) if thing}


def _votes(image: AdeImage) -> np.ndarray:
    """int64 [things, classes]: number of pixels with both."""
    semantic, instances = _read_maps(image)
    joint = instances // _INSTANCE_DIVISOR * (NUM_CLASSES + 1) + semantic
    counts = np.bincount(joint.ravel(), minlength=_INSTANCE_DIVISOR * (NUM_CLASSES + 1))
    return counts.reshape(_INSTANCE_DIVISOR, NUM_CLASSES + 1)


def _read_maps(image: AdeImage) -> tuple[np.ndarray, np.ndarray]:
    """Reads the class map and the instance map, thing * 256 + instance; both int32 [height, width]."""
    semantic = source_files.read_gray_labels(image.semantic.label)
    if semantic.max(initial=0) > NUM_CLASSES:
        raise UserError(f"{image.semantic.label}: value {semantic.max()}; ADE20K has classes 1 to {NUM_CLASSES}")
    colors, mode = source_files.read_labels(image.instances.label)
    if mode != "RGB":
        raise UserError(f"{image.instances.label}: a PNG of mode {mode}; expected RGB: red = class, green = instance")
    check_size(image.instances.label, colors.shape[:2], semantic.shape, image.semantic.label)
    return semantic, colors[..., 0].astype(np.int32) * _INSTANCE_DIVISOR + colors[..., 1]


@dataclass(frozen=True)
class Annotator:
    """Converts images with class and instance maps.

    Attributes:
      dataset_info: The class table; its source_ids are 1..150.
      class_of_thing: Class number of each thing number of instance files.
      treat_crowd_as_ignore: Whether pixels of things without an instance become void; otherwise they are instance 0.
    """

    dataset_info: DatasetInfo
    class_of_thing: Mapping[int, int]
    treat_crowd_as_ignore: bool = True

    def annotate(self, image: AdeImage) -> AnnotatedImage:
        """Converts an image.

        Raises:
          UserError: The image or one of its maps is faulty; the message has the file and the value.
        """
        image.semantic.check()
        image.instances.check()
        file = source_files.read_image(image.semantic.image)
        semantic, instances = _read_maps(image)
        check_size(image.semantic.label, semantic.shape, file.size, "its image")
        numbering = Numbering(self.dataset_info, self.treat_crowd_as_ignore)
        rows = self.dataset_info.by_source_id

        def label_of_class(number: int) -> int:
            return numbering.label(rows[number], rows[number].is_thing) if number else self.dataset_info.void

        def label_of_instance(value: int) -> int:
            thing = value // _INSTANCE_DIVISOR
            if thing == 0:
                return -1  # No instance.
            if thing not in self.class_of_thing:
                raise UserError(f"red {thing}: no instance of it has a class in annotations")
            row = rows[self.class_of_thing[thing]]
            if not row.is_thing:
                raise UserError(f"red {thing}: is {row.name!r}, which is stuff in the class table; convert train first")
            return numbering.label(row)

        label = replace_values(semantic, label_of_class, image.semantic.label)
        things = replace_values(instances, label_of_instance, image.instances.label)
        label = np.where(things >= 0, things, label)
        return AnnotatedImage(file.content, file.format, label, image.semantic.name)
