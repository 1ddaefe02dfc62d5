"""Time and memory of the prediction of an image file, and the parts of that time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from maxdl_tf import process_memory
from maxdl_tf.data import transforms
from maxdl_tf.files import images
from maxdl_tf.inference import prediction as predictions
from maxdl_tf.inference.prediction import Prediction
from maxdl_tf.inference.predictor import Predictor
from maxdl_tf.inference.segmenter import ImageSegmenter
from maxdl_tf.models.network import PanopticNetwork


class PredictTimes(NamedTuple):
    """Measurements. Times are medians over all images and rounds, which one slow image does not move.

    Attributes:
      end_to_end_seconds: Time from the file to the panoptic map, its segments and the PNG, measured as a whole.
      part_seconds: Times of "decode" (the file), "preprocess" (resize, pad), "forward" (the network), "postprocess"
        (map and segments at the image's size) and "encode" (writing a COCO panoptic PNG). In an export the second and
        third are one function, "network"; "postprocess" is the time that the whole model takes beyond it.
      first_prediction_seconds: Time of the first image, including tracing and optimizing.
      peak_memory_bytes: Largest memory of the process before the parts were measured, including Python and TensorFlow,
        excluding GPUs.
      gpu_peak_memory_bytes: Largest memory of the first GPU. None: there is no GPU.
    """

    end_to_end_seconds: float
    part_seconds: dict[str, float]
    first_prediction_seconds: float
    peak_memory_bytes: int
    gpu_peak_memory_bytes: int | None


def measure_model(
    predictor: Predictor,
    model: PanopticNetwork,
    crop_size: tuple[int, int],
    paths: Sequence[str],
    *,
    folder: str,
    rounds: int,
) -> PredictTimes:
    """Times a model in memory.

    Args:
      predictor: Predictor from `Predictor.from_model`.
      model: Model of the predictor.
      crop_size: (height, width) of the model's input.
      paths: Paths of the image files.
      folder: Folder for PNGs.
      rounds: Number of timed predictions of each image, after one that is not timed.
    """
    first, peaks = _first_use(predictor, paths, folder)
    segmenter = ImageSegmenter(model, predictor.postprocessor, crop_size)

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)], autograph=False)
    def preprocess(image):
        return transforms.evaluation_transform(image, crop_size, predictor.postprocessor.enlarge)[0][tf.newaxis]

    @tf.function(autograph=False)
    def forward(padded):
        # Without the outputs that only pictures need, as in a prediction.
        return model(padded, training=False)._replace(semantic_logits=None, pixel_feature=None, mask_embedding=None)

    @tf.function(autograph=False)
    def postprocess(outputs, size):
        return segmenter.segment_outputs(outputs, size)[:2]

    pixels = [tf.constant(_read(predictor, path)) for path in paths]
    padded = [preprocess(image) for image in pixels]
    outputs = [forward(image) for image in padded]
    parts = {
        "preprocess": lambda i: preprocess(pixels[i]),
        "forward": lambda i: forward(padded[i]),
        "postprocess": lambda i: postprocess(outputs[i], tf.shape(pixels[i])[:2]),
    }
    whole, seconds = _medians(predictor, paths, folder, parts, rounds)
    return PredictTimes(whole, seconds, first, *peaks)


def measure_export(predictor: Predictor, paths: Sequence[str], *, folder: str, rounds: int) -> PredictTimes:
    """Times an export; see `measure_model` for the arguments."""
    first, peaks = _first_use(predictor, paths, folder)
    pixels = [_read(predictor, path) for path in paths]
    parts = {
        "network": lambda i: predictor.network_outputs(pixels[i]),
        "postprocess": lambda i: predictor(pixels[i]),
    }
    whole, seconds = _medians(predictor, paths, folder, parts, rounds)
    seconds["postprocess"] = max(seconds["postprocess"] - seconds["network"], 0.0)
    return PredictTimes(whole, seconds, first, *peaks)


def draw_images(folder: str, crop_size: tuple[int, int], count: int = 4) -> list[str]:
    """Writes JPEG files of soft blobs: one of the crop's size, then larger and oblong ones. Returns their paths."""
    shapes = ((1.0, 1.0), (1.5, 2.0), (2.0, 1.5), (0.75, 1.0))
    paths = []
    for number in range(count):
        height, width = (max(1, round(side * by)) for side, by in zip(crop_size, shapes[number % len(shapes)]))
        generator = np.random.default_rng(number)
        blobs = tf.image.resize(generator.uniform(0, 255, [9, 12, 3]), [height, width], "bicubic").numpy()
        pixels = np.clip(blobs + generator.normal(0, 8, blobs.shape), 0, 255).astype(np.uint8)
        paths.append(os.path.join(folder, f"drawn_{number}.jpg"))
        images.write_image(paths[-1], pixels)
    return paths


def device() -> str:
    """Kind of the device that runs the network: "GPU" or "CPU"."""
    return "GPU" if tf.config.list_logical_devices("GPU") else "CPU"


def _read(predictor: Predictor, path: str) -> np.ndarray:
    return images.read_image(path, intensity=predictor.dataset_info.intensity)


def _first_use(predictor: Predictor, paths: Sequence[str], folder: str) -> tuple[float, tuple[int, int | None]]:
    """Seconds of the first prediction, and the peaks of memory after one prediction of each image."""
    start = time.monotonic()
    predictor(_read(predictor, paths[0]))
    seconds = time.monotonic() - start
    for path in paths:
        _encode(predictor, folder, predictor(_read(predictor, path)))
    peak = process_memory.peak_bytes()
    on_gpu = tf.config.experimental.get_memory_info("GPU:0")["peak"] if device() == "GPU" else None
    return seconds, (peak, on_gpu)


def _medians(
    predictor: Predictor, paths: Sequence[str], folder: str, parts: dict[str, Callable[[int], Any]], rounds: int
) -> tuple[float, dict[str, float]]:
    """Median seconds of a whole prediction, and of decoding, encoding and `parts`, functions of an image's index.

    They take turns, image by image, so that other load on the machine affects all of them alike.
    """
    predictions = [predictor(_read(predictor, path)) for path in paths]
    functions = {
        "whole": lambda i: _encode(predictor, folder, predictor(_read(predictor, paths[i]))),
        "decode": lambda i: _read(predictor, paths[i]),
        **parts,
        "encode": lambda i: _encode(predictor, folder, predictions[i]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for rounds_done in range(-1, rounds):
        for place in range(len(paths)):
            for name, function in functions.items():
                start = time.monotonic()
                for result in tf.nest.flatten(function(place)):
                    if isinstance(result, tf.Tensor):
                        result.numpy()  # Waits for a GPU.
                if rounds_done >= 0:
                    seconds[name].append(time.monotonic() - start)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return medians.pop("whole"), medians


def _encode(predictor: Predictor, folder: str, prediction: Prediction) -> None:
    picture = predictions.coco_picture(prediction.label_map, predictor.dataset_info)
    images.write_image(os.path.join(folder, "map.png"), picture)
