"""A network whose predictions are known: it tells masks apart by the color of the pixels."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.keras_api import keras
from maxdl_tf.models.postprocess import Postprocessor
from maxdl_tf.structs import PanopticOutputs

CROP_SIZE = (97, 129)
INFO = DatasetInfo(
    "colors",
    (SegmentClass(1, "ball", True, (255, 0, 0), 18), SegmentClass(3, "sea", False, (0, 0, 255), 155)),
    label_divisor=1000,
)
RED, GREEN, BLUE, GRAY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (127, 127, 127)
# What the color network sees where the image has that color; gray is void, as is the padding.
LABEL_OF_COLOR = {RED: 1001, GREEN: 1002, BLUE: 3000, GRAY: 0}


class ColorNetwork(keras.Model):
    """Slots 1..4 mask red, green, blue and gray; their classes are ball, ball, sea and void."""

    def __init__(self, output_stride: int = 4):
        super().__init__()
        self.output_stride = output_stride
        self.colors = tf.Variable(np.array(list(LABEL_OF_COLOR), np.float32) / 255.0, name="colors")
        self.class_logits = tf.Variable(8.0 * np.eye(3, dtype=np.float32)[[0, 0, 1, 2]], name="class_logits")

    def call(self, images, training=False):
        feature = images[:, :: self.output_stride, :: self.output_stride] / 255.0
        distance = tf.reduce_sum(tf.square(feature[..., tf.newaxis, :] - self.colors), axis=-1)
        return PanopticOutputs(
            pixel_feature=tf.math.l2_normalize(feature, axis=-1),
            mask_logits=-50.0 * distance,
            class_logits=tf.tile(self.class_logits[tf.newaxis], [tf.shape(images)[0], 1, 1]),
            semantic_logits=None,
            mask_embedding=tf.tile(self.colors[tf.newaxis], [tf.shape(images)[0], 1, 1]),
        )


def postprocessor(thing_area_limit: int = 1, stuff_area_limit: int = 1, **options) -> Postprocessor:
    return Postprocessor(INFO, thing_area_limit=thing_area_limit, stuff_area_limit=stuff_area_limit, **options)


def striped_image(height: int, width: int, colors=(RED, GREEN, BLUE)) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [h, w, 3] in upright stripes of these colors, the int label map that the color network ought to see)."""
    stripe = np.arange(width) * len(colors) // width
    image = np.broadcast_to(np.array(colors, np.uint8)[stripe], (height, width, 3))
    labels = np.broadcast_to(np.array([LABEL_OF_COLOR[color] for color in colors])[stripe], (height, width))
    return np.ascontiguousarray(image), np.ascontiguousarray(labels)
