"""A model as a SavedModel for TF Serving and `Predictor`: written, loaded again and compared, then put in its place."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

import maxdl_tf
from maxdl_tf import config
from maxdl_tf.errors import UserError
from maxdl_tf.inference.segmenter import ImagePrediction, ImageSegmenter
from maxdl_tf.models.max_deeplab import MaXDeepLab
from maxdl_tf.models.postprocess import Postprocessor
from maxdl_tf.new_folder import appears_when_complete, check_new_folder
from maxdl_tf.structs import DatasetInfo, PanopticOutputs

EXPORT_INFO_FILE = "export_info.json"
RELATIVE_TOLERANCE = 1e-4  # Of the logits, against their largest; one machine runs one graph twice.


class ExportReport(NamedTuple):
    """What was exported.

    Attributes:
      path: Folder of the SavedModel.
      megabytes: Of all its files, in units of 2^20 bytes.
      num_weights: Numbers in its variables.
      compared_pixels: Pixels of the image on which it was compared; all had the label that the model gave.
      compared_segments: Segments that the model saw in it, void not counted.
      seconds: For writing and comparing.
    """

    path: str
    megabytes: float
    num_weights: int
    compared_pixels: int
    compared_segments: int
    seconds: float


class ExportedModel(tf.Module):
    """What a SavedModel of this package holds. The Keras model is reachable from its functions only.

    Keras objects in the tree would be saved as such, and a loader would look for their classes.

    Attributes:
      dataset_info: Asset; the class table, `config.parse_dataset_info` reads it.
      export_info: Asset; JSON with the versions and the origin of the weights.
      weights: The variables that inference reads; those of the auxiliary semantic branch are not among them.
    """

    def __init__(self, segmenter: ImageSegmenter, dataset_info_path: str, export_info_path: str):
        super().__init__(name="maxdl_tf")
        self.dataset_info = tf.saved_model.Asset(dataset_info_path)
        self.export_info = tf.saved_model.Asset(export_info_path)
        one_image = tf.TensorSpec([None, None, 3], tf.uint8, name="image")

        # Nothing in here needs AutoGraph, and tracing takes several times longer with it.
        @tf.function(input_signature=[one_image], autograph=False)
        def network_outputs(image):
            """The network's outputs for one image [h, w, 3], as tensors by name: batch 1, strided, not cropped."""
            return _outputs_by_name(segmenter.network_outputs(image))

        traced_network = network_outputs.get_concrete_function()  # The function itself would be traced twice.

        @tf.function(input_signature=[one_image], autograph=False)
        def segment(image):
            """Panoptic map and scores [h, w] of one image [h, w, 3]."""
            outputs = PanopticOutputs(**traced_network(image), semantic_logits=None)
            return segmenter.segment_outputs(outputs, tf.shape(image)[:2])._asdict()

        self.network_outputs = network_outputs
        self.segment = segment
        self.weights = list(segment.get_concrete_function().graph.variables)


