"""The folder of predictions and the files in it. Needs no TensorFlow.

panoptic.json          COCO panoptic annotations with the score of each segment; written last
panoptic/NAME.png      segment ids as colors; 0 is void
overlays/NAME.jpg      the image under the colors of its segments, with a legend
features/NAME.png      on request: the image, pixel features and mask embeddings as colors
instances.json         on request: the things as a COCO results file, with RLE masks
diagnosis.json         on request: the masks and pixels that each threshold removed
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.drawing import label_maps
from maxdl_tf.errors import UserError
from maxdl_tf.files import folder_lock, images, new_folder, storage
from maxdl_tf.inference import prediction as predictions
from maxdl_tf.inference.prediction import Prediction

ANNOTATION_FILE = "panoptic.json"
INSTANCE_FILE = "instances.json"
DIAGNOSIS_FILE = "diagnosis.json"
PANOPTIC_FOLDER = "panoptic"
OVERLAY_FOLDER = "overlays"
FEATURE_FOLDER = "features"
_FILES = (ANNOTATION_FILE, INSTANCE_FILE, DIAGNOSIS_FILE)
_FOLDERS = (PANOPTIC_FOLDER, OVERLAY_FOLDER, FEATURE_FOLDER)
_UNFINISHED = ".maxdl_unfinished"  # Marks a folder of predictions until panoptic.json does.
_LONGEST_NAME = 251  # Bytes: file systems allow 255 with the suffix.
GENERATOR = "predicted by maxdl-predict"  # Marks a folder of predictions.


def output_names(paths: Sequence[str]) -> list[str]:
    """The names of the outputs of image files: the file names without suffix, cut to leave place for another suffix.

    Raises:
      UserError: Two images would have the same outputs.
    """
    path_of_name: dict[str, str] = {}
    for path in paths:
        name = os.path.splitext(os.path.basename(path))[0]
        name = os.fsdecode(os.fsencode(name)[:_LONGEST_NAME])
        other = path_of_name.setdefault(name, path)
        if other != path:
            raise UserError(f"{other} and {path} would both be written to {name}.png; use a separate --output for each")
    return list(path_of_name)


def image_ids(names: Sequence[str]) -> list[int] | list[str]:
    """COCO image ids: numbers ("000000000139" is 139) if all names are distinct numbers, else the names."""
    if all(name.isascii() and name.isdigit() for name in names):
        numbers = [int(name) for name in names]
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(names)


@contextmanager
def locked_output(output: str, overwrite: bool) -> Iterator[None]:
    """Keeps other processes from predicting into a folder.

    Raises:
      UserError: Another process does so, or the folder holds files that must not be lost or cannot be written to.
    """
    if not storage.is_remote(output):
        new_folder.check_can_be_made(output, f"--output {output}")
    with folder_lock.FolderLock(output, f"--output {output}"):
        _check_output(output, overwrite)
        yield


def _check_output(output: str, overwrite: bool) -> None:
    present = {name for name in storage.list_folder(output) if not name.startswith(".")}
    foreign = present - {*_FILES, *_FOLDERS}
    if ANNOTATION_FILE in present and not _is_ours(os.path.join(output, ANNOTATION_FILE)):
        foreign.add(ANNOTATION_FILE)
    if ANNOTATION_FILE not in present and not storage.exists(os.path.join(output, _UNFINISHED)):
        foreign |= present & set(_FOLDERS)
    for folder in present & set(_FOLDERS):
        names = storage.list_folder(os.path.join(output, folder))
        foreign.update(f"{folder}/{name}" for name in names if not name.endswith((".png", ".jpg", ".partial")))
    if foreign:
        raise UserError(
            f"--output {output} holds files other than predictions, such as {min(foreign)}; name a new or empty folder"
        )
    if present and not overwrite:
        raise UserError(f"--output {output} already holds predictions; name another folder or add --overwrite")


def prepare_output(output: str, folders: Sequence[str]) -> None:
    """Creates the folders and removes earlier predictions, so that old and new ones do not mix.

    Raises:
      OSError: They cannot be created.
    """
    storage.make_folder(output)
    storage.write_file(os.path.join(output, _UNFINISHED), b"")
    storage.remove_partial_files(output)
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


class ImageRecord(NamedTuple):
    """Entries of one image in the JSON files, as JSON values.

    Attributes:
      image: Entry of `images` in panoptic.json.
      annotation: Entry of `annotations`.
      instances: Entries of instances.json; None if that file is not written.
    """

    image: dict
    annotation: dict
    instances: list[dict] | None


class PictureWriter:
    """Writes the pictures of each prediction and returns its entries for the JSON files.

    Args:
      output: Folder of the predictions; the folders of pictures exist in it.
      dataset_info: Class table of the predictions.
      overlays: Whether to draw overlays.
      coco_instances: Whether instances.json will be written.

    Raises:
      OSError: A method cannot write a picture.
    """

    def __init__(self, output: str, dataset_info: DatasetInfo, *, overlays: bool = True, coco_instances: bool = False):
        self._output = output
        self._info = dataset_info
        self._overlays = overlays
        self._coco_instances = coco_instances

    def write(self, name: str, image_id: int | str, file_name: str, prediction: Prediction) -> ImageRecord:
        """Writes the pictures of one prediction; see `PredictionWriter.write` for the arguments."""
        png = f"{name}.png"
        self._write_picture(PANOPTIC_FOLDER, png, predictions.coco_picture(prediction.label_map, self._info))
        if self._overlays:
            picture = label_maps.panoptic_picture(prediction.image, prediction.label_map, self._info)
            picture = label_maps.with_legend(picture, prediction.label_map, self._info)
            self._write_picture(OVERLAY_FOLDER, f"{name}.jpg", picture)
        height, width = prediction.label_map.shape
        segments_info = predictions.coco_segments_info(prediction.segments, self._info)
        return ImageRecord(
            {"id": image_id, "file_name": file_name, "height": height, "width": width},
            {"image_id": image_id, "file_name": png, "segments_info": segments_info},
            predictions.to_coco_instances(prediction, image_id) if self._coco_instances else None,
        )

    def write_features(self, name: str, picture: np.ndarray) -> None:
        """Writes the feature picture, uint8 [h, w, 3], of one image."""
        self._write_picture(FEATURE_FOLDER, f"{name}.png", picture)

    def _write_picture(self, folder: str, file_name: str, pixels: np.ndarray) -> None:
        images.write_image(os.path.join(self._output, folder, file_name), pixels)


class PredictionWriter:
    """Writes predictions into a folder, one at a time.

    Only `finish` writes the JSON files, so a folder without panoptic.json is incomplete.

    Example:
      writer = PredictionWriter("predictions", dataset_info)
      writer.write("000000000139", 139, "000000000139.jpg", prediction)
      writer.finish()

    Args:
      output: Folder of the predictions; earlier predictions in it are removed.
      dataset_info: Class table of the predictions.
      overlays: Whether to draw overlays.
      features: Whether feature pictures will be written.
      coco_instances: Whether to write instances.json.

    Attributes:
      pictures: Writes only pictures, in this process or in others. `add` takes the records that it returns.

    Raises:
      OSError: The constructor or a method cannot write to the folder.
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
        self.pictures = PictureWriter(output, dataset_info, overlays=overlays, coco_instances=coco_instances)
        self._coco = {
            "info": {"description": f"{GENERATOR}; classes of {dataset_info.name}"},
            "images": [],
            "annotations": [],
            "categories": predictions.coco_categories(dataset_info),
        }
        self._instances: list[dict] | None = [] if coco_instances else None
        prepare_output(output, [PANOPTIC_FOLDER] + [OVERLAY_FOLDER] * overlays + [FEATURE_FOLDER] * features)

    def write(self, name: str, image_id: int | str, file_name: str, prediction: Prediction) -> None:
        """Writes the pictures of one prediction and keeps its entries for the JSON files.

        Args:
          name: Name of its files without suffix; see `output_names`.
          image_id: Id of the image in the JSON files; see `image_ids`.
          file_name: File name of the image in the JSON files.
          prediction: Prediction of the image.
        """
        self.add(self.pictures.write(name, image_id, file_name, prediction))

    def add(self, record: ImageRecord) -> None:
        """Keeps the entries of an image whose pictures are already written."""
        self._coco["images"].append(record.image)
        self._coco["annotations"].append(record.annotation)
        if self._instances is not None:
            self._instances += record.instances

    def finish(self, diagnosis: dict | None = None) -> None:
        """Writes the JSON files; `diagnosis` is the content of diagnosis.json."""
        if diagnosis is not None:
            _write_json(os.path.join(self._output, DIAGNOSIS_FILE), diagnosis)
        if self._instances is not None:
            _write_json(os.path.join(self._output, INSTANCE_FILE), self._instances)
        _write_json(os.path.join(self._output, ANNOTATION_FILE), self._coco)
        storage.remove_file(os.path.join(self._output, _UNFINISHED))


def _write_json(path: str, content: Any) -> None:
    # A file name may contain bytes that are not text; they are written as escapes.
    text = json.dumps(content, ensure_ascii=False).encode("utf-8", errors="backslashreplace")
    storage.write_whole(path, text)
