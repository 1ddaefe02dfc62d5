r"""Converts a folder of images and a folder of label PNGs that are called like them.

The table of classes is made of what is in the PNGs: a first pass finds the numbers of the classes, and each that ever
has an instance is a thing, the others are stuff. --class_names gives them names; where it also says of each whether it
is a thing, there is no first pass. Where --output_dir has a class table of an earlier split, that one is used: convert
first the split that has all classes.

A gray PNG of 8 or 16 bits, or one with a palette, has in each pixel the number

  class * label_divisor + instance   --coding class_instance; instance 0: stuff, or a crowd of a class of things
  class                              --coding class: there are no instances, all is stuff
  instance                           --coding instance: there is one class, things, numbered 1

and an RGB one class = red, instance = green + 256 blue; one of gray with alpha has class = gray, instance = alpha.

Example:
  maxdl-convert label_pngs --image_dir fruit/train --label_dir fruit/train_labels --split train --output_dir tfrecords
  maxdl-convert label_pngs --image_dir fruit/val --label_dir fruit/val_labels --split val --output_dir tfrecords
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from absl import flags

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data_gen import class_tables, file_pairs, image_files, output_flags, shard_writer
from maxdl_tf.data_gen.examples import AnnotatedImage
from maxdl_tf.data_gen.file_pairs import FilePair
from maxdl_tf.data_gen.first_pass import gather
from maxdl_tf.data_gen.label_maps import Numbering, check_size, read_png, replace_values
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage

CODINGS = ("class_instance", "class", "instance")
_CHANNEL_DIVISOR = 2**16  # In channels: instance = green + 256 blue.

FLAGS = flags.FlagValues()
_IMAGE_DIR = flags.DEFINE_string(
    "image_dir", None, "Folder of the images, JPEG or PNG, with those below it.", required=True, flag_values=FLAGS
)
_LABEL_DIR = flags.DEFINE_string(
    "label_dir", None, "Folder of the label PNGs, NAME.png to each image NAME.", required=True, flag_values=FLAGS
)
_LABEL_ENDING = flags.DEFINE_string(
    "label_ending", "", "What follows NAME in the label PNGs' names, such as _labels.", flag_values=FLAGS
)
_CODING = flags.DEFINE_enum("coding", "class_instance", CODINGS, "What gray values mean.", flag_values=FLAGS)
_LABEL_DIVISOR = flags.DEFINE_integer(
    "label_divisor",
    256,
    "Gray values are class * label_divisor + instance; also of the records, where it is one more than the most "
    "instances that a class can have in an image.",
    lower_bound=2,
    flag_values=FLAGS,
)
_VOID_VALUES = flags.DEFINE_list(
    "void_values",
    ["0"],
    "Gray values that mean void, or classes in a PNG with channels. None if empty.",
    flag_values=FLAGS,
)
_CLASS_NAMES = flags.DEFINE_string(
    "class_names",
    None,
    "Text file with a line `number: name`, `number: name: thing` or `number: name: stuff` for each class. Without it "
    "they are called class_NUMBER.",
    flag_values=FLAGS,
)
_DATASET_NAME = flags.DEFINE_string(
    "dataset_name", None, "Name in the class table; if not given, that of --output_dir.", flag_values=FLAGS
)
_CROWD_AS_IGNORE = flags.DEFINE_boolean(
    "treat_crowd_as_ignore",
    True,
    "Make pixels of a class of things that belong to no instance void; otherwise they are instance 0, a crowd.",
    flag_values=FLAGS,
)
output_flags.define(FLAGS)


def main(argv: list[str]) -> int:
    del argv
    output = output_flags.read(FLAGS)
    pairs = file_pairs.find_pairs(
        storage.check_folder(_IMAGE_DIR.value, "--image_dir"),
        storage.check_folder(_LABEL_DIR.value, "--label_dir"),
        label_ending=_LABEL_ENDING.value,
    )
    if not output.skip_bad_input:
        file_pairs.check_pairs(pairs)
    void_values = class_tables.parse_numbers(_VOID_VALUES.value, "--void_values")
    coding = Coding(_CODING.value, _LABEL_DIVISOR.value, void_values)
    info = class_tables.table_of_earlier_split(output.folder)
    if info is None or _CLASS_NAMES.value:
        names = class_tables.read_class_names(_CLASS_NAMES.value) if _CLASS_NAMES.value else {}
        is_thing = {number: row.is_thing for number, row in names.items()}
        if not names or None in is_thing.values():
            labels = [pair.label for pair in pairs if pair.label]
            is_thing = find_classes(labels, coding, output.processes, output.skip_bad_input)
        name = class_tables.dataset_name(_DATASET_NAME.value, output.folder)
        info = class_tables.table_of(is_thing, names, name, _LABEL_DIVISOR.value, _LABEL_DIR.value)
    annotator = Annotator(info, coding, _CROWD_AS_IGNORE.value)
    print(shard_writer.write_shards(pairs, annotator.annotate, info, output))
    return 0


@dataclass(frozen=True)
class Coding:
    """What the pixels of label PNGs mean.

    Attributes:
      kind: One of CODINGS, for gray PNGs.
      label_divisor: Of kind "class_instance".
      void_values: Gray values that mean void, or classes in a PNG with channels.
    """

    kind: str = "class_instance"
    label_divisor: int = 256
    void_values: frozenset[int] = frozenset({0})

    def read(self, path: str) -> tuple[np.ndarray, int, frozenset[int]]:
        """A PNG as one number for each pixel.

        Returns:
          int32 [height, width] of class * divisor + instance; the divisor; the numbers that mean void.

        Raises:
          UserError: If it cannot be read or has another mode.
        """
        pixels, mode = read_png(path)
        if mode in ("RGB", "LA"):
            wide = pixels.astype(np.int64)
            instance = wide[..., 1] + (256 * wide[..., 2] if mode == "RGB" else 0)
            values = wide[..., 0] * _CHANNEL_DIVISOR + instance
            void = {value for value in np.unique(values).tolist() if value // _CHANNEL_DIVISOR in self.void_values}
            return values.astype(np.int32), _CHANNEL_DIVISOR, frozenset(void)
        if pixels.ndim != 2:
            raise UserError(
                f"{path}: a PNG of mode {mode}; wanted a gray one, or RGB with class = red and instance = green + 256 "
                "blue"
            )
        divisor = {"class": 1, "instance": 2**24}.get(self.kind, self.label_divisor)
        void = self.void_values
        if self.kind == "instance":
            pixels = np.where(np.isin(pixels, list(void)), 0, pixels + divisor)
            void = frozenset({0})
        return pixels, divisor, void


def find_classes(paths: list[str], coding: Coding, processes: int = 1, skip_bad_input: bool = False) -> dict[int, bool]:
    """The classes in label PNGs, and of each whether it ever has an instance.

    Raises:
      UserError: If a PNG cannot be read, unless those are to be skipped.
    """
    is_thing: dict[int, bool] = {}
    for found in gather(functools.partial(classes_in, coding), paths, processes, "finding classes", skip_bad_input):
        for number, thing in found.items():
            is_thing[number] = is_thing.get(number, False) or thing
    return is_thing


def classes_in(coding: Coding, path: str) -> dict[int, bool]:
    """The classes in a label PNG, and of each whether it has an instance."""
    values, divisor, void = coding.read(path)
    found: dict[int, bool] = {}
    for value in np.unique(values).tolist():
        if value not in void:
            number, instance = divmod(value, divisor)
            _check_class(number, value, coding, path)
            found[number] = found.get(number, False) or instance > 0
    return found


def _check_class(number: int, value: int, coding: Coding, path: str) -> None:
    if number == 0:
        what = f"{path}: value {value} is class 0"
        if coding.kind == "class":
            raise UserError(f"{what}; classes count from 1: name it in --void_values, or add 1 to all values")
        raise UserError(
            f"{what} with --coding {coding.kind} --label_divisor {coding.label_divisor}, and classes count from 1; if "
            "the values are classes alone, say --coding class; if they are instances alone, --coding instance"
        )


@dataclass(frozen=True)
class Annotator:
    """Makes label maps of label PNGs.

    Attributes:
      dataset_info: The class table; its source_ids are the numbers of the classes in the PNGs.
      coding: What the PNGs' pixels mean.
      treat_crowd_as_ignore: Make pixels of things that belong to no instance void; otherwise they are instance 0.
    """

    dataset_info: DatasetInfo
    coding: Coding = Coding()
    treat_crowd_as_ignore: bool = True

    def annotate(self, pair: FilePair) -> AnnotatedImage:
        """The image and its label map; instances of a class are numbered anew, in the order of their numbers.

        Raises:
          UserError: With file and value.
        """
        pair.check()
        image = image_files.read_image(pair.image)
        values, divisor, void = self.coding.read(pair.label)
        check_size(pair.label, values.shape, image.size, "its image")
        numbering = Numbering(self.dataset_info, self.treat_crowd_as_ignore)
        rows = {row.source_id: row for row in self.dataset_info.classes}

        def label_of(value: int) -> int:
            if value in void:
                return self.dataset_info.void
            number, instance = divmod(value, divisor)
            row = rows.get(number)
            if row is None:
                _check_class(number, value, self.coding, pair.label)
                raise UserError(f"class {number} is not in the class table; add it to --class_names or --void_values")
            if instance and not row.is_thing:
                raise UserError(
                    f"is instance {instance} of {row.name!r}, which the class table has as stuff; convert first the "
                    "split that has instances of it, or pass --class_names"
                )
            return numbering.label(row, is_crowd=row.is_thing and not instance)

        label = replace_values(values, label_of, pair.label)
        return AnnotatedImage(image.content, image.format, label, pair.name)