def export_saved_model(
    model: MaXDeepLab,
    postprocessor: Postprocessor,
    *,
    crop_size: tuple[int, int],
    dataset_info: DatasetInfo,
    export_dir: str,
    origin: dict[str, str | int],
    image: np.ndarray | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> ExportReport:
    """Writes a SavedModel and makes sure that it does what the model does.

    Its signature `serving_default` takes `image`, uint8 [height, width, 3] of any size, RGB, and gives the fields of
    `ImagePrediction` at that size. The folder appears under its name only after the SavedModel in it was loaded and
    gave the model's own outputs (within float noise) and labels (every pixel) on an image. After a failure there is
    none.

    Args:
      model: With its final weights.
      postprocessor: Reads the panoptic map off the outputs.
      crop_size: (height, width) of the network's input, each 16k+1.
      dataset_info: Class table; stored with the model.
      export_dir: Folder to create; may exist if it is empty.
      origin: Where the weights are from, stored with the model; for people.
      image: Compared on this one, uint8 [h, w, 3]. Default: a drawn one.
      say: Gets a line at the beginning of each part.

    Raises:
      UserError: `export_dir` is taken or cannot be written.
      RuntimeError: What was written does not do what the model does.
    """
    started = time.monotonic()
    check_export_dir(export_dir)
    if image is None:
        image = comparison_image(crop_size)
    with appears_when_complete(export_dir) as temporary, tempfile.TemporaryDirectory() as assets:
        info = {
            "name": "maxdl_tf",
            "version": maxdl_tf.__version__,
            "tensorflow": tf.__version__,
            "crop_size": list(crop_size),
            **origin,
        }
        exported = ExportedModel(
            ImageSegmenter(model, postprocessor, crop_size),
            _write(os.path.join(assets, config.DATASET_INFO_FILE), config.dataset_info_to_text(dataset_info)),
            _write(os.path.join(assets, EXPORT_INFO_FILE), json.dumps(info, indent=2) + "\n"),
        )
        say(f"writing {export_dir}")
        try:
            signature = exported.segment.get_concrete_function()  # Given the function, it would be traced again.
            tf.saved_model.save(exported, temporary, signatures={"serving_default": signature})
        except (OSError, tf.errors.OpError) as error:
            reason = re.sub(r"\{\{.*?\}\} ", "", str(error))  # Names of TensorFlow's nodes.
            raise UserError(f"cannot write {export_dir}: {reason}; is the disk full or read-only?") from error
        say("comparing it with the checkpoint's model")
        segments = _compare(exported, temporary, image, dataset_info.void)
        megabytes = _megabytes(temporary)
    return ExportReport(
        path=export_dir,
        megabytes=megabytes,
        num_weights=sum(int(np.prod(variable.shape)) for variable in exported.weights),
        compared_pixels=image.shape[0] * image.shape[1],
        compared_segments=segments,
        seconds=time.monotonic() - started,
    )


def check_export_dir(export_dir: str) -> None:
    """Raises UserError if a SavedModel cannot be put there."""
    check_new_folder(export_dir, "export_dir", hint=" (for TF Serving: the next number in the model's folder)")


def comparison_image(crop_size: tuple[int, int]) -> np.ndarray:
    """uint8 [h, w, 3], always the same for a crop: soft blobs of color, of another shape than the crop."""
    height, width = max(2, crop_size[0] * 3 // 4), max(2, crop_size[1] * 5 // 4)
    generator = np.random.default_rng(0)
    blobs = tf.image.resize(
        generator.uniform(-60.0, 315.0, [1, 9, 12, 3]).astype(np.float32), [height, width], "bicubic"
    )
    return np.clip(blobs[0].numpy() + generator.normal(0.0, 8.0, [height, width, 3]), 0, 255).astype(np.uint8)


def _compare(exported: ExportedModel, path: str, image: np.ndarray, void: int) -> int:
    """Raises RuntimeError unless the SavedModel at `path` does what `exported` does; returns the segments seen."""
    loaded = tf.saved_model.load(path)
    image = tf.constant(image)
    wanted_outputs = exported.network_outputs(image)
    for name, value in loaded.network_outputs(image).items():
        wanted = wanted_outputs[name].numpy()
        error = np.abs(value.numpy() - wanted).max()
        if not error <= RELATIVE_TOLERANCE * max(1.0, np.abs(wanted).max()):
            raise RuntimeError(f"the exported model's {name} differ from the model's by up to {error}; it was not kept")
    wanted = ImagePrediction(**exported.segment(image)).panoptic.numpy()
    labels = ImagePrediction(**loaded.signatures["serving_default"](image=image)).panoptic.numpy()
    if labels.shape != wanted.shape or (labels != wanted).any():
        agreement = (labels == wanted).mean() if labels.shape == wanted.shape else 0.0
        raise RuntimeError(f"only {agreement:.4%} of the exported model's labels are the model's; it was not kept")
    return len(set(np.unique(wanted)) - {void})


def _outputs_by_name(outputs: PanopticOutputs) -> dict[str, tf.Tensor]:
    return {name: output for name, output in outputs._asdict().items() if name != "semantic_logits"}


def _write(path: str, text: str) -> str:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def _megabytes(folder: str) -> float:
    sizes = [
        tf.io.gfile.stat(os.path.join(parent, name)).length
        for parent, _, names in tf.io.gfile.walk(folder)
        for name in names
    ]
    return sum(sizes) / 2**20
