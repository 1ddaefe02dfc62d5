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
    """Called only where the first argument names no converter."""
    got = f"{argv[1]!r} is not a data set that it knows" if len(argv) > 1 else "no data set named"
    raise command_line.choose_one_of(CONVERTERS, argv, got)


def run(argv: Sequence[str] | None = None) -> None:
    command_line.run_one_of(CONVERTERS, main, argv)


if __name__ == "__main__":
    run()
