r"""Checks images with annotations in the COCO instances format, as maxdl-convert coco_instances reads them.

The flags are those of the converter. Unlike the converter, which stops at the first fault, the check lists all faulty
images. The web page of --html shows which object gets the pixels of several objects. Check each split with its own
command. The check changes no file.

Exit status: 0 without errors (warnings and notes are possible), 1 with errors, 2 if the check could not run.

Example:
  maxdl-check-data coco_instances --image_dir coco/val2017 --annotation_file coco/annotations/instances_val2017.json \
      --background background --html report.html
"""

from __future__ import annotations

from absl import flags

from maxdl_tf.data_gen import coco_instances, converter_flags
from maxdl_tf.data_gen.checks import command, converted

FLAGS = flags.FlagValues()
converter_flags.define_input_of(coco_instances.FLAGS, FLAGS)
command.define_flags(FLAGS)


def main(argv: list[str]) -> int:
    del argv
    options = command.read_flags(FLAGS)
    name = command.split_name(FLAGS.annotation_file)
    return converted.check(name, coco_instances.read_input(name), options)
