"""Backends of `Predictor` that run in TensorFlow: a model in memory, or a SavedModel."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from maxdl_tf import class_table
from maxdl_tf.checkpoints.source import check_no_pattern
from maxdl_tf.errors import UserError
from maxdl_tf.inference.numpy_pipeline import Segments
from maxdl_tf.inference.predictor import LoadedExport
from maxdl_tf.inference.segmenter import OUTPUT_NAMES, ImageSegmenter, SegmentTable
from maxdl_tf.models.network import PanopticNetwork
from maxdl_tf.models.postprocess import Postprocessor
from maxdl_tf.structs import PanopticOutputs


class TensorFlowBackend:
    """A backend of functions of tensors; see `predictor.Backend`.

    Args:
      segment: From uint8 [h, w, 3] to the panoptic map of that size and its segments.
      network_outputs: From uint8 [h, w, 3] to fields of `PanopticOutputs` by name.
      postprocessor: Makes the panoptic map from outputs; None if it is unknown.
      keep_alive: Object that holds weights of the functions.
    """

    def __init__(
        self,
        segment: Callable[[tf.Tensor], tuple[tf.Tensor, SegmentTable]],
        network_outputs: Callable[[tf.Tensor], Mapping[str, tf.Tensor]],
        postprocessor: Postprocessor | None,
        keep_alive: Any = None,
    ):
        self._segment, self._network_outputs, self._postprocessor = segment, network_outputs, postprocessor
        self._keep_alive = keep_alive

    @classmethod
    def of_model(
        cls, model: PanopticNetwork, postprocessor: Postprocessor, crop_size: tuple[int, int]
    ) -> TensorFlowBackend:
        """The backend of a model in memory; `crop_size` is (height, width) of its input."""
        segmenter = ImageSegmenter(model, postprocessor, crop_size)
        signature = [tf.TensorSpec([None, None, 3], tf.uint8)]

        def segment(image: tf.Tensor) -> tuple[tf.Tensor, SegmentTable]:
            prediction = segmenter(image)
            return prediction.panoptic, prediction.segments

        def network_outputs(image: tf.Tensor) -> dict[str, tf.Tensor]:
            return segmenter.network_outputs(image)._asdict()

        segment, network_outputs = (
            tf.function(function, input_signature=signature, autograph=False) for function in (segment, network_outputs)
        )
        return cls(segment, network_outputs, postprocessor)

    def segment(self, image: np.ndarray) -> tuple[np.ndarray, Segments]:
        return _as_arrays(*self._segment(tf.constant(image)))

    def network_outputs(self, image: np.ndarray) -> Mapping[str, tf.Tensor]:
        return self._network_outputs(tf.constant(image))

    def segment_outputs(self, outputs: PanopticOutputs, image_size: tuple[int, int]) -> tuple[np.ndarray, Segments]:
        return _as_arrays(*self._segment_outputs(outputs, tf.constant(image_size)))

    @tf.function(autograph=False)
    def _segment_outputs(self, outputs: PanopticOutputs, image_size: tf.Tensor) -> tuple[tf.Tensor, SegmentTable]:
        segmenter = ImageSegmenter(None, self._postprocessor, self._postprocessor.input_size(outputs.mask_logits))
        prediction = segmenter.segment_outputs(outputs, image_size)
        return prediction.panoptic, prediction.segments


def load_saved_model(path: str) -> LoadedExport:
    """Loads a SavedModel that maxdl-export wrote.

    Raises:
      UserError: `path` holds no SavedModel, a damaged one, or one that another program or version wrote.
    """
    check_no_pattern(path)
    try:
        loaded = tf.saved_model.load(path)
    except Exception as error:  # tf.errors.*, OSError, google.protobuf.message.DecodeError, ...
        raise UserError(f"{path}: the SavedModel cannot be loaded ({error}); export it again") from error
    if not hasattr(loaded, "dataset_info") or "image_tensor" not in loaded.signatures:
        raise UserError(
            f"{path} is a SavedModel that this version's maxdl-export did not write; export the checkpoint again"
        )
    dataset_info = class_table.load(loaded.dataset_info.asset_path.numpy().decode())
    signature = loaded.signatures["image_tensor"]

    def segment(image: tf.Tensor) -> tuple[tf.Tensor, SegmentTable]:
        outputs = signature(image=image[tf.newaxis])
        return outputs["panoptic_map"][0], SegmentTable(*(outputs[name][0] for name in OUTPUT_NAMES))

    try:
        info = _export_info_of(loaded)
        postprocessor = Postprocessor(dataset_info, **info["postprocess"]) if "postprocess" in info else None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: export_info.json is damaged ({error}); export it again") from error
    # The signature itself holds the weights only weakly.
    backend = TensorFlowBackend(segment, getattr(loaded, "network_outputs", None), postprocessor, keep_alive=loaded)
    return LoadedExport(backend, dataset_info, info, postprocessor)


def _export_info_of(loaded) -> dict:
    if not hasattr(loaded, "export_info"):
        return {}
    with tf.io.gfile.GFile(loaded.export_info.asset_path.numpy().decode()) as file:
        return json.load(file)


def _as_arrays(panoptic: tf.Tensor, table: SegmentTable) -> tuple[np.ndarray, Segments]:
    count, *fields = (field.numpy() for field in table)
    return panoptic.numpy(), Segments(int(count), *(field[:count] for field in fields))
