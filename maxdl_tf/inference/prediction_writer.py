"""Writes predictions as files; `prediction_folder` says which."""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

import numpy as np

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.drawing import label_maps
from maxdl_tf.files import images, storage
from maxdl_tf.inference import adapters, segments
from maxdl_tf.inference.prediction_folder import (
    ANNOTATION_FILE,
    DIAGNOSIS_FILE,
    FEATURE_FOLDER,
    GENERATOR,
    INSTANCE_FILE,
    OVERLAY_FOLDER,
    PANOPTIC_FOLDER,
    prepare_output,
)
from maxdl_tf.inference.predictor import Prediction


class ImageRecord(NamedTuple):
    """What the JSON files say of one image; made of what JSON can hold.

    Attributes:
      image: Entry of `images` in panoptic.json.
      annotation: Entry of `annotations`.
      instances: Entries of instances.json; None if there will be none.
    """

    image: dict
    annotation: dict
    instances: list[dict] | None


class PictureWriter:
    """Writes what each prediction has of its own, and says what the JSON files shall have of it.

    Args:
      output: The folder; those for the pictures are in it.
      dataset_info: Class table of the predictions.
      overlays: Whether to draw overlays.
      coco_instances: Whether there will be an instances.json.

    Raises:
      OSError: From the methods: a picture cannot be written.
    """

    def __init__(self, output: str, dataset_info: DatasetInfo, *, overlays: bool = True, coco_instances: bool = False):
        self._output = output
        self._info = dataset_info
        self._overlays = overlays
        self._coco_instances = coco_instances

    def write(
        self, name: str, image_id: int | str, file_name: str, image: np.ndarray, prediction: Prediction
    ) -> ImageRecord:
        """Writes what was seen in one image; as `PredictionWriter.write`."""
        png = f"{name}.png"
        self._write_picture(PANOPTIC_FOLDER, png, segments.coco_picture(prediction.label_map, self._info))
        if self._overlays:
            picture = label_maps.panoptic_picture(image, prediction.label_map, self._info)
            picture = label_maps.with_legend(picture, prediction.label_map, self._info)
            self._write_picture(OVERLAY_FOLDER, f"{name}.jpg", picture)
        height, width = prediction.label_map.shape
        segments_info = segments.coco_segments_info(prediction.segments, self._info)
        return ImageRecord(
            {"id": image_id, "file_name": file_name, "height": height, "width": width},
            {"image_id": image_id, "file_name": png, "segments_info": segments_info},
            adapters.to_coco_instances(prediction, image_id, self._info) if self._coco_instances else None,
        )

    def write_features(self, name: str, picture: np.ndarray) -> None:
        """Writes the feature picture, uint8 [h, w, 3], of one image."""
        self._write_picture(FEATURE_FOLDER, f"{name}.png", picture)

    def _write_picture(self, folder: str, file_name: str, pixels: np.ndarray) -> None:
        images.write_image(os.path.join(self._output, folder, file_name), pixels)


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

    Attributes:
      pictures: Writes the pictures alone, here or in other processes, whose records `add` takes.

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
        self.pictures = PictureWriter(output, dataset_info, overlays=overlays, coco_instances=coco_instances)
        self._coco = {
            "info": {"description": f"{GENERATOR}; classes of {dataset_info.name}"},
            "images": [],
            "annotations": [],
            "categories": segments.coco_categories(dataset_info),
        }
        self._instances: list[dict] | None = [] if coco_instances else None
        prepare_output(output, [PANOPTIC_FOLDER] + [OVERLAY_FOLDER] * overlays + [FEATURE_FOLDER] * features)

    def write(self, name: str, image_id: int | str, file_name: str, image: np.ndarray, prediction: Prediction) -> None:
        """Writes what was seen in one image.

        Args:
          name: Of its files, without suffix; see `output_names`.
          image_id: Its id in the JSON; see `image_ids`.
          file_name: Of the image, for the JSON.
          image: uint8 [h, w, 3], RGB.
          prediction: Its label map is int [h, w].
        """
        self.add(self.pictures.write(name, image_id, file_name, image, prediction))

    def add(self, record: ImageRecord) -> None:
        """Takes what the JSON files shall have of an image whose pictures are written."""
        self._coco["images"].append(record.image)
        self._coco["annotations"].append(record.annotation)
        if self._instances is not None:
            self._instances += record.instances

    def finish(self, diagnosis: dict | None = None) -> None:
        """Writes the JSON files."""
        if diagnosis is not None:
            _write_json(os.path.join(self._output, DIAGNOSIS_FILE), diagnosis)
        if self._instances is not None:
            _write_json(os.path.join(self._output, INSTANCE_FILE), self._instances)
        _write_json(os.path.join(self._output, ANNOTATION_FILE), self._coco)


def _write_json(path: str, content: Any) -> None:
    # A file's name need not be text; the bytes that are not are written as JSON's escapes.
    text = json.dumps(content, ensure_ascii=False).encode("utf-8", errors="backslashreplace")
    storage.write_whole(path, text)
