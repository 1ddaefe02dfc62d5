r"""Writes data sets as TFRecord shards that the trainer reads.

maxdl-convert coco_panoptic   images with COCO panoptic annotations (a JSON file and a folder of PNGs)
maxdl-convert coco_instances  images with COCO instances annotations: polygons and RLE, and PNGs of stuff if there are
                              any
maxdl-convert label_pngs      a folder of images and a folder of label PNGs that are called like them
maxdl-convert cityscapes      Cityscapes as it is downloaded
maxdl-convert ade20k          ADE20K (ADEChallengeData2016 with its instances)
maxdl-convert image_folders   images in one folder for each class, to pretrain a backbone on
maxdl-convert shapes          a data set that it draws itself

Each has flags of its own: maxdl-convert coco_panoptic --help.

Example:
  maxdl-convert coco_panoptic --image_dir coco/val2017 --annotation_file coco/annotations/panoptic_val2017.json \
      --split val --output_dir coco_tfrecords
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from maxdl_tf import command_line
from maxdl_tf.data_gen import ade20k, cityscapes, coco_instances, coco_panoptic, image_folders, label_pngs, shapes
from maxdl_tf.errors import UserError

CONVERTERS = {
    "coco_panoptic": coco_panoptic,
    "coco_instances": coco_instances,
    "label_pngs": label_pngs,
    "cityscapes": cityscapes,
    "ade20k": ade20k,
    "image_folders": image_folders,
    "shapes": shapes,
}


def main(argv: list[str]) -> int:
    """Called only where the first argument names no converter."""
    program = Path(argv[0]).name
    got = f"{argv[1]!r} is not a data set that it knows" if len(argv) > 1 else "no data set named"
    choices = " or ".join(f"{program} {name}" for name in CONVERTERS)
    raise UserError(f"{got}; say {choices}, or {program} --help")


def run(argv: Sequence[str] | None = None) -> None:
    argv = list(sys.argv if argv is None else argv)
    if len(argv) > 1 and argv[1] in CONVERTERS:
        converter = CONVERTERS[argv[1]]
        command_line.run(converter.main, converter.FLAGS, [f"{argv[0]} {argv[1]}", *argv[2:]])
    else:
        command_line.run(main, flags.FlagValues(), argv, max_positional=len(argv))


if __name__ == "__main__":
    run()
