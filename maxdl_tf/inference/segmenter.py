"""One image of any size through a network with one input size, in TensorFlow operations only."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from maxdl_tf.data import transforms
from maxdl_tf.models.network import PanopticNetwork
from maxdl_tf.models.postprocess import Postprocessor, SlotMap
from maxdl_tf.structs import PanopticOutputs


class SegmentTable(NamedTuple):
    """The segments of an image without void, ordered by id and followed by rows of zeros.

    Attributes:
      count: int32 scalar, number of segments.
      ids: int32 [segments], values in the panoptic map.
      class_ids: int32 [segments], ids of the class table.
      scores: float32 [segments], mean confidence of the pixels in their masks times mean confidence of the masks in
        their class.
      areas: int32 [segments], in pixels of the image.
      boxes: int32 [segments, 4], (left, top, width, height) in pixels of the image.
    """

    count: tf.Tensor
    ids: tf.Tensor
    class_ids: tf.Tensor
    scores: tf.Tensor
    areas: tf.Tensor
    boxes: tf.Tensor


# Names of the fields among the outputs of an exported model.
OUTPUT_NAMES = ("num_segments", *(f"segment_{name}" for name in SegmentTable._fields[1:]))
PNG_OUTPUT = "panoptic_png_bytes"  # TensorFlow Serving's REST encodes outputs with this ending as binary.


class ImagePrediction(NamedTuple):
    """Panoptic segmentation of one image as tensors.

    Attributes:
      panoptic: int32 [h, w] of the image's size, class id * label_divisor + instance.
      segments: Segments of `panoptic`.
      score: float32 [h, w] of the image's size, the pixel's confidence in its mask times the mask's confidence in its
        class; 0 where void. None unless requested.
    """

    panoptic: tf.Tensor
    segments: SegmentTable
    score: tf.Tensor | None


class ImageSegmenter:
    """Resizes and pads an image as in evaluation, runs the network, and resizes the map back (sections 8 and 9).

    Args:
      model: The network.
      postprocessor: Makes the panoptic map from the outputs.
      crop_size: (height, width) of the network's input.
      score_map: Whether to compute the score of each pixel.
    """

    def __init__(
        self,
        model: PanopticNetwork,
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
        """The segmentation of an image, uint8 [h, w, 3], RGB."""
        return self.segment_outputs(self.network_outputs(image), tf.shape(image)[:2])

    def network_outputs(self, image: tf.Tensor) -> PanopticOutputs:
        """The network's outputs, batch 1, for an image, uint8 [h, w, 3], resized and padded to the crop."""
        return self.network(self.crop(image)[tf.newaxis])

    def crop(self, image: tf.Tensor) -> tf.Tensor:
        """An image, uint8 [h, w, 3], resized and padded to the crop: float32 [height, width, 3]."""
        return transforms.evaluation_transform(image, self.crop_size, self._postprocessor.enlarge)[0]

    def network(self, crops: tf.Tensor) -> PanopticOutputs:
        """The network's outputs for crops, float32 [batch, height, width, 3]."""
        return self._model(crops, training=False)

    def segment_outputs(self, outputs: PanopticOutputs, image_size: tf.Tensor) -> ImagePrediction:
        """The segmentation of an image from the network's outputs; `image_size` is int32 [2], (height, width)."""
        visible = tf.unstack(transforms.resized_size(image_size, self.crop_size, self._postprocessor.enlarge))
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


def segment_table(slot_map: SlotMap, image_size: tf.Tensor) -> SegmentTable:
    """The segments of a slot map after nearest-neighbor resizing to an image.

    The resized map is never computed: each pixel counts as often as resizing would repeat it.

    Args:
      slot_map: Slot map at the size of the network's input.
      image_size: int32 [2], (height, width) of the image.
    """
    num_segments = slot_map.label.shape[0]
    map_size = tf.shape(slot_map.slot)
    rows, columns = (_Repeats.of(map_size[axis], image_size[axis]) for axis in (0, 1))
    pixel = tf.where((slot_map.void_reason == 0) & (rows.count[:, tf.newaxis] > 0) & (columns.count > 0))
    slot = tf.gather_nd(slot_map.slot, pixel)
    confidence = tf.cast(tf.gather_nd(slot_map.confidence, pixel), tf.float64)
    row, column = tf.unstack(pixel, axis=1)
    pixels = tf.gather(rows.count, row) * tf.gather(columns.count, column)  # Number of image pixels, float64.

    # All slots of a stuff class are one segment; the first one with its label stands for them.
    first_of_label = tf.argmax(slot_map.label[:, tf.newaxis] == slot_map.label, axis=1, output_type=tf.int32)
    segment = tf.gather(first_of_label, tf.gather_nd(slot_map.segment, pixel))

    def total(values):
        return tf.math.unsorted_segment_sum(values, segment, num_segments)

    area = total(pixels)
    class_confidence = tf.gather(tf.cast(slot_map.class_confidence, tf.float64), slot)
    share = tf.math.divide_no_nan(tf.ones_like(area), area)
    score = total(pixels * confidence) * share * total(pixels * class_confidence) * share
    top, left, bottom, right = (
        reduce(tf.gather(side, place), segment, num_segments)
        for reduce, side, place in (
            (tf.math.unsorted_segment_min, rows.first, row),
            (tf.math.unsorted_segment_min, columns.first, column),
            (tf.math.unsorted_segment_max, rows.last, row),
            (tf.math.unsorted_segment_max, columns.last, column),
        )
    )
    found = tf.where(area > 0)[:, 0]
    found = tf.gather(found, tf.argsort(tf.gather(slot_map.label, found)))

    def listed(values):
        listed = tf.gather(values, found)
        missing = num_segments - tf.size(found)
        padded = tf.pad(listed, [[0, missing]] + [[0, 0]] * (values.shape.rank - 1))
        return tf.ensure_shape(padded, values.shape)

    return SegmentTable(
        count=tf.size(found),
        ids=listed(slot_map.label),
        class_ids=listed(slot_map.class_id),
        scores=listed(tf.cast(score, tf.float32)),
        areas=listed(tf.cast(area, tf.int32)),
        boxes=listed(tf.stack([left, top, right - left + 1, bottom - top + 1], axis=1)),
    )


class _Repeats(NamedTuple):
    """Positions of the rows (or columns) of a map in the image to which it is resized; all [rows of the map].

    Attributes:
      count: float64, number of rows in the image for each row; 0 where it is skipped.
      first: int32, its first row in the image.
      last: int32, its last row in the image.
    """

    count: tf.Tensor
    first: tf.Tensor
    last: tf.Tensor

    @classmethod
    def of(cls, size: tf.Tensor, new_size: tf.Tensor) -> _Repeats:
        source = transforms.resize_labels(tf.range(size)[:, tf.newaxis], tf.stack([new_size, 1]))[:, 0]
        places = tf.range(new_size)
        return cls(
            tf.math.unsorted_segment_sum(tf.ones_like(places, tf.float64), source, size),
            tf.math.unsorted_segment_min(places, source, size),
            tf.math.unsorted_segment_max(places, source, size),
        )
