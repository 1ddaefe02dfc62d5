"""Flags that several converters share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from absl import flags

from maxdl_tf import beam_pipeline, class_table
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data.examples import LABEL_FORMATS
from maxdl_tf.data_gen.shard_output import Output
from maxdl_tf.errors import UserError
from maxdl_tf.files.intensity import IntensityRule
from maxdl_tf.processes import available_processes


def define_output(flag_values: flags.FlagValues, label_maps: bool = True) -> None:
    """Adds the flags of the output; `label_maps` adds the flag of their format."""
    flags.DEFINE_string(
        "output_dir",
        None,
        "Folder for the shards and dataset_info.textproto: local, gs:// or any path of tf.io.gfile.",
        required=True,
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "split", "train", "Name of the split; shards are named SPLIT-00000-of-00008.tfrecord.", flag_values=flag_values
    )
    flags.DEFINE_integer(
        "num_shards", None, "Number of shards; one per 256 images if not given.", flag_values=flag_values
    )
    flags.DEFINE_integer(
        "processes", None, "Number of parallel processes; the number of cores if not given.", flag_values=flag_values
    )
    if label_maps:
        flags.DEFINE_enum(
            "label_format",
            "png",
            LABEL_FORMATS,
            "Format of label maps: png is small; raw (int32) is readable by DeepLab2.",
            flag_values=flag_values,
        )
    flags.DEFINE_enum(
        "on_error",
        "fail",
        ["fail", "skip"],
        "Reaction to bad input: fail stops the conversion and writes nothing; skip skips the image and lists it at the "
        "end.",
        flag_values=flag_values,
    )
    flags.DEFINE_boolean(
        "overwrite", False, "Whether to replace existing shards of the split.", flag_values=flag_values
    )
    beam_pipeline.define_flags(flag_values, instead_of="--processes")


def read_output(flag_values: flags.FlagValues) -> Output:
    """Returns the values of the output flags.

    Raises:
      UserError: The values do not fit together.
    """
    beam_pipeline.check_flags(flag_values)
    if "intensity" in flag_values:
        read_intensity(flag_values["intensity"])  # Before the long search for classes.
    return Output(
        directory=flag_values.output_dir,
        split=flag_values.split,
        num_shards=flag_values.num_shards,
        processes=available_processes() if flag_values.processes is None else flag_values.processes,
        label_format=flag_values.label_format if "label_format" in flag_values else "png",
        skip_bad_input=flag_values.on_error == "skip",
        overwrite=flag_values.overwrite,
        runner=flag_values.runner,
        beam_options=tuple(flag_values.beam_options),
    )


def define_image_dir(flag_values: flags.FlagValues, text: str = "Folder of the images.") -> flags.FlagHolder[str]:
    return flags.DEFINE_string("image_dir", None, text, required=True, flag_values=flag_values)


def define_intensity(flag_values: flags.FlagValues) -> flags.FlagHolder[str | None]:
    return flags.DEFINE_string(
        "intensity",
        None,
        "How image values of more than 8 bits become 0..255: 'range { low: 0 high: 4095 }' for a camera of 12 bits, or "
        "'percentiles { low: 0.3 high: 99.7 }' of each image. It becomes part of the class table. Default: the rule of "
        "an existing class table.",
        flag_values=flag_values,
    )


def read_intensity(flag: flags.FlagHolder[str | None]) -> IntensityRule | None:
    """Returns the rule of --intensity; None without the flag.

    Raises:
      UserError: The text is not a rule.
    """
    return class_table.parse_intensity(flag.value, f"--intensity {flag.value!r}") if flag.value else None


def with_intensity(
    info: DatasetInfo, flag: flags.FlagHolder[str | None], earlier: DatasetInfo | None = None
) -> DatasetInfo:
    """Returns a class table with the rule of --intensity, or else its own, or that of an earlier split.

    Raises:
      UserError: The text of the flag is not a rule.
    """
    rule = read_intensity(flag) or info.intensity or (earlier and earlier.intensity)
    return dataclasses.replace(info, intensity=rule)


def define_dataset_name(flag_values: flags.FlagValues) -> flags.FlagHolder[str | None]:
    return flags.DEFINE_string(
        "dataset_name",
        None,
        "Name of the data set in the class table; the name of --output_dir if not given.",
        flag_values=flag_values,
    )


def define_label_divisor(flag_values: flags.FlagValues, text: str = "") -> flags.FlagHolder[int]:
    """Adds --label_divisor; `text` precedes its description."""
    text += "Label divisor of the class table: more than the largest number of instances of a class in an image."
    return flags.DEFINE_integer("label_divisor", 256, text, lower_bound=2, flag_values=flag_values)


def define_treat_crowd_as_ignore(flag_values: flags.FlagValues, crowds: str = "crowds") -> flags.FlagHolder[bool]:
    """Adds --treat_crowd_as_ignore; `crowds` is the data set's expression for crowds."""
    return flags.DEFINE_boolean(
        "treat_crowd_as_ignore",
        True,
        f"Whether {crowds} become void; otherwise they are instance 0 of their class.",
        flag_values=flag_values,
    )


def define_void_values(flag_values: flags.FlagValues, default: Sequence[str], text: str) -> flags.FlagHolder[list[str]]:
    return flags.DEFINE_list("void_values", list(default), text, flag_values=flag_values)


def define_background(flag_values: flags.FlagValues, pixels: str) -> flags.FlagHolder[str | None]:
    """Adds --background; `pixels` describes the pixels of the class."""
    return flags.DEFINE_string("background", None, f"Name of a class of stuff for {pixels}", flag_values=flag_values)


def define_input_of(converter: flags.FlagValues, flag_values: flags.FlagValues) -> None:
    """Adds the flags of a converter except those of its output; after parsing, the converter has their values."""
    output = flags.FlagValues()
    define_output(output)
    define_dataset_name(output)
    for name in set(converter) - set(output):
        flag_values[name] = converter[name]
    converter.mark_as_parsed()


def read_void_values(flag: flags.FlagHolder[list[str]]) -> frozenset[int]:
    """Returns the numbers of --void_values.

    Raises:
      UserError: A value is not a number.
    """
    try:
        return frozenset(int(value) for value in flag.value if value.strip())
    except ValueError:
        raise UserError(f"--void_values={','.join(flag.value)}: must be numbers, such as 0,255") from None
