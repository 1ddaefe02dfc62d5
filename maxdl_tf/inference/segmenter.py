"""One image of any size through a network whose input has one size, in TensorFlow operations only."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from maxdl_tf.data import transforms
from maxdl_tf.models.max_deeplab import MaXDeepLab
from maxdl_tf.models.postprocess import Postprocessor
from maxdl_tf.structs import PanopticOutputs


class ImagePrediction(NamedTuple):
    """Maps of one image at its own size.

    Attributes:
      panoptic: int32 [h, w], class id * label_divisor + instance.
      instance_score: float32 [h, w], the pixel's confidence in its mask.
      semantic_score: float32 [h, w], the mask's confidence in its class.
    """

    panoptic: tf.Tensor
    instance_score: tf.Tensor
    semantic_score: tf.Tensor


class ImageSegmenter:
    """Resizes and pads as in evaluation, runs the network, reads the map off, and undoes the first (section 8, 9).

    Args:
      model: The network.
      postprocessor: Reads the panoptic map off the outputs.
      crop_size: (height, width) of the network's input, each 16k+1.
    """

    def __init__(self, model: MaXDeepLab, postprocessor: Postprocessor, crop_size: tuple[int, int]):
        self._model = model
        self._postprocessor = postprocessor
        self._crop_size = tuple(crop_size)

    def __call__(self, image: tf.Tensor) -> ImagePrediction:
        """The maps of an image, uint8 [h, w, 3], RGB."""
        return self.segment_outputs(self.network_outputs(image), tf.shape(image)[:2])

    def network_outputs(self, image: tf.Tensor) -> PanopticOutputs:
        """The network's outputs, batch 1, for an image, uint8 [h, w, 3], resized and padded to the crop."""
        padded, _ = transforms.evaluation_transform(image, self._crop_size)
        return self._model(padded[tf.newaxis], training=False)

    def segment_outputs(self, outputs: PanopticOutputs, image_size: tf.Tensor) -> ImagePrediction:
        """The maps of an image of `image_size`, int32 [2] (height, width), from the network's outputs for it."""
        prediction = self._postprocessor(outputs, self._crop_size)
        height, width = tf.unstack(transforms.resized_size(image_size, self._crop_size))
        maps = (prediction.panoptic, prediction.instance_score, prediction.semantic_score)
        return ImagePrediction(*(transforms.resize_labels(m[0, :height, :width], image_size) for m in maps))


def without_semantic_branch(model: MaXDeepLab) -> MaXDeepLab:
    """The same layers and variables as one without the auxiliary semantic branch, which inference does not need.

    Build and restore the model with the branch, as it was trained, and take it off then.
    """
    return MaXDeepLab(
        backbone=model.backbone,
        decoder=model.decoder,
        pixel_head=model.pixel_head,
        mask_head=model.mask_head,
        class_head=model.class_head,
        semantic_decoder=None,
        semantic_head=None,
        name=model.name,
    )
