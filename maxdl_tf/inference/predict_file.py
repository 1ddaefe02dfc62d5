"""From an image file to the files of its prediction."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from maxdl_tf.drawing import feature_picture
from maxdl_tf.errors import UserError
from maxdl_tf.files import images
from maxdl_tf.inference.prediction_writer import ImageRecord, PictureWriter
from maxdl_tf.inference.predictor import Prediction, Predictor
from maxdl_tf.inference.score_filter import drop_unsure_segments


class ImageTask(NamedTuple):
    """An image to predict.

    Attributes:
      path: Of its file.
      name: Of its outputs, without suffix; see `prediction_folder.output_names`.
      image_id: Its id in the JSON; see `prediction_folder.image_ids`.
    """

    path: str
    name: str
    image_id: int | str


class PredictedFile(NamedTuple):
    """What came of an image.

    Attributes:
      record: What the JSON files shall have of it.
      image: uint8 [h, w, 3].
      prediction: All that was seen.
      kept: What was written: without segments of a low score.
    """

    record: ImageRecord
    image: np.ndarray
    prediction: Prediction
    kept: Prediction


def predict_file(
    predictor: Predictor, task: ImageTask, pictures: PictureWriter, min_score: float, max_pixels: int, features: bool
) -> PredictedFile:
    """Predicts an image and writes its pictures.

    Args:
      predictor: Predicts.
      task: The image.
      pictures: Writes.
      min_score: Segments with a lower score become void.
      max_pixels: Images with more pixels are refused.
      features: Whether to draw features.

    Raises:
      UserError: The image cannot be read, is too large, or does not fit into the memory.
      OSError: The pictures cannot be written.
    """
    image = images.read_image(task.path, max_pixels)
    try:
        prediction = predictor(image)
    except tf.errors.ResourceExhaustedError as error:
        raise UserError(f"{task.path}: {image.shape[1]}x{image.shape[0]} pixels do not fit into the memory") from error
    void = predictor.dataset_info.void
    kept = drop_unsure_segments(prediction, min_score, void)
    record = pictures.write(task.name, task.image_id, os.path.basename(task.path), image, kept)
    if features:
        picture = feature_picture.feature_picture(image, *predictor.features(image), kept.label_map == void)
        pictures.write_features(task.name, picture)
    return PredictedFile(record, image, prediction, kept)
