r"""Converts a folder of images and a folder of label PNGs with matching file names.

The class table is built from the PNGs. A first pass finds the class numbers; a class that ever has an instance is a
thing, and other classes are stuff. --class_names names the classes. If it also states the kind of each class, there is
no first pass. If --output_dir has the class table of an earlier split, the converter uses that table, so convert the
split with all classes first.

Labels may also be TIFF files, as Cellpose, StarDist and Fiji write them.

A pixel of a gray PNG or TIFF file, or of a palette PNG, is one number:

  class * label_divisor + instance   --coding class_instance; instance 0 is stuff, or a crowd of a thing class
  class                              --coding class; there are no instances, and all classes are stuff
  instance                           --coding instance; there is one class of things, number 1

In an RGB PNG, class = red and instance = green + 256 blue. In a gray PNG with alpha, class = gray and instance = alpha.

In color-coded masks, each class has a color; --colors lists them. --instance_dir adds masks of instances to class masks
(SegmentationClass and SegmentationObject of CVAT, PASCAL VOC and labelme), color-coded or with --coding class.

Value 0, or black, is void unless it is in the list of colors. --background makes it a class of stuff.

Example:
  maxdl-convert label_pngs --image_dir fruit/train --label_dir fruit/train_labels --split train --output_dir tfrecords
  maxdl-convert label_pngs --image_dir fruit/val --label_dir fruit/val_labels --split val --output_dir tfrecords
  maxdl-convert label_pngs --image_dir cvat/images --label_dir cvat/SegmentationClass \
      --instance_dir cvat/SegmentationObject --colors cvat/labelmap.txt --output_dir tfrecords
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from absl import flags

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data_gen import class_names, converter_flags, shard_writer, source_files
from maxdl_tf.data_gen.annotated_images import AnnotatedImage, Conversion
from maxdl_tf.data_gen.class_names import ClassName, ColorTable
from maxdl_tf.data_gen.found_classes import find_classes, find_in_sample
from maxdl_tf.data_gen.label_codings import CODINGS, Coding
from maxdl_tf.data_gen.label_maps import Numbering, replace_values
from maxdl_tf.data_gen.source_files import FilePair
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage

FLAGS = flags.FlagValues()
_IMAGE_DIR = converter_flags.define_image_dir(FLAGS, "Folder of the images, JPEG, PNG or TIFF, subfolders included.")
_INTENSITY = converter_flags.define_intensity(FLAGS)
_LABEL_DIR = flags.DEFINE_string(
    "label_dir",
    None,
    "Folder of the label PNGs, NAME.png for each image NAME; or of label TIFF files, if it has no PNGs.",
    required=True,
    flag_values=FLAGS,
)
_LABEL_ENDING = flags.DEFINE_string(
    "label_ending", "", "Part of the label PNGs' names after NAME, such as _labels.", flag_values=FLAGS
)
_INSTANCE_DIR = flags.DEFINE_string(
    "instance_dir",
    None,
    "Folder of masks of instances, with the names of the label PNGs: each gray value or color is an instance, and 0 or "
    "black is none.",
    flag_values=FLAGS,
)
_CODING = flags.DEFINE_enum("coding", "class_instance", CODINGS, "Meaning of gray values.", flag_values=FLAGS)
_COLORS = flags.DEFINE_string(
    "colors",
    None,
    "Text file with the colors of color-coded masks: CVAT's labelmap.txt, or a line `red,green,blue: name`, "
    "`red,green,blue: name: thing` or `red,green,blue: name: stuff` for each class. The name `void` means void.",
    flag_values=FLAGS,
)
_LABEL_DIVISOR = converter_flags.define_label_divisor(FLAGS, "Divisor of gray values of --coding class_instance. ")
_VOID_VALUES = converter_flags.define_void_values(
    FLAGS, ["0"], "Gray values that mean void, or void classes in PNGs with channels; may be empty."
)
_BACKGROUND = converter_flags.define_background(
    FLAGS,
    "pixels of value 0, or black ones with --colors. Otherwise they are void, and the model does not learn where there "
    "is no object.",
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
    conversion = read_input(
        output.earlier_class_table(),
        output.dataset_name(_DATASET_NAME.value),
        processes=output.processes,
        skip_bad_input=output.skip_bad_input,
    )
    print(shard_writer.write_shards(conversion.tasks, conversion.annotate, conversion.dataset_info, output))
    return 0


def read_input(
    earlier: DatasetInfo | None, dataset_name: str, *, processes: int = 1, skip_bad_input: bool = False
) -> Conversion:
    """Finds the images of the flags and their classes; prints the classes, and warnings of odd ones.

    Args:
      earlier: Class table of an earlier split; None if there is none.
      dataset_name: Name of the data set in a new class table.
      processes: Number of parallel processes.
      skip_bad_input: Whether bad images are skipped later, so that the first pass does not stop at them.

    Raises:
      UserError: The flags contradict each other or the class table, or an image is bad and not skipped.
    """
    _check_flags()
    pairs = _find_pairs(skip_bad_input)
    labeled = [pair for pair in pairs if pair.label]
    colors = class_names.read_color_table(_COLORS.value) if _COLORS.value else None
    names = _read_names(colors)
    coding = _read_coding(colors, names_class_0=0 in names or (earlier is not None and 0 in earlier.by_source_id))
    if coding.kind != "instance" and not coding.colors:
        class_names.check_not_void(names or (earlier.by_source_id if earlier else {}), coding.void_values)
    found = None
    if earlier is not None and not _CLASS_NAMES.value:
        info = earlier
    else:
        is_thing = {number: row.is_thing for number, row in names.items()}
        lists_all = bool(_COLORS.value or _CLASS_NAMES.value) or (_CODING.value == "instance" and names)
        if not lists_all or None in is_thing.values():
            found = find_classes(labeled, coding, processes, skip_bad_input)
            is_thing = found.is_thing
        info = class_names.named_table(is_thing, names, dataset_name, _LABEL_DIVISOR.value, _LABEL_DIR.value)
        kinds = [f"{row.name} ({'thing' if row.is_thing else 'stuff'})" for row in info.classes]
        print(f"{len(kinds)} classes: {', '.join(kinds)}", flush=True)
    info = converter_flags.with_intensity(info, _INTENSITY, earlier)
    _check_table(info, names, coding)
    for warning in (found or find_in_sample(labeled, coding)).warnings(coding, names):
        print(f"warning: {warning}", file=sys.stderr)
    stated_stuff = frozenset(number for number, row in names.items() if row.is_thing is False)
    annotator = Annotator(info, coding, _CROWD_AS_IGNORE.value, stated_stuff)
    return Conversion(pairs, annotator.annotate, info, _image_path)


def _image_path(pair: FilePair) -> str | None:
    return pair.image


def _check_flags() -> None:
    if _COLORS.value and _CLASS_NAMES.value:
        raise UserError("--colors and --class_names both name the classes; pass one of them")
    if _COLORS.value and _CODING.present and _CODING.value != "class":
        raise UserError(
            f"--coding {_CODING.value} does not work with --colors, whose colors are classes; drop --coding"
        )
    if _COLORS.value and _VOID_VALUES.present:
        raise UserError("--void_values does not work with --colors; list colors of void there, with the name `void`")
    if _INSTANCE_DIR.value and not _COLORS.value and _CODING.value != "class":
        raise UserError(
            "--instance_dir needs masks of classes; pass --colors for colors, or --coding class for numbers"
        )


def _find_pairs(skip_bad_input: bool) -> list[FilePair]:
    image_dir = storage.check_folder(_IMAGE_DIR.value, "--image_dir")
    folders = [storage.check_folder(_LABEL_DIR.value, "--label_dir")]
    if _INSTANCE_DIR.value:
        folders.append(storage.check_folder(_INSTANCE_DIR.value, "--instance_dir"))
    pairs, *instances = (
        source_files.find_pairs(image_dir, folder, label_ending=_LABEL_ENDING.value) for folder in folders
    )
    if not skip_bad_input:
        for found in (pairs, *instances):
            source_files.check_pairs(found)
    if not instances:
        return pairs
    mask_of = {pair.name: pair.label for pair in instances[0] if pair.label}
    missing = f"{_INSTANCE_DIR.value}/{{}}{_LABEL_ENDING.value}.png"
    return [pair._replace(instances=mask_of.get(pair.name, missing.format(pair.name))) for pair in pairs]


def _read_names(colors: ColorTable | None) -> dict[int, ClassName]:
    """Names of classes by number: from --colors or --class_names, and --background."""
    names = dict(colors.names) if colors else {}
    if _CLASS_NAMES.value:
        names = class_names.read_class_names(_CLASS_NAMES.value)
    if _BACKGROUND.value:
        number = _background_number()
        if number in names and names[number].name != _BACKGROUND.value:
            raise UserError(
                f"--background={_BACKGROUND.value}: class {number} is {names[number].name!r} in "
                f"{_COLORS.value or _CLASS_NAMES.value}; give both the same name"
            )
        if _CODING.value == "instance":
            names = {1: ClassName("class_1", True), **names}
        names[number] = ClassName(_BACKGROUND.value, False)
    return names


def _read_coding(colors: ColorTable | None, names_class_0: bool) -> Coding:
    void_values = converter_flags.read_void_values(_VOID_VALUES)
    number_of = None
    if colors:
        number_of = {red + 256 * green + 65536 * blue: n for (red, green, blue), n in colors.number_of.items()}
        number_of.setdefault(0, 0 if _BACKGROUND.value else None)
    return Coding(
        kind="class" if colors else _CODING.value,
        label_divisor=_LABEL_DIVISOR.value,
        void_values=void_values - {0} if _BACKGROUND.value else void_values,
        has_background=bool(_BACKGROUND.value),
        names_class_0=names_class_0,
        colors=number_of,
        trusts_channels=_CODING.present,
    )


def _background_number() -> int:
    return 2 if _CODING.value == "instance" else 0


def _check_table(info: DatasetInfo, names: dict[int, ClassName], coding: Coding) -> None:
    """Raises UserError if classes of an earlier split contradict --background or --colors."""
    row = info.by_source_id.get(_background_number())
    if _BACKGROUND.value and (row is None or row.is_thing or row.name != _BACKGROUND.value):
        raise UserError(
            f"--background={_BACKGROUND.value} is not in the class table of an earlier split ({info.name}); use the "
            "same --background for all splits"
        )
    if coding.kind == "instance" and row and not _BACKGROUND.value:
        raise UserError(
            f"the class table of an earlier split has the background {row.name!r}; pass --background={row.name}"
        )
    for number, name in names.items() if coding.colors else ():
        row = info.by_source_id.get(number)
        if row is None or row.name != name.name:
            raise UserError(
                f"{_COLORS.value}: class {number} is {name.name!r}, in the class table of an earlier split "
                f"({info.name}) it is {row.name if row else None!r}; use the same --colors for all splits"
            )


@dataclass(frozen=True)
class Annotator:
    """Converts images with label PNGs.

    Attributes:
      dataset_info: The class table; its source_ids are the class numbers in the PNGs.
      coding: Meaning of the PNGs' pixels.
      treat_crowd_as_ignore: Whether pixels of things without an instance become void; otherwise they are instance 0.
      stated_stuff: Classes that the user calls stuff. Their instances in masks of instances are joined: the tools
        number all objects.
    """

    dataset_info: DatasetInfo
    coding: Coding
    treat_crowd_as_ignore: bool = True
    stated_stuff: frozenset[int] = frozenset()

    def annotate(self, pair: FilePair) -> AnnotatedImage:
        """Converts an image; the instances of a class are renumbered in ascending order.

        Raises:
          UserError: The image or its label map is faulty; the message has the file and the value.
        """
        pair.check()
        image = source_files.read_image(pair.image, self.dataset_info.intensity)
        values, divisor, void, _ = self.coding.read(pair.label, pair.instances)
        source_files.check_size(pair.label, values.shape, image.size, "its image")
        numbering = Numbering(self.dataset_info, self.treat_crowd_as_ignore)

        def label_of(value: int) -> int:
            if value in void:
                return self.dataset_info.void
            number, instance = divmod(value, divisor)
            row = self.dataset_info.by_source_id.get(number)
            if row is None:
                raise UserError(f"class {number} is not in the class table; add it to --class_names or --void_values")
            if instance and not row.is_thing and not (pair.instances and number in self.stated_stuff):
                raise UserError(
                    f"is instance {instance} of {row.name!r}, which is stuff in the class table; convert the split "
                    "that has instances of it first, or state the kinds of the classes in --class_names or --colors"
                )
            return numbering.label(row, is_crowd=row.is_thing and not instance)

        label = replace_values(values, label_of, pair.label)
        return AnnotatedImage(image.content, image.format, label, pair.name)
