r"""Converts Cityscapes as downloaded: leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, unpacked.

  leftImg8bit/SPLIT/CITY/CITY_000000_000019_leftImg8bit.png
  gtFine/SPLIT/CITY/CITY_000000_000019_gtFine_instanceIds.png

The classes are the 19 classes of the benchmark, in the order of configs/datasets/cityscapes.textproto. Pixels of other
label ids are void. A label id without an instance marks a group of things, which is a crowd.

Example:
  maxdl-convert cityscapes --cityscapes_dir cityscapes --split train --output_dir cityscapes_tfrecords
  maxdl-convert cityscapes --cityscapes_dir cityscapes --split val --output_dir cityscapes_tfrecords
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from absl import flags

from maxdl_tf import class_table
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data_gen import converter_flags, shard_writer, source_files
from maxdl_tf.data_gen.annotated_images import AnnotatedImage
from maxdl_tf.data_gen.label_maps import Numbering, replace_values
from maxdl_tf.data_gen.source_files import FilePair
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage

DATASET_INFO_FILE = Path(__file__).resolve().parent.parent / "configs" / "datasets" / "cityscapes.textproto"
_INSTANCE_DIVISOR = 1000  # instanceIds are label id * 1000 + instance, from 0; smaller values are label ids alone.
_LARGEST_LABEL_ID = 33

FLAGS = flags.FlagValues()
_CITYSCAPES_DIR = flags.DEFINE_string(
    "cityscapes_dir", None, "Folder that contains leftImg8bit and gtFine.", required=True, flag_values=FLAGS
)
_DATASET_INFO = flags.DEFINE_string(
    "dataset_info",
    str(DATASET_INFO_FILE),
    "Class table, whose source_ids are label ids; other label ids are void.",
    flag_values=FLAGS,
)
_CROWD_AS_IGNORE = converter_flags.define_treat_crowd_as_ignore(FLAGS, "groups of things")
converter_flags.define_output(FLAGS)


def main(argv: list[str]) -> int:
    del argv
    output = converter_flags.read_output(FLAGS)
    pairs = find_images(_CITYSCAPES_DIR.value, output.split)
    if not output.skip_bad_input:
        source_files.check_pairs(pairs)
    info = class_table.load(_DATASET_INFO.value)
    annotator = Annotator(info, _CROWD_AS_IGNORE.value)
    print(shard_writer.write_shards(pairs, annotator.annotate, info, output))
    return 0


def find_images(root: str, split: str) -> list[FilePair]:
    """Finds the images of a split and their instanceIds.

    Raises:
      UserError: A folder is missing, or no names match.
    """
    folders = [f"{root.rstrip('/')}/{kind}/{split}" for kind in ("leftImg8bit", "gtFine")]
    for folder in folders:
        if not storage.is_folder(folder):
            raise UserError(
                f"{folder} is not a folder; --cityscapes_dir must contain leftImg8bit and gtFine, and --split must be "
                "a folder of both: train or val"
            )
    return source_files.find_pairs(*folders, image_ending="_leftImg8bit", label_ending="_gtFine_instanceIds")


@dataclass(frozen=True)
class Annotator:
    """Converts images with instanceIds.

    Attributes:
      dataset_info: The class table; its source_ids are label ids.
      treat_crowd_as_ignore: Whether groups become void; otherwise they are instance 0 of their class.
    """

    dataset_info: DatasetInfo
    treat_crowd_as_ignore: bool = True

    def annotate(self, pair: FilePair) -> AnnotatedImage:
        """Converts an image.

        Raises:
          UserError: The image or its instanceIds are faulty; the message has the file and the value.
        """
        pair.check()
        image = source_files.read_image(pair.image)
        instance_ids = source_files.read_gray_labels(pair.label)
        source_files.check_size(pair.label, instance_ids.shape, image.size, "its image")
        numbering = Numbering(self.dataset_info, self.treat_crowd_as_ignore)

        def label_of(value: int) -> int:
            is_alone = value < _INSTANCE_DIVISOR
            label_id = value if is_alone else value // _INSTANCE_DIVISOR
            if label_id > _LARGEST_LABEL_ID:
                raise UserError(f"Cityscapes has no label id {label_id}; is the file a gtFine_instanceIds.png?")
            row = self.dataset_info.by_source_id.get(label_id)
            return self.dataset_info.void if row is None else numbering.label(row, row.is_thing and is_alone)

        label = replace_values(instance_ids, label_of, pair.label)
        return AnnotatedImage(image.content, image.format, label, pair.name.rpartition("/")[2])
