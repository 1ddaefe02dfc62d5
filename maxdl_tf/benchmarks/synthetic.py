"""A batch without a data set, for measurements of time and memory."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data.panoptic import TrainBatch
from maxdl_tf.data.targets import panoptic_targets

_BLOCKS = 6  # Blocks along each side of an image.
_SEGMENTS = 12  # About the number of segments in an image of COCO.


def synthetic_batch(
    dataset_info: DatasetInfo, *, crop_size: tuple[int, int], batch_size: int, max_things: int = 128
) -> TrainBatch:
    """Makes noise images with random blocks of things, stuff and void; equal arguments give equal batches.

    Args:
      dataset_info: Class table.
      crop_size: (height, width).
      batch_size: Number of images.
      max_things: Largest number of things per image; see `panoptic_targets`.
    """
    random = np.random.default_rng(0)
    labels = [dataset_info.void]
    for number in range(1, _SEGMENTS):
        class_id = int(random.choice(dataset_info.class_order))
        instance = number if class_id in dataset_info.thing_ids else 0
        labels.append(class_id * dataset_info.label_divisor + instance % dataset_info.label_divisor)
    blocks = np.array(labels, np.int32)[random.integers(0, _SEGMENTS, [batch_size, _BLOCKS, _BLOCKS])]
    rows, columns = (np.arange(side) * _BLOCKS // side for side in crop_size)
    label_map = tf.constant(blocks[:, rows][:, :, columns])
    return TrainBatch(
        images=tf.constant(random.uniform(0, 255, [batch_size, *crop_size, 3]).astype(np.float32)),
        targets=panoptic_targets(label_map, dataset_info, max_things=max_things),
        image_ids=tf.constant([f"synthetic{number}" for number in range(batch_size)]),
    )
