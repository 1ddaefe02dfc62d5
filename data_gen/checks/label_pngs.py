r"""Checks a folder of images and a folder of label PNGs, as maxdl-convert label_pngs reads them.

The flags are those of the converter. Unlike the converter, which stops at the first fault, the check lists all faulty
images. The web page of --html shows whether classes and instances are read as intended. Check each split with its own
command. The check changes no file.

Exit status: 0 without errors (warnings and notes are possible), 1 with errors, 2 if the check could not run.

Example:
  maxdl-check-data label_pngs --image_dir fruit/train --label_dir fruit/train_labels --html report.html
"""

from __future__ import annotations

from absl import flags

from maxdl_tf import class_table
from maxdl_tf.data_gen import converter_flags, label_pngs
from maxdl_tf.data_gen.checks import command, converted

FLAGS = flags.FlagValues()
converter_flags.define_input_of(label_pngs.FLAGS, FLAGS)
_DATASET_INFO = flags.DEFINE_string(
    "dataset_info",
    None,
    "Class table of a split that was converted before: dataset_info.textproto in the folder of its shards.",
    flag_values=FLAGS,
)
command.define_flags(FLAGS)


def main(argv: list[str]) -> int:
    del argv
    options = command.read_flags(FLAGS)
    earlier = class_table.load(_DATASET_INFO.value) if _DATASET_INFO.value else None
    name = command.split_name(FLAGS.label_dir)
    conversion = label_pngs.read_input(earlier, name, processes=options.processes, skip_bad_input=True)
    return converted.check(name, conversion, options)
