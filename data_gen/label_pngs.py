r"""Converts a folder of images and a folder of label PNGs with matching file names.

The class table is built from the PNGs. A first pass finds the class numbers; a class that ever has an instance is a
thing, and other classes are stuff. --class_names names the classes. If it also states the kind of each class, there is
no first pass. If --output_dir has the class table of an earlier split, the converter uses that table, so convert the
split with all classes first.

A pixel of a gray PNG of 8 or 16 bits, or of a palette PNG, is one number:

  class * label_divisor + instance   --coding class_instance; instance 0 is stuff, or a crowd of a thing class
  class                              --coding class; there are no instances, and all classes are stuff
  instance                           --coding instance; there is one class of things, number 1. Value 0 is void, or with
                                     --background a class of stuff, number 2

In an RGB PNG, class = red and instance = green + 256 blue. In a gray PNG with alpha, class = gray and instance = alpha.

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
from maxdl_tf.data_gen import class_names, converter_flags, shard_writer, source_files
from maxdl_tf.data_gen.annotated_images import AnnotatedImage
from maxdl_tf.data_gen.class_names import ClassName
from maxdl_tf.data_gen.label_maps import Numbering, replace_values
from maxdl_tf.data_gen.source_files import FilePair
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage

CODINGS = ("class_instance", "class", "instance")
_CHANNEL_DIVISOR = 2**16  # In PNGs with channels, instance = green + 256 blue.

FLAGS = flags.FlagValues()
_IMAGE_DIR = converter_flags.define_image_dir(FLAGS, "Folder of the images, JPEG or PNG, subfolders included.")
_LABEL_DIR = flags.DEFINE_string(
    "label_dir", None, "Folder of the label PNGs, NAME.png for each image NAME.", required=True, flag_values=FLAGS
)
_LABEL_ENDING = flags.DEFINE_string(
    "label_ending", "", "Part of the label PNGs' names after NAME, such as _labels.", flag_values=FLAGS
)
_CODING = flags.DEFINE_enum("coding", "class_instance", CODINGS, "Meaning of gray values.", flag_values=FLAGS)
_LABEL_DIVISOR = converter_flags.define_label_divisor(FLAGS, "Divisor of gray values of --coding class_instance. ")
_VOID_VALUES = converter_flags.define_void_values(
    FLAGS, ["0"], "Gray values that mean void, or void classes in PNGs with channels; may be empty."
)
_BACKGROUND = flags.DEFINE_string(
    "background",
    None,
    "Name of a class of stuff for the pixels of value 0 with --coding instance. Otherwise they are void, and the model "
    "does not learn where there is no instance.",
    flag_values=FLAGS,
)
_CLASS_NAMES = flags.DEFINE_string(
    "class_names",
    None,
    "Text file with a line `number: name`, `number: name: thing` or `number: name: stuff` for each class. Without the "
    "file, classes are called class_NUMBER.",
    flag_values=FLAGS,
)
_DATASET_NAME = converter_flags.define_dataset_name(FLAGS)
_CROWD_AS_IGNORE = converter_flags.define_treat_crowd_as_ignore(
    FLAGS, "pixels of a thing class without an instance (crowds)"
)
converter_flags.define_output(FLAGS)


def main(argv: list[str]) -> int:
    del argv
    output = converter_flags.read_output(FLAGS)
    if _BACKGROUND.value and _CODING.value != "instance":
        raise UserError(f"--background does not work with --coding {_CODING.value}; give the background a class number")
    pairs = source_files.find_pairs(
        storage.check_folder(_IMAGE_DIR.value, "--image_dir"),
        storage.check_folder(_LABEL_DIR.value, "--label_dir"),
        label_ending=_LABEL_ENDING.value,
    )
    if not output.skip_bad_input:
        source_files.check_pairs(pairs)
    coding = Coding(
        _CODING.value,
        _LABEL_DIVISOR.value,
        converter_flags.read_void_values(_VOID_VALUES),
        has_background=_BACKGROUND.value is not None,
    )
    info = output.earlier_class_table()
    if info is None or _CLASS_NAMES.value:
        names = class_names.read_class_names(_CLASS_NAMES.value) if _CLASS_NAMES.value else {}
        if _BACKGROUND.value:
            names = {1: ClassName("class_1", True), **names, 2: ClassName(_BACKGROUND.value, False)}
        is_thing = {number: row.is_thing for number, row in names.items()}
        if not names or None in is_thing.values():
            labels = [pair.label for pair in pairs if pair.label]
            is_thing = find_classes(labels, coding, output.processes, output.skip_bad_input)
        name = output.dataset_name(_DATASET_NAME.value)
        info = class_names.named_table(is_thing, names, name, _LABEL_DIVISOR.value, _LABEL_DIR.value)
        kinds = [f"{row.name} ({'thing' if row.is_thing else 'stuff'})" for row in info.classes]
        print(f"{len(kinds)} classes: {', '.join(kinds)}", flush=True)
    annotator = Annotator(info, coding, _CROWD_AS_IGNORE.value)
    print(shard_writer.write_shards(pairs, annotator.annotate, info, output))
    return 0


@dataclass(frozen=True)
class Coding:
    """Meaning of the pixels of label PNGs.

    Attributes:
      kind: Meaning of gray values, one of CODINGS.
      label_divisor: Divisor of gray values of kind "class_instance".
      void_values: Gray values that mean void, or void classes in PNGs with channels.
      has_background: Whether value 0 of kind "instance" is class 2, a class of stuff, even if it is in `void_values`.
    """

    kind: str = "class_instance"
    label_divisor: int = 256
    void_values: frozenset[int] = frozenset({0})
    has_background: bool = False

    def read(self, path: str) -> tuple[np.ndarray, int, frozenset[int]]:
        """Reads a PNG as one number per pixel.

        Returns:
          int32 [height, width], class * divisor + instance; the divisor; the numbers that mean void.

        Raises:
          UserError: The file cannot be read or decoded, or has another mode.
        """
        pixels, mode = source_files.read_png(path)
        if mode in ("RGB", "LA"):
            wide = pixels.astype(np.int64)
            instance = wide[..., 1] + (256 * wide[..., 2] if mode == "RGB" else 0)
            values = wide[..., 0] * _CHANNEL_DIVISOR + instance
            void = {value for value in np.unique(values).tolist() if value // _CHANNEL_DIVISOR in self.void_values}
            return values.astype(np.int32), _CHANNEL_DIVISOR, frozenset(void)
        if pixels.ndim != 2:
            raise UserError(
                f"{path}: a PNG of mode {mode}; expected gray, or RGB with class = red and instance = green + 256 blue"
            )
        divisor = {"class": 1, "instance": 2**24}.get(self.kind, self.label_divisor)
        void = self.void_values
        if self.kind == "instance":
            values = np.where(np.isin(pixels, list(void)), 0, pixels + divisor)
            pixels = np.where(pixels == 0, 2 * divisor, values) if self.has_background else values
            void = frozenset({0})
        return pixels, divisor, void


def find_classes(paths: list[str], coding: Coding, processes: int = 1, skip_bad_input: bool = False) -> dict[int, bool]:
    """Finds the classes in label PNGs: {class number: whether it ever has an instance}.

    Raises:
      UserError: A PNG is faulty and not skipped.
    """
    is_thing: dict[int, bool] = {}
    function = functools.partial(classes_in, coding)
    for found in class_names.first_pass(function, paths, processes, "finding classes", skip_bad_input):
        for number, thing in found.items():
            is_thing[number] = is_thing.get(number, False) or thing
    return is_thing


def classes_in(coding: Coding, path: str) -> dict[int, bool]:
    """Finds the classes in a label PNG: {class number: whether it has an instance}."""
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
        fault = f"{path}: value {value} is class 0"
        if coding.kind == "class":
            raise UserError(f"{fault}, but classes count from 1; add it to --void_values, or add 1 to all values")
        raise UserError(
            f"{fault} with --coding {coding.kind} --label_divisor {coding.label_divisor}, but classes count from 1; "
            "pass --coding class if the values are classes alone, or --coding instance if they are instances alone"
        )


@dataclass(frozen=True)
class Annotator:
    """Converts images with label PNGs.

    Attributes:
      dataset_info: The class table; its source_ids are the class numbers in the PNGs.
      coding: Meaning of the PNGs' pixels.
      treat_crowd_as_ignore: Whether pixels of things without an instance become void; otherwise they are instance 0.
    """

    dataset_info: DatasetInfo
    coding: Coding = Coding()
    treat_crowd_as_ignore: bool = True

    def annotate(self, pair: FilePair) -> AnnotatedImage:
        """Converts an image; the instances of a class are renumbered in ascending order.

        Raises:
          UserError: The image or its label map is faulty; the message has the file and the value.
        """
        pair.check()
        image = source_files.read_image(pair.image)
        values, divisor, void = self.coding.read(pair.label)
        source_files.check_size(pair.label, values.shape, image.size, "its image")
        numbering = Numbering(self.dataset_info, self.treat_crowd_as_ignore)

        def label_of(value: int) -> int:
            if value in void:
                return self.dataset_info.void
            number, instance = divmod(value, divisor)
            row = self.dataset_info.by_source_id.get(number)
            if row is None:
                _check_class(number, value, self.coding, pair.label)
                raise UserError(f"class {number} is not in the class table; add it to --class_names or --void_values")
            if instance and not row.is_thing:
                raise UserError(
                    f"is instance {instance} of {row.name!r}, which is stuff in the class table; convert the split "
                    "that has instances of it first, or pass --class_names"
                )
            return numbering.label(row, is_crowd=row.is_thing and not instance)

        label = replace_values(values, label_of, pair.label)
        return AnnotatedImage(image.content, image.format, label, pair.name)
