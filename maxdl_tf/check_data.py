r"""Lists what is wrong in a data set, and what it is made of, before anything is trained on it.

maxdl-check-data coco_panoptic   images with COCO panoptic annotations, as they are
maxdl-check-data tfrecords       the shards that maxdl-convert wrote

Each has flags of its own: maxdl-check-data coco_panoptic --help. Give all splits at once, so that images of one that
are also in another are found. Every finding names file and segment and says what to do.

Exit status: 0 if there is no error (there may be warnings and notes), 1 if there is one, 2 if it could not check.

Example:
  maxdl-check-data coco_panoptic --image_dir coco/train2017 --annotation_file coco/panoptic_train2017.json \
      --image_dir coco/val2017 --annotation_file coco/panoptic_val2017.json --html report.html
"""

from __future__ import annotations

from collections.abc import Sequence

from maxdl_tf import command_line
from maxdl_tf.data_gen.checks import coco_command as check_coco_command
from maxdl_tf.data_gen.checks import records_command as check_records_command

CHECKS = {"coco_panoptic": check_coco_command, "tfrecords": check_records_command}


def main(argv: list[str]) -> int:
    """Called only where the first argument names no kind of data."""
    got = f"{argv[1]!r} is no kind of data that it knows" if len(argv) > 1 else "no kind of data named"
    raise command_line.choose_one_of(CHECKS, argv, got)


def run(argv: Sequence[str] | None = None) -> None:
    command_line.run_one_of(CHECKS, main, argv)


if __name__ == "__main__":
    run()
