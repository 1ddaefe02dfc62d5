"""From an image to its panoptic map and segments, with a SavedModel or with a model in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from maxdl_tf import config
from maxdl_tf.data import transforms
from maxdl_tf.errors import UserError
from maxdl_tf.inference.segmenter import ImagePrediction, ImageSegmenter
from maxdl_tf.inference.segments import Segment, segments_of
from maxdl_tf.layers.resize import size_at_stride
from maxdl_tf.models.max_deeplab import MaXDeepLab
from maxdl_tf.models.postprocess import Postprocessor
from maxdl_tf.structs import DatasetInfo


class Prediction(NamedTuple):
    """What is seen in one image.

    Attributes:
      label_map: int32 [h, w] of the image's size, class id * label_divisor + instance.
      segments: Those of `label_map`, without void, ordered by id.
    """

    label_map: np.ndarray
    segments: list[Segment]


class Features(NamedTuple):
    """What the network compares to make masks, for one image; its size is a quarter of the resized image's.

    Attributes:
      pixel: float32 [height, width, channels], L2-normalized features of pixels.
      slot: int32 [height, width], the slot that each pixel falls to.
      mask: float32 [slots, channels], mask embeddings.
    """

    pixel: np.ndarray
    slot: np.ndarray
    mask: np.ndarray


class Predictor:
    """Predicts the panoptic segmentation of one image after another.

        predictor = Predictor.from_saved_model("exports/shapes")
        prediction = predictor(read_image("photo.jpg"))

    Attributes:
      dataset_info: Class table of the predictions.
    """

    def __init__(
        self,
        segment: Callable[[tf.Tensor], ImagePrediction],
        network_outputs: Callable[[tf.Tensor], Mapping[str, tf.Tensor]],
        dataset_info: DatasetInfo,
    ):
        """`segment` takes uint8 [h, w, 3] and gives maps of that size, `network_outputs` gives `PanopticOutputs`."""
        self._segment = segment
        self._network_outputs = network_outputs
        self.dataset_info = dataset_info

    @classmethod
    def from_model(
        cls, model: MaXDeepLab, postprocessor: Postprocessor, *, crop_size: tuple[int, int], dataset_info: DatasetInfo
    ) -> Predictor:
        """With a model in memory; `crop_size` is (height, width) of the network's input, each 16k+1."""
        segmenter = ImageSegmenter(model, postprocessor, crop_size)
        signature = [tf.TensorSpec([None, None, 3], tf.uint8)]

        def network_outputs(image: tf.Tensor) -> dict[str, tf.Tensor]:
            return segmenter.network_outputs(image)._asdict()

        segment, network_outputs = (
            tf.function(function, input_signature=signature, autograph=False)
            for function in (segmenter, network_outputs)
        )
        return cls(segment, network_outputs, dataset_info)

    @classmethod
    def from_saved_model(cls, path: str) -> Predictor:
        """With a SavedModel that maxdl-export wrote.

        Raises:
          UserError: `path` holds no SavedModel, a damaged one, or one of another program.
        """
        try:
            loaded = tf.saved_model.load(path)
        except Exception as error:  # tf.errors.*, OSError, google.protobuf.message.DecodeError, ...
            raise UserError(f"{path}: the SavedModel cannot be loaded ({error}); export it again") from error
        if not hasattr(loaded, "dataset_info") or "serving_default" not in loaded.signatures:
            raise UserError(f"{path}: a SavedModel, but not one that maxdl-export wrote; export with maxdl-export")
        dataset_info = config.load_dataset_info(loaded.dataset_info.asset_path.numpy().decode())
        signature = loaded.signatures["serving_default"]

        def segment(image: tf.Tensor) -> ImagePrediction:
            return ImagePrediction(**signature(image=image))

        predictor = cls(segment, getattr(loaded, "network_outputs", None), dataset_info)
        predictor._keep_alive = loaded  # The signature itself holds the weights only weakly.
        return predictor

    def __call__(self, image: np.ndarray) -> Prediction:
        """Predicts for one image, uint8 [h, w, 3] of any size, RGB.

        Raises:
          ValueError: The image has another shape or type.
        """
        _check_image(image)
        maps = ImagePrediction(*(tensor.numpy() for tensor in self._segment(tf.constant(image))))
        segments = segments_of(maps.panoptic, maps.instance_score, maps.semantic_score, self.dataset_info)
        return Prediction(maps.panoptic, segments)

    def features(self, image: np.ndarray) -> Features:
        """What the network sees in one image, uint8 [h, w, 3] of any size, RGB, before masks and classes are read off.

        Raises:
          ValueError: The image has another shape or type.
          UserError: The SavedModel does not give them.
        """
        _check_image(image)
        outputs = self._network_outputs(tf.constant(image))
        if "mask_embedding" not in outputs:
            raise UserError("this SavedModel gives no mask embeddings; export the checkpoint again")
        pixel, logits, mask = (outputs[name][0].numpy() for name in ("pixel_feature", "mask_logits", "mask_embedding"))
        crop_size = tuple(4 * (side - 1) + 1 for side in pixel.shape[:2])
        height, width = size_at_stride(transforms.resized_size(image.shape[:2], crop_size).numpy(), 4)
        return Features(pixel[:height, :width], logits[:height, :width].argmax(axis=-1).astype(np.int32), mask)


def _check_image(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
        raise ValueError(f"image {image.dtype} {list(image.shape)}; want uint8 [height, width, 3], RGB")
