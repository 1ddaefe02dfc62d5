"""The segments of one image as a table of fixed length, in TensorFlow operations only."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from maxdl_tf.data import transforms
from maxdl_tf.models.postprocess import SlotMap


class SegmentTable(NamedTuple):
    """The segments of an image, without void, ordered by id; then rows of zeros.

    Attributes:
      count: int32 scalar, the number of segments.
      ids: int32 [slots], values in the panoptic map.
      class_ids: int32 [slots].
      scores: float32 [slots]: mean confidence of the pixels in their masks, times that of the masks in their class.
      areas: int32 [slots], pixels of the image.
      boxes: int32 [slots, 4], (left, top, width, height) in pixels of the image.
    """

    count: tf.Tensor
    ids: tf.Tensor
    class_ids: tf.Tensor
    scores: tf.Tensor
    areas: tf.Tensor
    boxes: tf.Tensor


# The fields' names among the outputs of an exported model.
OUTPUT_NAMES = ("num_segments", *(f"segment_{name}" for name in SegmentTable._fields[1:]))


def segment_table(slot_map: SlotMap, image_size: tf.Tensor) -> SegmentTable:
    """The segments that `slot_map` has after it is resized to an image, nearest neighbor.

    That picture is never made: a pixel counts as often as it would be repeated, which is often for a large image.

    Args:
      slot_map: At the size of the network's input.
      image_size: int32 [2], (height, width) of the image.
    """
    num_slots = slot_map.label.shape[0]
    map_size = tf.shape(slot_map.slot)
    rows, columns = (_Repeats.of(map_size[axis], image_size[axis]) for axis in (0, 1))
    pixel = tf.where((slot_map.void_reason == 0) & (rows.count[:, tf.newaxis] > 0) & (columns.count > 0))
    slot = tf.gather_nd(slot_map.slot, pixel)
    confidence = tf.cast(tf.gather_nd(slot_map.confidence, pixel), tf.float64)
    row, column = tf.unstack(pixel, axis=1)
    pixels = tf.gather(rows.count, row) * tf.gather(columns.count, column)  # Of the image, float64.

    # The first slot with a label stands for all of them: those of a stuff class are one segment.
    segment_of_slot = tf.argmax(slot_map.label[:, tf.newaxis] == slot_map.label, axis=1, output_type=tf.int32)
    segment = tf.gather(segment_of_slot, slot)

    def total(values):
        return tf.math.unsorted_segment_sum(values, segment, num_slots)

    area = total(pixels)
    class_confidence = tf.gather(tf.cast(slot_map.class_confidence, tf.float64), slot)
    share = tf.math.divide_no_nan(tf.ones_like(area), area)
    score = total(pixels * confidence) * share * total(pixels * class_confidence) * share
    top, left, bottom, right = (
        reduce(tf.gather(side, place), segment, num_slots)
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
        missing = num_slots - tf.size(found)
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
    """Where the rows (or columns) of a map lie in the image to which it is resized; all [rows of the map].

    Attributes:
      count: float64, how often a row is repeated; 0 where it is skipped.
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
