"""Predictions as files.

    panoptic.json          COCO panoptic annotations with each segment's score; written last
    panoptic/NAME.png      segment ids as colors; 0 is void
    overlays/NAME.jpg      the image under the colors of its segments, with a legend
    features/NAME.png      if asked for: the image, pixel features and mask embeddings as colors
    instances.json         if asked for: the things as a COCO results file, with RLE masks
    diagnosis.json         if asked for: what became of the masks of each image
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np

from maxdl_tf.errors import UserError
from maxdl_tf.inference import adapters, images, segments, visualize
from maxdl_tf.inference.predictor import Prediction
from maxdl_tf.structs import DatasetInfo

ANNOTATION_FILE = "panoptic.json"
INSTANCE_FILE = "instances.json"
DIAGNOSIS_FILE = "diagnosis.json"
PANOPTIC_FOLDER = "panoptic"
OVERLAY_FOLDER = "overlays"
FEATURE_FOLDER = "features"
_FILES = (ANNOTATION_FILE, INSTANCE_FILE, DIAGNOSIS_FILE)
_FOLDERS = (PANOPTIC_FOLDER, OVERLAY_FOLDER, FEATURE_FOLDER)
_GENERATOR = "predicted by maxdl-predict"


class PredictionWriter:
    """Writes one prediction after the other into a folder.

        writer = PredictionWriter("predictions", dataset_info)
        writer.write("000000000139", 139, "000000000139.jpg", image, prediction)
        writer.finish()

    Only `finish` writes the JSON files: a folder without panoptic.json is one that was not finished.

    Args:
      output: The folder; earlier predictions in it are removed, so that none is mixed with the new ones.
      dataset_info: Class table of the predictions.
      overlays: Whether to draw overlays.
      features: Whether there will be feature pictures.
      coco_instances: Whether to write instances.json.

    Raises:
      OSError: The folder cannot be written to; from the methods, too.
    """

    def __init__(
        self,
        output: str,
        dataset_info: DatasetInfo,
        *,
        overlays: bool = True,
        features: bool = False,
        coco_instances: bool = False,
    ):
        self._output = output
        self._info = dataset_info
        self._overlays = overlays
        self._coco = {
            "info": {"description": f"{_GENERATOR}; classes of {dataset_info.name}"},
            "images": [],
            "annotations": [],
            "categories": segments.coco_categories(dataset_info),
        }
        self._instances: list[dict] | None = [] if coco_instances else None
        _prepare(output, [PANOPTIC_FOLDER] + [OVERLAY_FOLDER] * overlays + [FEATURE_FOLDER] * features)

    def write(self, name: str, image_id: int | str, file_name: str, image: np.ndarray, prediction: Prediction) -> None:
        """Writes what was seen in one image.

        Args:
          name: Of its files, without suffix; see `output_names`.
          image_id: Its id in the JSON; see `image_ids`.
          file_name: Of the image, for the JSON.
          image: uint8 [h, w, 3], RGB.
          prediction: Its label map is int [h, w].
        """
        png = f"{name}.png"
        self._write_picture(PANOPTIC_FOLDER, png, segments.coco_picture(prediction.label_map, self._info))
        if self._overlays:
            picture = visualize.panoptic_picture(image, prediction.label_map, self._info)
            picture = visualize.with_legend(picture, prediction.label_map, self._info)
            self._write_picture(OVERLAY_FOLDER, f"{name}.jpg", picture)
        height, width = prediction.label_map.shape
        self._coco["images"].append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        segments_info = segments.coco_segments_info(prediction.segments, self._info)
        self._coco["annotations"].append({"image_id": image_id, "file_name": png, "segments_info": segments_info})
        if self._instances is not None:
            self._instances += adapters.to_coco_instances(prediction, image_id, self._info)

    def write_features(self, name: str, picture: np.ndarray) -> None:
        """Writes the feature picture, uint8 [h, w, 3], of one image."""
        self._write_picture(FEATURE_FOLDER, f"{name}.png", picture)

    def finish(self, diagnosis: dict | None = None) -> None:
        """Writes the JSON files."""
        if diagnosis is not None:
            _write_json(os.path.join(self._output, DIAGNOSIS_FILE), diagnosis)
        if self._instances is not None:
            _write_json(os.path.join(self._output, INSTANCE_FILE), self._instances)
        _write_json(os.path.join(self._output, ANNOTATION_FILE), self._coco)

    def _write_picture(self, folder: str, file_name: str, pixels: np.ndarray) -> None:
        images.write_image(os.path.join(self._output, folder, file_name), pixels)


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
    existing = os.path.abspath(output)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--output {output}: {existing} is not a folder that can be written to; name another one")
    if not os.path.isdir(output):
        return
    present = {name for name in os.listdir(output) if not name.startswith(".")}
    foreign = present - {*_FILES, *_FOLDERS}
    if ANNOTATION_FILE in present and not _is_ours(os.path.join(output, ANNOTATION_FILE)):
        foreign.add(ANNOTATION_FILE)
    if foreign:
        raise UserError(
            f"--output {output} holds other things than predictions, such as {min(foreign)}; name a new or empty folder"
        )
    if present and not overwrite:
        raise UserError(f"--output {output} holds predictions already; name another folder or add --overwrite")


def _is_ours(annotations: str) -> bool:
    try:
        with open(annotations, encoding="utf-8", errors="replace") as file:
            return _GENERATOR in file.read(200)
    except OSError as error:
        raise UserError(f"{annotations}: {error.strerror}") from error


def _prepare(output: str, folders: Sequence[str]) -> None:
    for name in _FILES:
        if os.path.exists(os.path.join(output, name)):
            os.unlink(os.path.join(output, name))
    for folder in _FOLDERS:
        if os.path.isdir(os.path.join(output, folder)):
            shutil.rmtree(os.path.join(output, folder))
    for folder in folders:
        os.makedirs(os.path.join(output, folder))


def _write_json(path: str, content: Any) -> None:
    temporary = f"{path}.partial"
    # A file's name need not be text; the bytes that are not are written as JSON's escapes.
    with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
        json.dump(content, file, ensure_ascii=False)
    os.replace(temporary, path)
