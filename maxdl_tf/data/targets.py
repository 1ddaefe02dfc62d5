"""Label maps to targets of the losses (architecture section 5)."""

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
    """Makes the targets of a crop or of a batch of crops.

    All pixels with the same label value of a thing class are one thing. Instance 0 of a thing class is a crowd: it
    keeps its class in `semantic` but is not a thing. Things are numbered in raster order of their first pixel. If a
    crop has more than `max_things`, the largest are kept (lower label values first among equal areas), and the others
    are treated as crowds: no mask has to cover them. The reference stops the program in this case.

    All operations have fixed output sizes, so XLA can compile the function if the size of the crop is static.

    Args:
      label_map: int32 [height, width] or [batch, height, width], class id * label divisor + instance. Each class
        is in `dataset_info` or is its ignore_label.
      dataset_info: The class table.
      small_instance_weight: Weight of pixels of small things in the semantic loss (L: 3).
      small_instance_area: Area in pixels of the crop below which a thing is small.
      max_things: Length of `thing_id_class`.

    Returns:
      PanopticTargets; without the batch dimension if `label_map` has none.
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

    # Tables with a row for every possible label value, one table per image of the batch. Stuff, crowd and void pixels
    # count in row 0, which belongs to no thing.
    num_rows = tf.maximum(num_labels, max_things)
    row = tf.where(is_thing, labels, 0) + (tf.range(shape[0]) * num_rows)[:, tf.newaxis]
    area = tf.math.unsorted_segment_sum(tf.cast(is_thing, tf.int32), row, shape[0] * num_rows)
    raster_position = tf.where(is_thing, tf.range(num_pixels), num_pixels)
    first_position = tf.math.unsorted_segment_min(raster_position, row, shape[0] * num_rows)

    area_of_label = tf.reshape(area, [shape[0], num_rows])
    kept_area, kept_label = tf.math.top_k(
        area_of_label, k=max_things
    )  # [batch, max_things], lower index first among equals
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
