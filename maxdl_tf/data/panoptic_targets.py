"""Label maps to the ground truth that the losses want (architecture section 5)."""

from __future__ import annotations

import tensorflow as tf

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.structs import PanopticTargets, Tensor


def panoptic_targets(
    label_map: Tensor,
    dataset_info: DatasetInfo,
    *,
    small_instance_weight: float = 1.0,
    small_instance_area: int = 4096,
    max_things: int = 128,
) -> PanopticTargets:
    """Targets of one crop or of a batch of crops.

    An instance of a thing class is all pixels of one label value. Instance 0 of a thing class is a crowd: it keeps its
    class in `semantic` but is no thing. Things are numbered in raster order of their first pixel. Of more than
    `max_things` in a crop the largest stay (those of lower label value where areas are equal), and the pixels of the
    rest are treated as crowds are: no mask is asked to cover them. (The reference stops the program there.)

    Only fixed-size operations are used, so that XLA can compile it when the crop's size is static.

    Args:
      label_map: int32 [height, width] or [batch, height, width], class id * label divisor + instance. Classes must be
        in `dataset_info` or its ignore_label.
      dataset_info: The class table.
      small_instance_weight: Weight in the semantic loss of pixels whose thing instance is small (L: 3).
      small_instance_area: Instances of fewer pixels than this, within the crop, are small.
      max_things: Length of `thing_id_class`.

    Returns:
      PanopticTargets, without its batch dimension if `label_map` has none.
    """
    if label_map.shape.rank == 2:
        batch_of_one = panoptic_targets(
            label_map[tf.newaxis],
            dataset_info,
            small_instance_weight=small_instance_weight,
            small_instance_area=small_instance_area,
            max_things=max_things,
        )
        return PanopticTargets(*(target[0] for target in batch_of_one))

    divisor = dataset_info.label_divisor
    num_classes = dataset_info.num_semantic_channels
    num_labels = num_classes * divisor
    shape = tf.shape(label_map)
    labels = tf.reshape(label_map, [shape[0], -1])  # [batch, pixels]
    num_pixels = tf.shape(labels)[1]

    semantic = tf.truncatediv(labels, divisor)
    is_thing_class = tf.constant([class_id in dataset_info.thing_ids for class_id in range(num_classes)])
    is_thing = tf.gather(is_thing_class, semantic) & (labels != semantic * divisor)

    # Tables with a row for every possible label value, one after the other for the images of the batch; stuff, crowd
    # and void pixels all count in row 0, which no thing can have.
    num_rows = tf.maximum(num_labels, max_things)
    row = tf.where(is_thing, labels, 0) + (tf.range(shape[0]) * num_rows)[:, tf.newaxis]
    area = tf.math.unsorted_segment_sum(tf.cast(is_thing, tf.int32), row, shape[0] * num_rows)
    raster_position = tf.where(is_thing, tf.range(num_pixels), num_pixels)
    first_position = tf.math.unsorted_segment_min(raster_position, row, shape[0] * num_rows)

    area_of_label = tf.reshape(area, [shape[0], num_rows])
    kept_area, kept_label = tf.math.top_k(area_of_label, k=max_things)  # Lower index first among equals.
    kept_position = tf.where(
        kept_area > 0,
        tf.gather(tf.reshape(first_position, [shape[0], num_rows]), kept_label, batch_dims=1),
        num_pixels,
    )
    raster_order = tf.argsort(kept_position, axis=1, stable=True)
    kept_label = tf.gather(kept_label, raster_order, batch_dims=1)  # [batch, max_things], by thing id
    exists = tf.gather(kept_area, raster_order, batch_dims=1) > 0

    thing_id_of_row = tf.fill([shape[0] * num_rows], -1)
    kept_row = kept_label + (tf.range(shape[0]) * num_rows)[:, tf.newaxis]
    thing_id = tf.where(exists, tf.range(max_things)[tf.newaxis], -1)
    thing_id_of_row = tf.tensor_scatter_nd_update(
        thing_id_of_row, tf.reshape(kept_row, [-1, 1]), tf.reshape(thing_id, [-1])
    )

    is_small = is_thing & (tf.gather(area, row) < small_instance_area)
    targets = PanopticTargets(
        semantic=tf.reshape(semantic, shape),
        semantic_weight=tf.reshape(tf.where(is_small, small_instance_weight, 1.0), shape),
        thing_id_mask=tf.reshape(tf.gather(thing_id_of_row, row), shape),
        thing_id_class=tf.where(exists, kept_label // divisor, -1),
    )
    targets.thing_id_class.set_shape([label_map.shape[0], max_things])
    for target in targets[:3]:
        target.set_shape(label_map.shape)
    return targets
