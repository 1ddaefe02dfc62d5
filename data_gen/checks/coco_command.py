r"""Lists what is wrong in images with COCO panoptic annotations: a JSON file, a folder of PNGs and one of images.

Of several splits, give --image_dir and --annotation_file once for each, in one order; images of one split that are in
another, too, are found by their pixels. Nothing is changed.

Exit status: 0 if there is no error (there may be warnings and notes), 1 if there is one, 2 if it could not check.

Example:
  maxdl-check-data coco_panoptic --image_dir coco/val2017 --annotation_file coco/panoptic_val2017.json \
      --html report.html
"""

from __future__ import annotations

import io
import os

import numpy as np
from absl import flags

from maxdl_tf import panoptic_ids
from maxdl_tf.data_gen.checks import coco as check_coco
from maxdl_tf.data_gen.checks import coco_image as check_coco_image
from maxdl_tf.data_gen.checks import flags as check_flags
from maxdl_tf.data_gen.checks import pictures as check_pictures
from maxdl_tf.data_gen.checks.findings import Split
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage

FLAGS = flags.FlagValues()
_IMAGE_DIR = flags.DEFINE_multi_string("image_dir", None, "Folder of the images.", required=True, flag_values=FLAGS)
_ANNOTATION_FILE = flags.DEFINE_multi_string(
    "annotation_file", None, "The JSON file, such as panoptic_train2017.json.", required=True, flag_values=FLAGS
)
_PANOPTIC_DIR = flags.DEFINE_multi_string(
    "panoptic_dir", [], "Folder of the PNGs; if not given, --annotation_file without .json.", flag_values=FLAGS
)
_LABEL_DIVISOR = flags.DEFINE_integer(
    "label_divisor",
    256,
    "With which the data will be converted: one more than the most instances of a class in an image.",
    lower_bound=2,
    flag_values=FLAGS,
)
check_flags.define(FLAGS)


def main(argv: list[str]) -> int:
    del argv
    options = check_flags.read(FLAGS)
    image_dirs, files, panoptic_dirs = _IMAGE_DIR.value, _ANNOTATION_FILE.value, _PANOPTIC_DIR.value
    if len(image_dirs) != len(files) or len(panoptic_dirs) not in (0, len(files)):
        raise UserError(
            f"{len(image_dirs)} --image_dir, {len(files)} --annotation_file and {len(panoptic_dirs)} --panoptic_dir; "
            "give one of each for each split (--panoptic_dir may be left out)"
        )
    sources = [check_coco.load_source(*paths) for paths in zip(image_dirs, files, panoptic_dirs or [None] * len(files))]
    if len({source.split for source in sources}) < len(sources):  # Splits of equal file names are told apart by paths.
        sources = [source._replace(split=source.annotation_file) for source in sources]
    splits, tasks_of_split = zip(*(check_coco.check_lists(source) for source in sources))
    splits[0].findings.extend(check_coco.categories_differ(sources, splits))
    splits[0].findings.extend(check_coco.files_not_listed(sources))
    for source, split, tasks in zip(sources, splits, tasks_of_split):
        checker = check_coco_image.CocoImageChecker(
            source.split,
            source.image_dir,
            source.panoptic_dir,
            split.categories,
            options.num_slots,
            _LABEL_DIVISOR.value,
        )
        label = f"checking {source.split}"
        split.images.extend(check_flags.check_all(label, checker, tasks, "images", options.processes))
    source_of = {source.split: source for source in sources}

    def load(split: Split, names: tuple[str, str | None]) -> tuple[np.ndarray | None, np.ndarray | None]:
        return load_image(source_of[split.name], *names)

    return check_flags.report("Check of " + ", ".join(source_of), list(splits), load, options)


def load_image(
    source: check_coco.Source, image_name: str, png_name: str | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Image, uint8 [h, w, 3], and segment ids, int [h, w]; None for what cannot be read."""
    from PIL import Image

    pixels = id_map = None
    try:
        content = storage.read_file(os.path.join(source.image_dir, image_name))
        pixels = check_pictures.inspect_image(content).pixels
    except UserError:
        pass
    try:
        if png_name is not None:
            with Image.open(io.BytesIO(storage.read_file(os.path.join(source.panoptic_dir, png_name)))) as png:
                id_map = panoptic_ids.color_to_id(np.asarray(png.convert("RGB")))
    except Exception:  # What is wrong with it has been found before.
        pass
    return pixels, id_map
