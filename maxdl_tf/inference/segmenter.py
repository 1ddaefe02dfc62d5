"""One image of any size through a network whose input has one size, in TensorFlow operations only."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from maxdl_tf.data import transforms
from maxdl_tf.inference.segment_table import SegmentTable, segment_table
from maxdl_tf.models.max_deeplab import MaXDeepLab
from maxdl_tf.models.postprocess import Postprocessor
from maxdl_tf.structs import PanopticOutputs


class ImagePrediction(NamedTuple):
    """What is seen in one image.

    Attributes:
      panoptic: int32 [h, w] of the image's size, class id * label_divisor + instance.
      segments: Those of `panoptic`, without void.
      score: float32 [h, w] of the image's size: the pixel's confidence in its mask times the mask's confidence in its
        class; 0 where void. None if it was not asked for.
    """

    panoptic: tf.Tensor
    segments: SegmentTable
    score: tf.Tensor | None


class ImageSegmenter:
    """Resizes and pads as in evaluation, runs the network, reads the map off, and undoes the first (section 8, 9).

    Args:
      model: The network.
      postprocessor: Reads the panoptic map off the outputs.
      crop_size: (height, width) of the network's input, each 16k+1.
      score_map: Whether to give each pixel's score.
    """

    def __init__(
        self,
        model: MaXDeepLab,
        postprocessor: Postprocessor,
        crop_size: tuple[int, int],
        *,
        score_map: bool = False,
    ):
        self._model = model
        self._postprocessor = postprocessor
        self._score_map = score_map
        self.crop_size = tuple(crop_size)

    def __call__(self, image: tf.Tensor) -> ImagePrediction:
        """What is seen in an image, uint8 [h, w, 3], RGB."""
        return self.segment_outputs(self.network_outputs(image), tf.shape(image)[:2])

    def network_outputs(self, image: tf.Tensor) -> PanopticOutputs:
        """The network's outputs, batch 1, for an image, uint8 [h, w, 3], resized and padded to the crop."""
        padded, _ = transforms.evaluation_transform(image, self.crop_size)
        return self._model(padded[tf.newaxis], training=False)

    def segment_outputs(self, outputs: PanopticOutputs, image_size: tf.Tensor) -> ImagePrediction:
        """What is seen in an image of `image_size`, int32 [2] (height, width), by the network's outputs for it."""
        visible = tf.unstack(transforms.resized_size(image_size, self.crop_size))
        slot_map = self._postprocessor.slot_map(outputs, visible)
        score = None
        if self._score_map:
            score = slot_map.confidence * tf.gather(slot_map.class_confidence, slot_map.slot)
            score = transforms.resize_labels(tf.where(slot_map.void_reason == 0, score, 0.0), image_size)
        return ImagePrediction(
            panoptic=transforms.resize_labels(self._postprocessor.label_map(slot_map), image_size),
            segments=segment_table(slot_map, image_size),
            score=score,
        )


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
