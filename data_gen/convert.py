r"""Converts a data set to TFRecord shards for training.

maxdl-convert coco_panoptic   images with COCO panoptic annotations (a JSON file and a folder of PNGs)
maxdl-convert coco_instances  images with COCO instances annotations (polygons and RLE), optionally with PNGs of stuff
maxdl-convert label_pngs      a folder of images and a folder of label PNGs with matching file names
maxdl-convert cityscapes      Cityscapes as downloaded
maxdl-convert ade20k          ADE20K (ADEChallengeData2016 with its instances)
maxdl-convert image_folders   classified images in one folder per class, to pretrain a backbone
maxdl-convert shapes          a data set that the command draws itself

Each converter has its own flags: maxdl-convert coco_panoptic --help.

Example:
  maxdl-convert coco_panoptic --image_dir coco/val2017 --annotation_file coco/annotations/panoptic_val2017.json \
      --split val --output_dir coco_tfrecords
"""

from __future__ import annotations

from collections.abc import Sequence

from maxdl_tf import command_line
from maxdl_tf.data_gen import ade20k, cityscapes, coco_instances, coco_panoptic, image_folders, label_pngs, shapes

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
    """Reports a missing or unknown converter."""
    got = f"{argv[1]!r} is not a converter" if len(argv) > 1 else "the name of a converter is missing"
    raise command_line.choose_one_of(CONVERTERS, argv, got)


def run(argv: Sequence[str] | None = None) -> None:
    command_line.run_one_of(CONVERTERS, main, argv)


if __name__ == "__main__":
    run()
