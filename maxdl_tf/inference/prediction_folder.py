"""The folder of predictions: what is in it, under which names, and when it may be written to.

panoptic.json          COCO panoptic annotations with each segment's score; written last
panoptic/NAME.png      segment ids as colors; 0 is void
overlays/NAME.jpg      the image under the colors of its segments, with a legend
features/NAME.png      if asked for: the image, pixel features and mask embeddings as colors
instances.json         if asked for: the things as a COCO results file, with RLE masks
diagnosis.json         if asked for: what became of the masks of each image
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from maxdl_tf.errors import UserError
from maxdl_tf.files import new_folder, storage

ANNOTATION_FILE = "panoptic.json"
INSTANCE_FILE = "instances.json"
DIAGNOSIS_FILE = "diagnosis.json"
PANOPTIC_FOLDER = "panoptic"
OVERLAY_FOLDER = "overlays"
FEATURE_FOLDER = "features"
_FILES = (ANNOTATION_FILE, INSTANCE_FILE, DIAGNOSIS_FILE)
_FOLDERS = (PANOPTIC_FOLDER, OVERLAY_FOLDER, FEATURE_FOLDER)
GENERATOR = "predicted by maxdl-predict"  # By which a folder is known as one of predictions.


def output_names(paths: Sequence[str]) -> list[str]:
    """The name of each image's outputs: its file's name without suffix.

    Raises:
      UserError: Two images would have the same outputs.
    """
    path_of_name: dict[str, str] = {}
    for path in paths:
        name = os.path.splitext(os.path.basename(path))[0]
        other = path_of_name.setdefault(name, path)
        if other != path:
            raise UserError(f"{other} and {path} would both be written to {name}.png; give each an --output of its own")
    return list(path_of_name)


def image_ids(names: Sequence[str]) -> list[int] | list[str]:
    """COCO's image ids: the numbers that the names are ("000000000139"), or the names if one is no number."""
    if all(name.isascii() and name.isdigit() for name in names):
        numbers = [int(name) for name in names]
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(names)


def check_output(output: str, overwrite: bool) -> None:
    """UserError if the output folder holds what must not be lost, or cannot be written to."""
    if not storage.is_remote(output):
        new_folder.check_can_be_made(output, f"--output {output}")
    present = {name for name in storage.list_folder(output) if not name.startswith(".")}
    foreign = present - {*_FILES, *_FOLDERS}
    if ANNOTATION_FILE in present and not _is_ours(os.path.join(output, ANNOTATION_FILE)):
        foreign.add(ANNOTATION_FILE)
    if foreign:
        raise UserError(
            f"--output {output} holds other things than predictions, such as {min(foreign)}; name a new or empty folder"
        )
    if present and not overwrite:
        raise UserError(f"--output {output} holds predictions already; name another folder or add --overwrite")


def prepare_output(output: str, folders: Sequence[str]) -> None:
    """Makes the folders, without earlier predictions, so that none of them is mixed with the new ones.

    Raises:
      OSError: They cannot be made.
    """
    for name in _FILES:
        if storage.exists(os.path.join(output, name)):
            storage.remove_file(os.path.join(output, name))
    for folder in _FOLDERS:
        if storage.is_folder(os.path.join(output, folder)):
            storage.remove_folder(os.path.join(output, folder))
    for folder in folders:
        storage.make_folder(os.path.join(output, folder))


def _is_ours(annotations: str) -> bool:
    return GENERATOR.encode() in storage.read_file(annotations, at_most=200)
