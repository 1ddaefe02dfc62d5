"""The counts of panoptic quality in a graph: TensorFlow operations only, for label maps that need not leave the device.

For loops of one's own that stay inside a `tf.function`. The evaluator compares on the host with NumPy instead, because
that is faster there (docs/evaluation.md), and the maps come to the host for pictures, scores and files anyway. Not for
XLA: how many segments there are is known only when it runs.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from maxdl_tf.class_table import DatasetInfo


class GraphCounts(NamedTuple):
    """Fields of `PanopticCounts`, [class ids] each: iou float64, the others int64."""

    iou: tf.Tensor
    tp: tf.Tensor
    fp: tf.Tensor
    fn: tf.Tensor


def count_in_graph(
    truth: tf.Tensor, prediction: tf.Tensor, dataset_info: DatasetInfo, *, ignore_crowd: bool = True
) -> GraphCounts:
    """The counts that `PanopticQuality.update` takes of an image, the same to the last bit but for the sum of IoUs.

    Args:
      truth: int [height, width], class id * label_divisor + instance.
      prediction: The same shape and code. Nothing checks here that the table has all classes, as NumPy's does.
      dataset_info: The class table.
      ignore_crowd: As that of `PanopticQuality`.
    """
    true_label, true_index, label, index, pixels = _overlap(truth, prediction)
    void, divisor = dataset_info.ignore_label, dataset_info.label_divisor
    true_class, class_id = true_label // divisor, label // divisor
    is_void = true_class == void
    is_segment = class_id != void
    is_crowd = tf.zeros_like(is_void)
    if ignore_crowd:
        is_thing = tf.reduce_any(true_class[:, tf.newaxis] == tf.constant(dataset_info.thing_ids, tf.int64), axis=1)
        is_crowd = is_thing & (true_label % divisor == 0)

    # One row for each pair of labels that occurs, of which there are few; never a table of all pairs.
    num_true, num = tf.size(true_label), tf.size(label)
    true_area = tf.math.unsorted_segment_sum(pixels, true_index, num_true)
    area = tf.math.unsorted_segment_sum(pixels, index, num)
    pair_is_void, pair_is_crowd = tf.gather(is_void, true_index), tf.gather(is_crowd, true_index)
    same_class = tf.gather(true_class, true_index) == tf.gather(class_id, index)
    zero = tf.zeros_like(pixels)
    on_void = tf.math.unsorted_segment_sum(tf.where(pair_is_void, pixels, zero), index, num)
    union = tf.gather(true_area, true_index) + tf.gather(area, index) - pixels - tf.gather(on_void, index)
    matched = same_class & (2 * pixels > union) & ~pair_is_crowd & ~pair_is_void & tf.gather(is_segment, index)
    on_crowd = tf.math.unsorted_segment_sum(tf.where(same_class & pair_is_crowd, pixels, zero), index, num)

    one = tf.cast(matched, tf.int64)
    found = tf.math.unsorted_segment_sum(one, true_index, num_true)
    explained = tf.math.unsorted_segment_sum(one, index, num)
    missed = ~is_void & ~is_crowd & (found == 0)
    wrong = is_segment & (explained == 0) & (2 * (on_void + on_crowd) <= area)
    iou = tf.where(matched, tf.math.divide_no_nan(tf.cast(pixels, tf.float64), tf.cast(union, tf.float64)), 0.0)

    def by_class(values, classes):
        return tf.math.unsorted_segment_sum(values, classes, dataset_info.num_semantic_channels)

    pair_class = tf.gather(class_id, index)
    return GraphCounts(
        by_class(iou, pair_class),
        by_class(one, pair_class),
        by_class(tf.cast(wrong, tf.int64), class_id),
        by_class(tf.cast(missed, tf.int64), true_class),
    )


def _overlap(truth, prediction):
    """Labels of both maps, and for each pair of them that occurs: its places among them, and its pixels; int64."""
    truth, prediction = (tf.cast(tf.reshape(label_map, [-1]), tf.int64) for label_map in (truth, prediction))
    # Runs of pixels along rows in which neither map changes are far fewer than pixels.
    changes = (truth[1:] != truth[:-1]) | (prediction[1:] != prediction[:-1])
    starts = tf.concat([[0], tf.where(changes)[:, 0] + 1], axis=0)
    lengths = tf.concat([starts[1:], [tf.size(truth, tf.int64)]], axis=0) - starts
    true_label, true_index = tf.unique(tf.gather(truth, starts))
    label, index = tf.unique(tf.gather(prediction, starts))
    num = tf.size(label)
    pair, pair_index = tf.unique(true_index * num + index)
    pixels = tf.math.unsorted_segment_sum(lengths, pair_index, tf.size(pair))
    return true_label, pair // num, label, pair % num, pixels
