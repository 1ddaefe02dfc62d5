"""TFRecord shards to batches for training and evaluation (architecture section 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data import example_schema, record_streams, transforms
from maxdl_tf.data.panoptic_targets import panoptic_targets
from maxdl_tf.structs import PanopticTargets, Tensor


class TrainBatch(NamedTuple):
    """Crops and their ground truth.

    Attributes:
      images: float32 [batch, height, width, 3], 0..255.
      targets: At the size of the crop.
      image_ids: string [batch].
    """

    images: Tensor
    targets: PanopticTargets
    image_ids: Tensor


class EvaluationBatch(NamedTuple):
    """Whole images, and their truth at the size they came in.

    Attributes:
      images: float32 [batch, height, width, 3], 0..255, resized to fit and padded on the right and below.
      resized_size: int32 [batch, 2], (height, width) of the image without padding.
      raw_size: int32 [batch, 2], (height, width) of the image and the label map as they came.
      label_maps: int32 [batch, largest raw height, largest raw width], void right and below of an image's raw size.
      image_ids: string [batch].
    """

    images: Tensor
    resized_size: Tensor
    raw_size: Tensor
    label_maps: Tensor
    image_ids: Tensor


def train_batches(
    file_pattern: str | Sequence[str],
    dataset_info: DatasetInfo,
    *,
    crop_size: tuple[int, int],
    batch_size: int,
    augmentation: transforms.Augmentation | None = None,
    small_instance_weight: float = 1.0,
    small_instance_area: int = 4096,
    max_things: int = 128,
    shuffle_buffer: int = 1000,
    cache: bool = False,
    seed: int | None = None,
    shard_count: int = 1,
    shard_index: int = 0,
    skip_damaged: bool = False,
    service: record_streams.DataService | None = None,
) -> tf.data.Dataset:
    """Endless shuffled batches of random crops.

    Args:
      file_pattern: One or more globs of TFRecord shards.
      dataset_info: The class table.
      crop_size: (height, width).
      batch_size: Images in a batch; the last of one epoch and the first of the next may share a batch.
      augmentation: Random changes; None for the reference's.
      small_instance_weight: See `panoptic_targets`, as for the next two.
      small_instance_area: In pixels of the crop.
      max_things: Things of a crop that are kept as targets.
      shuffle_buffer: Examples in the shuffle buffer.
      cache: Keep the undecoded examples in memory after the first pass.
      seed: Runs with the same seed (and files) get the same batches; None for other ones in each run.
      shard_count: Input pipelines that share the data, one for each worker.
      shard_index: Which of them this is. Workers take whole files if there is one for each, else every n-th example.
      skip_damaged: See `record_streams.endless_batches`.
      service: See `record_streams.endless_batches`.

    Raises:
      UserError: If a pattern matches no file.
    """
    augmentation = augmentation or transforms.Augmentation()

    def make_crop(serialized: Tensor, seed: Tensor) -> TrainBatch:
        return train_example(
            serialized,
            dataset_info,
            crop_size=crop_size,
            augmentation=augmentation,
            small_instance_weight=small_instance_weight,
            small_instance_area=small_instance_area,
            max_things=max_things,
            seed=seed,
        )

    return record_streams.endless_batches(
        file_pattern,
        make_crop,
        batch_size=batch_size,
        shuffle_buffer=shuffle_buffer,
        cache=cache,
        seed=seed,
        shard_count=shard_count,
        shard_index=shard_index,
        skip_damaged=skip_damaged,
        service=service,
    )


def train_example(
    serialized: Tensor,
    dataset_info: DatasetInfo,
    *,
    crop_size: tuple[int, int],
    augmentation: transforms.Augmentation,
    seed: Tensor,
    **target_options,
) -> TrainBatch:
    """One random crop: what a batch of `train_batches` has, without the batch dimension.

    Args:
      serialized: scalar string, a TFRecord example.
      dataset_info: The class table.
      crop_size: (height, width).
      augmentation: Random changes.
      seed: int64 [2]: the seed of the run and the number of the example in it.
      **target_options: For `panoptic_targets`.
    """
    example = read_example(serialized, dataset_info)
    image, label_map = transforms.train_transform(
        example.image,
        example.label,
        crop_size=crop_size,
        augmentation=augmentation,
        void=dataset_info.void,
        seed=seed,
    )
    return TrainBatch(image, panoptic_targets(label_map, dataset_info, **target_options), example.image_id)


def evaluation_batches(
    file_pattern: str | Sequence[str],
    dataset_info: DatasetInfo,
    *,
    crop_size: tuple[int, int],
    batch_size: int,
    max_images: int | None = None,
    shard_count: int = 1,
    shard_index: int = 0,
    skip_damaged: bool = False,
) -> tf.data.Dataset:
    """All images once, in the order of the files; the last batch may be smaller.

    Args:
      file_pattern: One or more globs of TFRecord shards.
      dataset_info: The class table.
      crop_size: (height, width).
      batch_size: Images in a batch.
      max_images: Only the first ones.
      shard_count: Input pipelines that share the images, one for each worker.
      shard_index: Which of them this is.
      skip_damaged: Leave out damaged records, as `record_streams.endless_batches` does.

    Raises:
      UserError: If a pattern matches no file.
    """

    def make_example(serialized: Tensor) -> EvaluationBatch:
        example = read_example(serialized, dataset_info)
        image, resized_size = transforms.evaluation_transform(example.image, crop_size)
        return EvaluationBatch(image, resized_size, tf.shape(example.label), example.label, example.image_id)

    dataset = record_streams.examples_in_order(
        file_pattern,
        make_example,
        max_images=max_images,
        shard_count=shard_count,
        shard_index=shard_index,
        skip_damaged=skip_damaged,
    )
    dataset = dataset.padded_batch(
        batch_size,
        padding_values=EvaluationBatch(
            images=0.0, resized_size=0, raw_size=0, label_maps=tf.constant(dataset_info.void, tf.int32), image_ids=""
        ),
    )
    return dataset.prefetch(tf.data.AUTOTUNE)


def read_example(serialized: Tensor, dataset_info: DatasetInfo) -> example_schema.Example:
    """A decoded example whose classes are known to be in the class table."""
    example = example_schema.parse_example(serialized)
    known = tf.constant([*dataset_info.class_order, dataset_info.ignore_label])
    labels, _ = tf.unique(tf.reshape(example.label, [-1]))
    class_ids, _ = tf.unique(labels // dataset_info.label_divisor)
    unknown = tf.boolean_mask(class_ids, tf.reduce_all(class_ids[:, tf.newaxis] != known, axis=1))
    check = tf.debugging.Assert(
        tf.equal(tf.size(unknown), 0),
        [
            "image",
            example.image_id,
            f"has classes that the class table of {dataset_info.name} lacks:",
            unknown,
            "; is it the dataset_info of this data set?",
        ],
    )
    # What follows fails with less helpful words, so in a graph it must wait; eagerly there is nothing to wait for.
    with tf.control_dependencies([check] if check is not None else []):
        return example._replace(label=tf.identity(example.label))
