"""TFRecord shards of classified images to batches for training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data import classification_transforms, decoding, examples, record_streams, transforms
from maxdl_tf.structs import Tensor


class ClassificationBatch(NamedTuple):
    """Crops and their classes.

    Attributes:
      images: float32 [batch, height, width, 3], 0..255.
      targets: int32 [batch], index of each image's class in `DatasetInfo.class_order`.
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
    """Makes endless shuffled `ClassificationBatch`es of random crops.

    Args:
      file_pattern: One or more globs of TFRecord shards.
      dataset_info: The class table.
      crop_size: (height, width).
      augmentation: Random changes; see `classification_transforms.train_transform`.
      **stream_options: Arguments of `record_streams.endless_batches`: batch size, shuffling, seed, sharding.

    Raises:
      UserError: As in `record_streams.endless_batches`.
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
    """Makes batches of the center of each image, once, in the order of the files; the last batch may be smaller.

    Args:
      file_pattern: One or more globs of TFRecord shards.
      dataset_info: The class table.
      crop_size: (height, width).
      batch_size: Images per batch.
      max_images: Number of images; None for all.
      skip_damaged: Whether to skip damaged records, as in `record_streams.endless_batches`.

    Raises:
      UserError: As in `record_streams.endless_batches`.
    """

    def make_example(serialized: Tensor) -> ClassificationBatch:
        image, label, image_id = read_example(serialized, dataset_info)
        return ClassificationBatch(classification_transforms.evaluation_transform(image, crop_size), label, image_id)

    dataset = record_streams.examples_in_order(
        file_pattern, make_example, max_images=max_images, skip_damaged=skip_damaged
    )
    return dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE)


def read_example(serialized: Tensor, dataset_info: DatasetInfo) -> tuple[Tensor, Tensor, Tensor]:
    """Decodes a record, eagerly or in a graph, and checks its class against the class table.

    Args:
      serialized: scalar string.
      dataset_info: The class table.

    Returns:
      uint8 [height, width, 3], the image; scalar int32, the index of its class in `class_order`; scalar string, the
      image id, empty if the record has no file name.

    Raises:
      tf.errors.InvalidArgumentError: The image or the class is missing, the image cannot be decoded, or the table
        lacks the class.
    """
    features = tf.io.parse_single_example(
        serialized,
        {
            examples.IMAGE_ENCODED: tf.io.FixedLenFeature([], tf.string),
            examples.CLASS_LABEL: tf.io.FixedLenFeature([], tf.int64),
            examples.IMAGE_FILENAME: tf.io.FixedLenFeature([], tf.string, default_value=""),
        },
    )
    class_id, image_id = features[examples.CLASS_LABEL], features[examples.IMAGE_FILENAME]
    image = decoding.decode_image(features[examples.IMAGE_ENCODED], image_id)
    is_class = tf.equal(class_id, tf.constant(dataset_info.class_order, tf.int64))
    check = tf.debugging.Assert(
        tf.reduce_any(is_class),
        [
            "image",
            image_id,
            "has the label",
            class_id,
            f", and the class table of {dataset_info.name} has {len(dataset_info.classes)} classes from "
            f"{min(dataset_info.class_order)} to {max(dataset_info.class_order)}; does it belong to this data set?",
        ],
    )
    with tf.control_dependencies([check] if check is not None else []):
        return image, tf.argmax(is_class, output_type=tf.int32), image_id
