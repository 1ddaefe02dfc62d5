"""The backend of `Predictor` for exports that run without TensorFlow."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping

import numpy as np

from maxdl_tf import class_table
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage
from maxdl_tf.inference import runtimes
from maxdl_tf.inference.numpy_pipeline import Pipeline, Segments
from maxdl_tf.inference.predictor import LoadedExport
from maxdl_tf.structs import PanopticOutputs

EXPORT_INFO_FILE = "export_info.json"


class PortableBackend:
    """A network of `runtimes` between the steps in NumPy; see `predictor.Backend`."""

    def __init__(self, pipeline: Pipeline, network: runtimes.Network):
        self._pipeline, self._network = pipeline, network
        self._lock = threading.Lock()  # Some runtimes compute one image at a time.

    def segment(self, image: np.ndarray) -> tuple[np.ndarray, Segments]:
        return self._postprocess(*self._run(image), image.shape[:2])

    def network_outputs(self, image: np.ndarray) -> Mapping[str, np.ndarray]:
        return dict(zip(runtimes.OUTPUTS, self._run(image)))

    def segment_outputs(self, outputs: PanopticOutputs, image_size: tuple[int, int]) -> tuple[np.ndarray, Segments]:
        return self._postprocess(outputs.mask_logits, outputs.class_logits, image_size)

    def _run(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        network_input = self._pipeline.network_input(image)
        with self._lock:
            return self._network(network_input)

    def _postprocess(self, mask_logits, class_logits, image_size) -> tuple[np.ndarray, Segments]:
        return self._pipeline.postprocess(mask_logits[0], class_logits[0], image_size)


def load(path: str, compute: str = "float32") -> LoadedExport:
    """Loads an export of `maxdl-export --format onnx`, `openvino` or `litert`; see `Predictor.from_export`.

    Raises:
      UserError: The folder is damaged or not on this machine, or the runtime is not installed.
    """
    if storage.is_remote(path):
        raise UserError(f"{path}: only a SavedModel can be loaded from there; copy the folder to this machine")
    try:
        pipeline = Pipeline.of_folder(path)
        file_format, file = pipeline.info["format"], os.path.join(path, pipeline.info["file"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: the export is damaged ({error!r}); export it again") from error
    if file_format not in runtimes.RUNTIMES:
        raise UserError(f"{path}: format {file_format!r} is none of {', '.join(runtimes.RUNTIMES)}; export it again")
    try:
        network = runtimes.open_network(file, file_format, compute)
    except ImportError as error:
        raise missing_extra(file_format, error) from error
    except Exception as error:  # Each runtime has its own errors.
        raise UserError(f"{file}: the model cannot be loaded ({error}); export it again") from error
    dataset_info = class_table.load(os.path.join(path, class_table.FILE_NAME))
    return LoadedExport(PortableBackend(pipeline, network), dataset_info, pipeline.info)


def missing_extra(file_format: str, error: ImportError) -> UserError:
    """The error that names what to install for a format."""
    return UserError(f"format {file_format}: {error}; pip install 'maxdl_tf[{file_format}]'")
