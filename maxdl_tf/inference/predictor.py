"""Predicts the panoptic segmentation of images, with an export or with a model in memory.

TensorFlow is imported only for SavedModels and models in memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage
from maxdl_tf.files.images import ImageLike, as_pixels
from maxdl_tf.inference.numpy_pipeline import Segments, resized_size
from maxdl_tf.inference.prediction import Prediction, segments_of
from maxdl_tf.inference.tiles import TiledPredictor
from maxdl_tf.structs import OUTPUT_STRIDE, PanopticOutputs

if TYPE_CHECKING:
    from maxdl_tf.models.network import PanopticNetwork
    from maxdl_tf.models.postprocess import Postprocessor

_TILE_OVERLAP = 64  # The default of experiments.


class Features(NamedTuple):
    """Features that the network compares to make masks, for one image at the stride of the masks.

    Attributes:
      pixel: float32 [height, width, channels], L2-normalized features of pixels.
      slot: int32 [height, width], the slot that wins each pixel.
      mask: float32 [slots, channels], mask embeddings.
    """

    pixel: np.ndarray
    slot: np.ndarray
    mask: np.ndarray


class Backend(Protocol):
    """What runs the network and its post-processing on one image, uint8 [h, w, 3]."""

    def segment(self, image: np.ndarray) -> tuple[np.ndarray, Segments]:
        """The label map, int32 [h, w], and its segments."""

    def network_outputs(self, image: np.ndarray) -> Mapping[str, Any]:
        """Fields of `PanopticOutputs` by name, batch 1."""

    def segment_outputs(self, outputs: PanopticOutputs, image_size: tuple[int, int]) -> tuple[np.ndarray, Segments]:
        """As `segment`, from the network's outputs for an image of (height, width) `image_size`."""


class LoadedExport(NamedTuple):
    """An export in memory.

    Attributes:
      backend: Runs it.
      dataset_info: Its class table.
      info: Content of its `export_info.json`; empty for old SavedModels.
      postprocessor: Its post-processing in TensorFlow; None for formats other than SavedModel.
    """

    backend: Backend
    dataset_info: DatasetInfo
    info: dict
    postprocessor: Postprocessor | None = None


