"""The flags that all converters share: where shards go and how they are written."""

from __future__ import annotations

from absl import flags

from maxdl_tf import beam_pipeline
from maxdl_tf.data.examples import LABEL_FORMATS
from maxdl_tf.data_gen.shard_output import Output
from maxdl_tf.processes import available_processes


def define(flag_values: flags.FlagValues, label_maps: bool = True) -> None:
    """Adds the flags to a converter's own; without `label_maps` the one on their format is left out."""
    flags.DEFINE_string(
        "output_dir",
        None,
        "Folder of the shards and of dataset_info.textproto; gs:// and whatever tf.io.gfile reaches, too.",
        required=True,
        flag_values=flag_values,
    )
    flags.DEFINE_string("split", "train", "Shards are named SPLIT-00000-of-00008.tfrecord.", flag_values=flag_values)
    flags.DEFINE_integer(
        "num_shards", None, "Files to write; one for every 256 images if not given.", flag_values=flag_values
    )
    flags.DEFINE_integer(
        "processes", None, "Parallel processes; as many as there are cores if not given.", flag_values=flag_values
    )
    if label_maps:
        flags.DEFINE_enum(
            "label_format",
            "png",
            LABEL_FORMATS,
            "Coding of label maps: png is small, raw (int32) is what DeepLab2 reads.",
            flag_values=flag_values,
        )
    flags.DEFINE_enum(
        "on_error",
        "fail",
        ["fail", "skip"],
        "What bad input does: end the conversion and write nothing, or leave the image out and say so at the end.",
        flag_values=flag_values,
    )
    flags.DEFINE_boolean("overwrite", False, "Replace shards of the split that are there.", flag_values=flag_values)
    beam_pipeline.define_flags(flag_values, instead_of="--processes")


def read(flag_values: flags.FlagValues) -> Output:
    """The values of the flags.

    Raises:
      UserError: If they make no sense.
    """
    beam_pipeline.check_flags(flag_values)
    return Output(
        directory=flag_values.output_dir,
        split=flag_values.split,
        num_shards=flag_values.num_shards,
        processes=flag_values.processes or available_processes(),
        label_format=flag_values.label_format if "label_format" in flag_values else "png",
        skip_bad_input=flag_values.on_error == "skip",
        overwrite=flag_values.overwrite,
        runner=flag_values.runner,
        beam_options=tuple(flag_values.beam_options),
    )
