r"""Reports faults and statistics of a data set before training.

maxdl-check-data coco_panoptic   images with COCO panoptic annotations
maxdl-check-data coco_instances  images with COCO instances annotations, as maxdl-convert coco_instances reads them
maxdl-check-data label_pngs      images and label PNGs, as maxdl-convert label_pngs reads them
maxdl-check-data tfrecords       shards of maxdl-convert

Each check has its own flags: maxdl-check-data coco_panoptic --help. coco_panoptic and tfrecords take all splits in one
run, so that images that occur in two splits are found. Each finding names the file and the segment and states the fix.

Exit status: 0 without errors (warnings and notes are possible), 1 with errors, 2 if the check could not run.

Example:
  maxdl-check-data coco_panoptic --image_dir coco/train2017 --annotation_file coco/panoptic_train2017.json \
      --image_dir coco/val2017 --annotation_file coco/panoptic_val2017.json --html report.html
"""

from __future__ import annotations

from collections.abc import Sequence

from maxdl_tf import command_line
from maxdl_tf.data_gen.checks import coco, coco_instances, label_pngs, records

CHECKS = {
    "coco_panoptic": coco,
    "coco_instances": coco_instances,
    "label_pngs": label_pngs,
    "tfrecords": records,
}


def main(argv: list[str]) -> int:
    """Reports a missing or unknown kind of data."""
    got = f"{argv[1]!r} is not a check" if len(argv) > 1 else "the name of a check is missing"
    raise command_line.choose_one_of(CHECKS, argv, got)


def run(argv: Sequence[str] | None = None) -> None:
    command_line.run_one_of(CHECKS, main, argv)


if __name__ == "__main__":
    run()