class Predictor:
    """Predicts the panoptic segmentation of one image at a time.

    Example:
      predictor = maxdl_tf.load_predictor("exports/shapes/1")
      result = predictor("photo.jpg")
      result.overlay().save("overlay.png")

    Attributes:
      dataset_info: Class table of the predictions.
      postprocessor: Makes predictions from the network's outputs in TensorFlow; None if a SavedModel does not state its
        thresholds, and for other formats.
      export_info: Versions and origin of an export; empty for a model in memory.
      tile: Side of the tiles that the network was trained for, in pixels of the image; 0: whole images.
      tile_overlap: Number of pixels that neighboring tiles should share.
    """

    def __init__(self, backend: Backend, dataset_info: DatasetInfo, postprocessor: Postprocessor | None = None):
        self._backend = backend
        self.dataset_info = dataset_info
        self.postprocessor = postprocessor
        self.export_info: dict = {}
        self.tile, self.tile_overlap = 0, _TILE_OVERLAP

    @classmethod
    def from_model(
        cls,
        model: PanopticNetwork,
        postprocessor: Postprocessor,
        *,
        crop_size: tuple[int, int],
        dataset_info: DatasetInfo,
    ) -> Predictor:
        """A predictor for a model in memory; `crop_size` is (height, width) of its input."""
        from maxdl_tf.inference.tensorflow_backends import TensorFlowBackend

        return cls(TensorFlowBackend.of_model(model, postprocessor, crop_size), dataset_info, postprocessor)

    @classmethod
    def from_export(cls, path: str, compute: str = "float32") -> Predictor:
        """A predictor for a folder that maxdl-export wrote, in any format.

        Args:
          path: The folder.
          compute: Type in which an export of format "openvino" computes; see `runtimes.open_network`.

        Raises:
          UserError: `path` holds no export, a damaged one, or one that another program or version wrote.
        """
        from maxdl_tf.inference import portable_backend

        if not storage.exists(os.path.join(path, portable_backend.EXPORT_INFO_FILE)):
            return cls.from_saved_model(path)
        return cls._of_export(portable_backend.load(path, compute))

    @classmethod
    def from_saved_model(cls, path: str) -> Predictor:
        """A predictor for a SavedModel that maxdl-export wrote; see `from_export`."""
        from maxdl_tf.inference.tensorflow_backends import load_saved_model

        return cls._of_export(load_saved_model(path))

    @classmethod
    def _of_export(cls, export: LoadedExport) -> Predictor:
        predictor = cls(export.backend, export.dataset_info, export.postprocessor)
        predictor.export_info = export.info
        predictor.tile = export.info.get("tile", 0)
        predictor.tile_overlap = export.info.get("tile_overlap", _TILE_OVERLAP)
        return predictor

    def __call__(self, image: ImageLike, outputs: PanopticOutputs | None = None) -> Prediction:
        """Predicts the segmentation of an image.

        Args:
          image: Path, PIL image, or array, uint8 [height, width, 3] of any size in RGB. If the class table has a rule
            for values of more than 8 bits, also an array of other numbers, [height, width] or [height, width, 3].
          outputs: Outputs of the network for this image, from `network_outputs`. None: the network runs.

        Raises:
          UserError: The file cannot be read, or the array has another shape or type.
        """
        pixels = as_pixels(image, self.dataset_info.intensity)
        if outputs is None:
            label_map, segments = self._backend.segment(pixels)
        else:
            label_map, segments = self._backend.segment_outputs(outputs, pixels.shape[:2])
        return Prediction(label_map, segments_of(segments, self.dataset_info), pixels, self.dataset_info)

    def in_tiles(self, tile: int | None = None, overlap: int | None = None) -> Predictor | TiledPredictor:
        """The predictor that goes over an image in tiles; this one if `tile` is 0.

        Args:
          tile: Side of the tiles in pixels of the image. None: `self.tile`.
          overlap: Number of pixels that neighboring tiles share. None: `self.tile_overlap`.

        Raises:
          UserError: The overlap is negative, or not less than the tile.
        """
        tile = self.tile if tile is None else tile
        overlap = self.tile_overlap if overlap is None else overlap
        if not tile:
            return self
        if not 0 <= overlap < tile:
            raise UserError(
                f"tile {tile} with an overlap of {overlap}: the overlap must be at least 0 and less than the tile; "
                "state another one"
            )
        return TiledPredictor(self, tile=tile, overlap=overlap)

    def network_outputs(self, image: ImageLike) -> PanopticOutputs:
        """The network's outputs, batch 1, for an image; see `__call__` for the argument and errors."""
        outputs = self._backend.network_outputs(as_pixels(image, self.dataset_info.intensity))
        # Inference has no auxiliary outputs, and earlier exports and other formats lack others.
        return PanopticOutputs(**{name: outputs.get(name) for name in PanopticOutputs._fields if name != "auxiliary"})

    def features(self, image: ImageLike) -> Features:
        """Pixel features and mask embeddings of an image; see `__call__` for the argument.

        Raises:
          UserError: As for `__call__`, or the export has no mask embeddings.
        """
        image = as_pixels(image, self.dataset_info.intensity)
        outputs = self.network_outputs(image)
        if outputs.mask_embedding is None:
            raise UserError("this export has no mask embeddings; export the checkpoint again as a SavedModel")
        pixel, logits, mask = (
            np.asarray(output[0]) for output in (outputs.pixel_feature, outputs.mask_logits, outputs.mask_embedding)
        )
        stride, enlarge = OUTPUT_STRIDE, True
        if self.postprocessor:
            stride, enlarge = self.postprocessor.output_stride, self.postprocessor.enlarge
        crop_size = tuple(stride * (side - 1) + 1 for side in logits.shape[:2])
        visible = resized_size(image.shape[:2], crop_size, enlarge)
        height, width = ((side - 1) // stride + 1 for side in visible)
        return Features(pixel[:height, :width], logits[:height, :width].argmax(axis=-1).astype(np.int32), mask)
