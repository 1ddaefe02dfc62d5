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

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from maxdl_tf import command_line
from maxdl_tf.data_gen import check_coco_command, check_records_command
from maxdl_tf.errors import UserError

CHECKS = {"coco_panoptic": check_coco_command, "tfrecords": check_records_command}


def main(argv: list[str]) -> int:
    """Called only where the first argument names no kind of data."""
    program = Path(argv[0]).name
    got = f"{argv[1]!r} is no kind of data that it knows" if len(argv) > 1 else "no kind of data named"
    choices = " or ".join(f"{program} {name}" for name in CHECKS)
    raise UserError(f"{got}; say {choices}, or {program} --help")


def run(argv: Sequence[str] | None = None) -> None:
    argv = list(sys.argv if argv is None else argv)
    if len(argv) > 1 and argv[1] in CHECKS:
        check = CHECKS[argv[1]]
        command_line.run(check.main, check.FLAGS, [f"{argv[0]} {argv[1]}", *argv[2:]])
    else:
        command_line.run(main, flags.FlagValues(), argv, max_positional=len(argv))


if __name__ == "__main__":
    run()
