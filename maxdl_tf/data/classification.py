"""TFRecord shards of classified images to batches for training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data import classification_transforms, example_schema, record_streams, transforms
from maxdl_tf.structs import Tensor


class ClassificationBatch(NamedTuple):
    """Crops and their classes.

    Attributes:
      images: float32 [batch, height, width, 3], 0..255.
      targets: int32 [batch], place of each image's class in `DatasetInfo.class_order`.
      image_ids: string [batch].
    """

    images: Tensor
    targets: Tensor
    image_ids: Tensor


def train_batches(
    file_pattern: str | Sequence[str],
    dataset_info: DatasetInfo,
    *,
    crop_size: tuple[int, int],
    augmentation: transforms.Augmentation | None = None,
    **stream_options,
) -> tf.data.Dataset:
    """Endless shuffled `ClassificationBatch`es of random crops.

    Args:
      file_pattern: One or more globs of TFRecord shards.
      dataset_info: The class table.
      crop_size: (height, width).
      augmentation: Random changes; see `classification_transforms.train_transform`.
      **stream_options: For `record_streams.endless_batches`: batch size, shuffling, seed and sharding.

    Raises:
      UserError: If a pattern matches no file.
    """
    augmentation = augmentation or transforms.Augmentation()

    def make_crop(serialized: Tensor, seed: Tensor) -> ClassificationBatch:
        image, label, image_id = read_example(serialized, dataset_info)
        crop = classification_transforms.train_transform(
            image, crop_size=crop_size, augmentation=augmentation, seed=seed
        )
        return ClassificationBatch(crop, label, image_id)

    return record_streams.endless_batches(file_pattern, make_crop, **stream_options)


def evaluation_batches(
    file_pattern: str | Sequence[str],
    dataset_info: DatasetInfo,
    *,
    crop_size: tuple[int, int],
    batch_size: int,
    max_images: int | None = None,
    skip_damaged: bool = False,
) -> tf.data.Dataset:
    """The middle of all images once, in the order of the files; the last batch may be smaller.

    Args:
      file_pattern: One or more globs of TFRecord shards.
      dataset_info: The class table.
      crop_size: (height, width).
      batch_size: Images in a batch.
      max_images: Only the first ones.
      skip_damaged: Leave out damaged records, as `record_streams.endless_batches` does.

    Raises:
      UserError: If a pattern matches no file.
    """

    def make_example(serialized: Tensor) -> ClassificationBatch:
        image, label, image_id = read_example(serialized, dataset_info)
        return ClassificationBatch(classification_transforms.evaluation_transform(image, crop_size), label, image_id)

    dataset = record_streams.examples_in_order(
        file_pattern, make_example, max_images=max_images, skip_damaged=skip_damaged
    )
    return dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE)


def read_example(serialized: Tensor, dataset_info: DatasetInfo) -> tuple[Tensor, Tensor, Tensor]:
    """Image, place of its class in the class order, and id of an example whose class is known to be in the table."""
    example = example_schema.parse_classified_example(serialized)
    is_class = tf.equal(example.label, tf.constant(dataset_info.class_order, tf.int64))
    check = tf.debugging.Assert(
        tf.reduce_any(is_class),
        [
            "image",
            example.image_id,
            "has the label",
            example.label,
            f", and the class table of {dataset_info.name} has {len(dataset_info.classes)} classes from "
            f"{min(dataset_info.class_order)} to {max(dataset_info.class_order)}; is it the one of this data set?",
        ],
    )
    with tf.control_dependencies([check] if check is not None else []):
        return example.image, tf.argmax(is_class, output_type=tf.int32), example.image_id
