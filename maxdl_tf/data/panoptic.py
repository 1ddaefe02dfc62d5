"""TFRecord shards to panoptic batches for training and evaluation (architecture section 8)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from maxdl_tf import panoptic_ids
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data import decoding, examples, record_streams, transforms
from maxdl_tf.data.copy_paste import copy_paste, padding_label, random_choice
from maxdl_tf.data.targets import panoptic_targets
from maxdl_tf.structs import PanopticTargets, Tensor


class PanopticExample(NamedTuple):
    """A decoded record.

    Attributes:
      image: uint8 [height, width, 3], RGB.
      label: int32 [height, width], class id * label divisor + instance.
      image_id: scalar string, the file name of the image without its extension.
    """

    image: Tensor
    label: Tensor
    image_id: Tensor


class TrainBatch(NamedTuple):
    """Crops and their ground truth.

    Attributes:
      images: float32 [batch, height, width, 3], 0..255.
      targets: Targets at the size of the crop.
      image_ids: string [batch]. Images whose segments were pasted are not named.
    """

    images: Tensor
    targets: PanopticTargets
    image_ids: Tensor


class EvaluationBatch(NamedTuple):
    """Whole images, and their ground truth at the original size and as targets.

    Attributes:
      images: float32 [batch, height, width, 3], 0..255, resized to fit and padded on the right and at the bottom.
      resized_size: int32 [batch, 2], (height, width) of the image without padding.
      raw_size: int32 [batch, 2], original (height, width) of the image and the label map.
      label_maps: int32 [batch, largest raw height, largest raw width], void outside the raw size of the image.
      image_ids: string [batch].
      targets: Targets at the size of `images`; padding is void.
    """

    images: Tensor
    resized_size: Tensor
    raw_size: Tensor
    label_maps: Tensor
    image_ids: Tensor
    targets: PanopticTargets


def train_batches(
    file_pattern: str | Sequence[str],
    dataset_info: DatasetInfo,
    *,
    crop_size: tuple[int, int],
    augmentation: transforms.Augmentation | None = None,
    enlarge: bool = True,
    tile: int = 0,
    small_instance_weight: float = 1.0,
    small_instance_area: int = 4096,
    max_things: int = 128,
    **stream_options,
) -> tf.data.Dataset:
    """Makes endless shuffled `TrainBatch`es of random crops.

    Args:
      file_pattern: One or more globs of TFRecord shards.
      dataset_info: The class table.
      crop_size: (height, width).
      augmentation: Random changes; None for those of the reference.
      enlarge: Whether images smaller than the crop are enlarged before their random scale.
      tile: As in `transforms.train_transform`.
      small_instance_weight: Weight of small instances in the semantic loss; see `panoptic_targets`.
      small_instance_area: Area in pixels of the crop below which an instance is small.
      max_things: Largest number of things per crop.
      **stream_options: Arguments of `record_streams.endless_batches`: batch size, shuffling, seed, sharding.

    Raises:
      UserError: As in `record_streams.endless_batches`.
    """
    augmentation = augmentation or transforms.Augmentation()

    def make_crop(serialized: Tensor, seed: Tensor, pasted: Tensor | None = None) -> TrainBatch:
        return train_example(
            serialized,
            dataset_info,
            pasted=pasted,
            crop_size=crop_size,
            augmentation=augmentation,
            enlarge=enlarge,
            tile=tile,
            seed=seed,
            small_instance_weight=small_instance_weight,
            small_instance_area=small_instance_area,
            max_things=max_things,
        )

    pairs = augmentation.copy_paste is not None
    return record_streams.endless_batches(file_pattern, make_crop, pairs=pairs, **stream_options)


def train_example(
    serialized: Tensor,
    dataset_info: DatasetInfo,
    *,
    crop_size: tuple[int, int],
    augmentation: transforms.Augmentation,
    seed: Tensor,
    enlarge: bool = True,
    tile: int = 0,
    pasted: Tensor | None = None,
    **target_options,
) -> TrainBatch:
    """Makes one random crop: an element of `train_batches` without the batch dimension.

    Args:
      serialized: scalar string, a record.
      dataset_info: The class table.
      crop_size: (height, width).
      augmentation: Random changes.
      seed: int64 [2]: the seed of the run and the number of the example in the run.
      enlarge: As in `train_batches`.
      tile: As in `train_batches`.
      pasted: scalar string, the record whose segments `augmentation.copy_paste` pastes.
      **target_options: Arguments of `panoptic_targets`.
    """
    options = augmentation.copy_paste
    read = functools.partial(read_example, dataset_info=dataset_info, for_pasting=options is not None)
    transform = functools.partial(transforms.train_transform, crop_size=crop_size, enlarge=enlarge, tile=tile)
    example = read(serialized)
    crop = transform(example.image, example.label, augmentation=augmentation, void=dataset_info.void, seed=seed)
    if options is not None:
        other = read(pasted)
        crop_seed, choice_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
        other_crop = transform(
            other.image,
            other.label,
            augmentation=augmentation.of_pasted(),
            void=padding_label(dataset_info),
            seed=crop_seed,
        )
        choose = functools.partial(random_choice, choice_seed)
        crop = copy_paste(*crop, *other_crop, options=options, dataset_info=dataset_info, choose=choose)
    image, label_map = crop
    return TrainBatch(image, panoptic_targets(label_map, dataset_info, **target_options), example.image_id)


def evaluation_batches(
    file_pattern: str | Sequence[str],
    dataset_info: DatasetInfo,
    *,
    crop_size: tuple[int, int],
    batch_size: int,
    enlarge: bool = True,
    max_images: int | None = None,
    skip_damaged: bool = False,
    **target_options,
) -> tf.data.Dataset:
    """Makes `EvaluationBatch`es of all images once, in the order of the files; the last batch may be smaller.

    Args:
      file_pattern: One or more globs of TFRecord shards.
      dataset_info: The class table.
      crop_size: (height, width).
      batch_size: Images per batch.
      enlarge: Whether images smaller than the crop are enlarged.
      max_images: Number of images; None for all.
      skip_damaged: Whether to skip damaged records, as in `record_streams.endless_batches`.
      **target_options: Arguments of `panoptic_targets`.

    Raises:
      UserError: As in `record_streams.endless_batches`.
    """

    def make_example(serialized: Tensor) -> EvaluationBatch:
        example = read_example(serialized, dataset_info)
        image, resized_size = transforms.evaluation_transform(example.image, crop_size, enlarge)
        label_map = transforms.resize_labels(example.label, resized_size)
        label_map = transforms.pad_labels(label_map, crop_size, dataset_info.void)
        targets = panoptic_targets(label_map, dataset_info, **target_options)
        return EvaluationBatch(image, resized_size, tf.shape(example.label), example.label, example.image_id, targets)

    dataset = record_streams.examples_in_order(
        file_pattern, make_example, max_images=max_images, skip_damaged=skip_damaged
    )
    dataset = dataset.padded_batch(
        batch_size,
        padding_values=EvaluationBatch(
            images=0.0,
            resized_size=0,
            raw_size=0,
            label_maps=tf.constant(dataset_info.void, tf.int32),
            image_ids="",
            targets=PanopticTargets(0, 0.0, 0, 0),  # All of one size.
        ),
    )
    return dataset.prefetch(tf.data.AUTOTUNE)


def whole_examples(
    file_pattern: str | Sequence[str],
    dataset_info: DatasetInfo,
    *,
    max_images: int | None = None,
    skip_damaged: bool = False,
) -> tf.data.Dataset:
    """Makes `PanopticExample`s of all images once, at their own sizes, in the order of the files.

    Args:
      file_pattern: One or more globs of TFRecord shards.
      dataset_info: The class table.
      max_images: Number of images; None for all.
      skip_damaged: Whether to skip damaged records, as in `record_streams.endless_batches`.

    Raises:
      UserError: As in `record_streams.endless_batches`.
    """
    read = functools.partial(read_example, dataset_info=dataset_info)
    return record_streams.examples_in_order(file_pattern, read, max_images=max_images, skip_damaged=skip_damaged)


class MostSegments(NamedTuple):
    """The image with the largest number of segments.

    Attributes:
      count: Number of its segments: things, and stuff classes. Void and crowds do not count.
      image_id: Its id.
    """

    count: int
    image_id: str


def most_segments(
    file_pattern: str | Sequence[str], dataset_info: DatasetInfo, max_images: int, *, for_pasting: bool = False
) -> MostSegments:
    """Finds the largest number of segments in one of the first images.

    Args:
      file_pattern: One or more globs of TFRecord shards.
      dataset_info: The class table.
      max_images: Number of images to look at.
      for_pasting: As in `read_example`.

    Raises:
      UserError: A pattern matches no file.
      tf.errors.DataLossError, tf.errors.InvalidArgumentError: A record is damaged or cannot be used.
    """
    things = tf.constant(dataset_info.thing_ids, tf.int32)

    def count(serialized: Tensor) -> tuple[Tensor, Tensor]:
        example = read_example(serialized, dataset_info, for_pasting=for_pasting)
        labels, _ = tf.unique(tf.reshape(example.label, [-1]))
        class_id, instance = panoptic_ids.decode_label(labels, dataset_info.label_divisor)
        is_thing = tf.reduce_any(class_id[:, tf.newaxis] == things, axis=1)
        is_segment = (class_id != dataset_info.ignore_label) & ~(is_thing & (instance == 0))
        return tf.reduce_sum(tf.cast(is_segment, tf.int32)), example.image_id

    found = MostSegments(0, "")
    for segments, image_id in record_streams.examples_in_order(file_pattern, count, max_images=max_images):
        if int(segments) > found.count:
            found = MostSegments(int(segments), image_id.numpy().decode(errors="replace"))
    return found


def read_example(serialized: Tensor, dataset_info: DatasetInfo, *, for_pasting: bool = False) -> PanopticExample:
    """Decodes a record and checks its classes against the class table.

    Args:
      serialized: scalar string.
      dataset_info: The class table.
      for_pasting: Whether to check also that instance numbers leave room for pasted instances.

    Raises:
      tf.errors.InvalidArgumentError: As `parse_example`, the table lacks a class of the record, or an instance number
        is too large.
    """
    example = parse_example(serialized)
    known = tf.constant([*dataset_info.class_order, dataset_info.ignore_label])
    labels, _ = tf.unique(tf.reshape(example.label, [-1]))
    class_ids, _ = tf.unique(labels // dataset_info.label_divisor)
    unknown = tf.boolean_mask(class_ids, tf.reduce_all(class_ids[:, tf.newaxis] != known, axis=1))
    checks = [
        tf.debugging.Assert(
            tf.equal(tf.size(unknown), 0),
            [
                "image",
                example.image_id,
                f"has classes that the class table of {dataset_info.name} lacks:",
                unknown,
                "; does dataset_info belong to this data set?",
            ],
        )
    ]
    if for_pasting:
        divisor = dataset_info.label_divisor
        instance, limit = tf.reduce_max(labels % divisor), panoptic_ids.largest_instance_to_paste(divisor)
        fix = (
            f"; copy_paste allows up to {limit}, half of label_divisor; use maxdl-convert with a larger --label_divisor"
        )
        check = tf.debugging.Assert(instance <= limit, ["image", example.image_id, "has instance", instance, fix])
        checks.append(check)
    # Later operations would fail with a less helpful message, so they wait for the checks. Eagerly, they are None.
    with tf.control_dependencies([check for check in checks if check is not None]):
        return example._replace(label=tf.identity(example.label))


def parse_example(serialized: Tensor) -> PanopticExample:
    """Decodes a record, eagerly or in a graph.

    A label map without a format is raw, as in DeepLab2.

    Args:
      serialized: scalar string.

    Raises:
      tf.errors.InvalidArgumentError: A feature is missing, cannot be decoded or contradicts another one.
    """
    strings = (examples.IMAGE_ENCODED, examples.IMAGE_FILENAME, examples.LABEL_ENCODED)
    features = tf.io.parse_single_example(
        serialized,
        {
            **{key: tf.io.FixedLenFeature([], tf.string) for key in strings},
            **{key: tf.io.FixedLenFeature([], tf.int64) for key in (examples.IMAGE_HEIGHT, examples.IMAGE_WIDTH)},
            examples.LABEL_FORMAT: tf.io.FixedLenFeature([], tf.string, default_value="raw"),
        },
    )
    image_id = features[examples.IMAGE_FILENAME]
    image = decoding.decode_image(features[examples.IMAGE_ENCODED], image_id)
    size = tf.stack([features[examples.IMAGE_HEIGHT], features[examples.IMAGE_WIDTH]])
    label_format = features[examples.LABEL_FORMAT]
    is_png = tf.equal(label_format, "png")
    tf.debugging.Assert(
        is_png | tf.equal(label_format, "raw"),
        ["image", image_id, examples.LABEL_FORMAT, label_format, "must be png or raw; convert the data set again"],
    )
    label = tf.cond(
        is_png,
        lambda: decoding.decode_png_label(features[examples.LABEL_ENCODED], image_id),
        lambda: tf.reshape(tf.io.decode_raw(features[examples.LABEL_ENCODED], tf.int32), size),
    )
    label.set_shape([None, None])
    for name, tensor in (("image", image), ("label map", label)):
        got = tf.shape(tensor, out_type=tf.int64)[:2]
        tf.debugging.Assert(
            tf.reduce_all(got == size),
            ["image", image_id, "has a", name, "of size", got, "but the record states", size, "; convert it again"],
        )
    return PanopticExample(image, label, image_id)
