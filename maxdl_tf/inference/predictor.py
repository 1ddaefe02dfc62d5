"""Predicts the panoptic segmentation of images, with a SavedModel or with a model in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from maxdl_tf import class_table
from maxdl_tf.checkpoints.source import check_no_pattern
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data import transforms
from maxdl_tf.errors import UserError
from maxdl_tf.files.images import ImageLike, as_pixels
from maxdl_tf.inference.prediction import Prediction, segments_of
from maxdl_tf.inference.segmenter import OUTPUT_NAMES, ImageSegmenter, SegmentTable
from maxdl_tf.inference.tiles import TiledPredictor
from maxdl_tf.layers.resize import size_at_stride
from maxdl_tf.models.network import PanopticNetwork
from maxdl_tf.models.postprocess import Postprocessor
from maxdl_tf.structs import OUTPUT_STRIDE, PanopticOutputs

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


class Predictor:
    """Predicts the panoptic segmentation of one image at a time.

    Example:
      predictor = maxdl_tf.load_predictor("exports/shapes/1")
      result = predictor("photo.jpg")
      result.overlay().save("overlay.png")

    Attributes:
      dataset_info: Class table of the predictions.
      postprocessor: Makes predictions from the network's outputs; None if a SavedModel does not state its thresholds.
      export_info: Versions and origin of a SavedModel; empty for a model in memory.
      tile: Side of the tiles that the network was trained for, in pixels of the image; 0: whole images.
      tile_overlap: Number of pixels that neighboring tiles should share.
    """

    def __init__(
        self,
        segment: Callable[[tf.Tensor], tuple[tf.Tensor, SegmentTable]],
        network_outputs: Callable[[tf.Tensor], Mapping[str, tf.Tensor]],
        dataset_info: DatasetInfo,
        postprocessor: Postprocessor | None = None,
    ):
        """`segment` and `network_outputs` take uint8 [h, w, 3].

        `segment` returns the panoptic map of that size and the segments, `network_outputs` returns the fields of
        `PanopticOutputs`.
        """
        self._segment = segment
        self._network_outputs = network_outputs
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
        return cls(segment, network_outputs, dataset_info, postprocessor)

    @classmethod
    def from_saved_model(cls, path: str) -> Predictor:
        """A predictor for a SavedModel that maxdl-export wrote.

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
        predictor = cls(segment, getattr(loaded, "network_outputs", None), dataset_info, postprocessor)
        predictor.export_info = info
        predictor.tile, predictor.tile_overlap = info.get("tile", 0), info.get("tile_overlap", _TILE_OVERLAP)
        predictor._keep_alive = loaded  # The signature itself holds the weights only weakly.
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
            panoptic, table = self._segment(tf.constant(pixels))
        else:
            panoptic, table = self._segment_outputs(outputs, tf.constant(pixels.shape[:2]))
        table = SegmentTable(*(field.numpy() for field in table))
        return Prediction(panoptic.numpy(), segments_of(table, self.dataset_info), pixels, self.dataset_info)

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

    @tf.function(autograph=False)
    def _segment_outputs(self, outputs: PanopticOutputs, image_size: tf.Tensor) -> tuple[tf.Tensor, SegmentTable]:
        segmenter = ImageSegmenter(None, self.postprocessor, self.postprocessor.input_size(outputs.mask_logits))
        prediction = segmenter.segment_outputs(outputs, image_size)
        return prediction.panoptic, prediction.segments

    def network_outputs(self, image: ImageLike) -> PanopticOutputs:
        """The network's outputs, batch 1, for an image; see `__call__` for the argument and errors."""
        outputs = self._network_outputs(tf.constant(as_pixels(image, self.dataset_info.intensity)))
        # Inference has no auxiliary outputs, and earlier exports lack others.
        return PanopticOutputs(**{name: outputs.get(name) for name in PanopticOutputs._fields if name != "auxiliary"})

    def features(self, image: ImageLike) -> Features:
        """Pixel features and mask embeddings of an image; see `__call__` for the argument.

        Raises:
          UserError: As for `__call__`, or the SavedModel has no mask embeddings.
        """
        image = as_pixels(image, self.dataset_info.intensity)
        outputs = self.network_outputs(image)
        if outputs.mask_embedding is None:
            raise UserError("this SavedModel has no mask embeddings; export the checkpoint again")
        pixel, logits, mask = (
            output[0].numpy() for output in (outputs.pixel_feature, outputs.mask_logits, outputs.mask_embedding)
        )
        stride, enlarge = OUTPUT_STRIDE, True
        if self.postprocessor:
            stride, enlarge = self.postprocessor.output_stride, self.postprocessor.enlarge
        crop_size = tuple(stride * (side - 1) + 1 for side in logits.shape[:2])
        height, width = size_at_stride(transforms.resized_size(image.shape[:2], crop_size, enlarge).numpy(), stride)
        return Features(pixel[:height, :width], logits[:height, :width].argmax(axis=-1).astype(np.int32), mask)


def _export_info_of(loaded) -> dict:
    if not hasattr(loaded, "export_info"):
        return {}
    with tf.io.gfile.GFile(loaded.export_info.asset_path.numpy().decode()) as file:
        return json.load(file)
