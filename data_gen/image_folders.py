r"""Converts classified images: a folder with one folder of images per class, the layout of ImageNet.

The shards are for `task: classification`, which pretrains a backbone. Labels count from 1 in the alphabetical order of
the folder names; dataset_info.textproto lists them. All splits must have the same folders, so a split without images of
a class has an empty folder for it. The images are shuffled, in the same order each time.

Example:
  maxdl-convert image_folders --image_dir imagenet/train --split train --output_dir imagenet_tfrecords
  maxdl-convert image_folders --image_dir imagenet/val --split val --output_dir imagenet_tfrecords
"""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import NamedTuple

from absl import flags

from maxdl_tf.class_table import DatasetInfo, SourceClass, from_source_classes
from maxdl_tf.data_gen import converter_flags, shard_writer
from maxdl_tf.data_gen.annotated_images import ClassifiedImage
from maxdl_tf.data_gen.source_files import read_image
from maxdl_tf.errors import UserError
from maxdl_tf.files.intensity import IntensityRule

FLAGS = flags.FlagValues()
_IMAGE_DIR = converter_flags.define_image_dir(FLAGS, "Folder of the class folders; each file in these is an image.")
_INTENSITY = converter_flags.define_intensity(FLAGS)
_DATASET_NAME = converter_flags.define_dataset_name(FLAGS)
converter_flags.define_output(FLAGS, label_maps=False)


def main(argv: list[str]) -> int:
    del argv
    output = converter_flags.read_output(FLAGS)
    folder = Path(_IMAGE_DIR.value)
    classes = find_classes(folder)
    images = find_images(folder, classes)
    # In the order of the folders, a shard and thus a batch would have few classes.
    random.Random(0).shuffle(images)
    info = table_of_folders(classes, output.dataset_name(_DATASET_NAME.value))
    info = converter_flags.with_intensity(info, _INTENSITY, output.earlier_class_table())
    read = functools.partial(read_classified, intensity=info.intensity)
    print(shard_writer.write_shards(images, read, info, output))
    return 0


class LabeledFile(NamedTuple):
    """An image file and its class."""

    path: Path
    class_id: int
    class_name: str


def find_classes(folder: Path) -> list[str]:
    """Returns the names of the subfolders in alphabetical order, without hidden ones.

    Raises:
      UserError: The path is not a folder, has no subfolders, or the name of one is not UTF-8.
    """
    if not folder.is_dir():
        raise UserError(f"--image_dir={folder} is not a folder; check the path")
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise UserError(f"--image_dir={folder} has no subfolders; expected one folder of images per class")
    for name in classes:
        if any("\ud800" <= letter <= "\udfff" for letter in name):  # Bytes that are not UTF-8.
            raise UserError(f"--image_dir={folder}: the folder name {name!r} is not UTF-8; rename it")
    return classes


def find_images(folder: Path, classes: list[str]) -> list[LabeledFile]:
    """Returns the files of all classes, by class and name, without hidden ones."""
    images = []
    for class_id, name in enumerate(classes, start=1):
        files = (path for path in (folder / name).iterdir() if path.is_file() and not path.name.startswith("."))
        images += [LabeledFile(path, class_id, name) for path in sorted(files)]
    return images


def table_of_folders(classes: list[str], name: str) -> DatasetInfo:
    """Builds the class table: class ids count from 1, and all colors are black."""
    rows = [SourceClass(number, label, False, (0, 0, 0)) for number, label in enumerate(classes, start=1)]
    return from_source_classes(rows, name)


def read_classified(image: LabeledFile, intensity: IntensityRule | None = None) -> ClassifiedImage:
    """Reads an image, by a rule for values of more than 8 bits.

    Raises:
      UserError: The image is faulty; the message has the path.
    """
    file = read_image(image.path, intensity)
    image_id = f"{image.class_name}/{image.path.stem}"
    return ClassifiedImage(file.content, file.format, file.size, image.class_id, image.class_name, image_id)
