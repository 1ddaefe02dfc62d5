"""The ground-truth masks of a batch as rows, the form in which the losses read them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.structs import OUTPUT_STRIDE, PanopticTargets


class TargetMasks(NamedTuple):
    """Ground-truth masks at the size of the model's outputs.

    Masks do not overlap, so a pixel holds the number of its mask instead of a one-hot row. The first rows are the
    things, in the order of `PanopticTargets.thing_id_class`. The stuff classes of the data set follow, by ascending id.

    Attributes:
      row_of_pixel: int32 [batch, pixels], -1 on void and crowd.
      is_thing: float32 [batch, pixels], 1 on things that are not crowd.
      non_void: float32 [batch, pixels], 1 where the pixel has a class; crowd pixels have one.
      area: float32 [batch, rows], number of output pixels.
      valid: bool [batch, rows], False where the mask has no pixel at this size.
      class_index: int32 [batch, rows], index in `DatasetInfo.class_order`; 0 where not valid.
    """

    row_of_pixel: tf.Tensor
    is_thing: tf.Tensor
    non_void: tf.Tensor
    area: tf.Tensor
    valid: tf.Tensor
    class_index: tf.Tensor

    @property
    def in_row(self) -> tf.Tensor:
        """float32 [batch, pixels], 1 where the pixel belongs to a mask."""
        return tf.cast(self.row_of_pixel >= 0, tf.float32)


def at_stride(label_map: tf.Tensor, stride: int) -> tf.Tensor:
    """One row and column of each `stride`, flattened: [batch, height, width] to [batch, pixels].

    Labels are sampled where the model's features of this stride are centered, never interpolated.
    """
    strided = label_map[:, ::stride, ::stride]
    return flatten_pixels(strided[..., tf.newaxis])[..., 0]


def flatten_pixels(feature: tf.Tensor) -> tf.Tensor:
    """[batch, height, width, channels] to [batch, height * width, channels]."""
    pixels = None if None in feature.shape[1:3] else feature.shape[1] * feature.shape[2]
    flat = tf.reshape(feature, [tf.shape(feature)[0], -1 if pixels is None else pixels, feature.shape[-1]])
    return tf.ensure_shape(flat, [feature.shape[0], pixels, feature.shape[-1]])


def sum_over_rows(values: tf.Tensor, row_of_pixel: tf.Tensor, num_rows: int) -> tf.Tensor:
    """Sums pixels by their mask.

    Args:
      values: float32 [batch, pixels, channels].
      row_of_pixel: int32 [batch, pixels]; pixels of -1 are ignored.
      num_rows: Number of rows.

    Returns:
      float32 [batch, num_rows, channels].
    """
    batch = tf.shape(values)[0]
    channels = values.shape[-1]
    offset = tf.range(batch)[:, tf.newaxis] * num_rows
    segment = tf.where(row_of_pixel >= 0, row_of_pixel + offset, -1)
    sums = tf.math.unsorted_segment_sum(
        tf.reshape(values, [-1, channels]), tf.reshape(segment, [-1]), num_segments=batch * num_rows
    )
    return tf.reshape(sums, [batch, num_rows, channels])


class TargetMaskBuilder:
    """Builds `TargetMasks` for one data set (architecture sections 5 and 6).

    Args:
      dataset_info: Class table.
      output_stride: Pixels of the labels per position of the mask logits, along height and width.
    """

    def __init__(self, dataset_info: DatasetInfo, output_stride: int = OUTPUT_STRIDE):
        self._output_stride = output_stride
        self._ignore_label = dataset_info.ignore_label
        self._num_stuff = len(dataset_info.stuff_ids)
        # Tables over class ids: stuff row (from 0) and index in the class order.
        self._stuff_row_of_id = np.full(dataset_info.num_semantic_channels, -1, np.int32)
        self._stuff_row_of_id[list(dataset_info.stuff_ids)] = np.arange(self._num_stuff)
        self._index_of_id = np.zeros(dataset_info.num_semantic_channels, np.int32)
        self._index_of_id[list(dataset_info.class_order)] = np.arange(len(dataset_info.class_order))
        self._stuff_index = self._index_of_id[list(dataset_info.stuff_ids)]

    def __call__(self, targets: PanopticTargets) -> TargetMasks:
        max_things = targets.thing_id_class.shape[1]
        if max_things is None:
            raise ValueError("thing_id_class [batch, max_things] has no static max_things; set it with tf.ensure_shape")
        semantic = at_stride(targets.semantic, self._output_stride)
        thing_id = at_stride(targets.thing_id_mask, self._output_stride)
        is_thing = thing_id >= 0

        stuff_row = tf.gather(self._stuff_row_of_id, semantic)
        row_of_pixel = tf.where(is_thing, thing_id, tf.where(stuff_row >= 0, stuff_row + max_things, -1))

        ones = tf.ones_like(row_of_pixel, tf.float32)[..., tf.newaxis]
        area = sum_over_rows(ones, row_of_pixel, max_things + self._num_stuff)[..., 0]
        thing_index = tf.gather(self._index_of_id, tf.maximum(targets.thing_id_class, 0))
        stuff_index = tf.tile(self._stuff_index[np.newaxis], [tf.shape(thing_index)[0], 1])
        valid = area > 0
        return TargetMasks(
            row_of_pixel=row_of_pixel,
            is_thing=tf.cast(is_thing, tf.float32),
            non_void=tf.cast(semantic != self._ignore_label, tf.float32),
            area=area,
            valid=valid,
            class_index=tf.where(valid, tf.concat([thing_index, stuff_index], axis=1), 0),
        )
