r"""Converts classified images: a folder with one folder of images for each class, as ImageNet is laid out.

The shards are for `task: classification`, which pretrains a backbone. Labels are 1, 2, ... in the alphabetical order of
the folders' names; dataset_info.textproto beside the shards says which is which. A split without images of a class has
an empty folder for it, so that all splits count alike. The images are shuffled, the same way each time.

Example:
  maxdl-convert image_folders --image_dir imagenet/train --split train --output_dir imagenet_tfrecords
  maxdl-convert image_folders --image_dir imagenet/val --split val --output_dir imagenet_tfrecords
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

from absl import flags

from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.data_gen import class_tables, image_files, output_flags, shard_writer
from maxdl_tf.data_gen.examples import ClassifiedImage
from maxdl_tf.errors import UserError

FLAGS = flags.FlagValues()
_IMAGE_DIR = flags.DEFINE_string(
    "image_dir",
    None,
    "Folder of the classes' folders; each file in these is an image.",
    required=True,
    flag_values=FLAGS,
)
_DATASET_NAME = flags.DEFINE_string(
    "dataset_name", None, "Name in the class table; if not given, that of --output_dir.", flag_values=FLAGS
)
output_flags.define(FLAGS, label_maps=False)


def main(argv: list[str]) -> int:
    del argv
    output = output_flags.read(FLAGS)
    folder = Path(_IMAGE_DIR.value)
    classes = find_classes(folder)
    images = find_images(folder, classes)
    # A shard of few classes would make batches of few classes.
    random.Random(0).shuffle(images)
    info = table_of_folders(classes, class_tables.dataset_name(_DATASET_NAME.value, output.folder))
    print(shard_writer.write_shards(images, read_classified, info, output))
    return 0


class LabeledFile(NamedTuple):
    """An image file and its class."""

    path: Path
    class_id: int
    class_name: str


def find_classes(folder: Path) -> list[str]:
    """The names of the folders in a folder, in alphabetical order; hidden ones are left out.

    Raises:
      UserError: If it is no folder or has none.
    """
    if not folder.is_dir():
        raise UserError(f"--image_dir={folder} is not a folder; check the path")
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise UserError(f"--image_dir={folder} has no folders in it; wanted one for each class, with its images")
    return classes


def find_images(folder: Path, classes: list[str]) -> list[LabeledFile]:
    """All files of all classes, by class and name; hidden ones are left out."""
    images = []
    for class_id, name in enumerate(classes, start=1):
        files = (path for path in (folder / name).iterdir() if path.is_file() and not path.name.startswith("."))
        images += [LabeledFile(path, class_id, name) for path in sorted(files)]
    return images


def table_of_folders(classes: list[str], name: str) -> DatasetInfo:
    """The class table: ids from 1."""
    rows = (SegmentClass(number, label, False, (0, 0, 0), number) for number, label in enumerate(classes, start=1))
    return DatasetInfo(name, tuple(rows))


def read_classified(image: LabeledFile) -> ClassifiedImage:
    """The image as the shard writer wants it.

    Raises:
      UserError: With the file.
    """
    file = image_files.read_image(image.path)
    image_id = f"{image.class_name}/{image.path.stem}"
    return ClassifiedImage(file.content, file.format, file.size, image.class_id, image.class_name, image_id)
