"""Panoptic copy-paste: segments of one training crop are pasted onto another (architecture section 8)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

from maxdl_tf import panoptic_ids
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.structs import Tensor


@dataclass(frozen=True)
class CopyPaste:
    """What is pasted of the second crop. Each kind of segment is "all", "random" or "none".

    Attributes:
      things: Things and crowds.
      stuff: Stuff.
      void: Void pixels. Padding is never pasted.
      scale: Factor of the range of random scales of the second image.
    """

    things: str = "all"
    stuff: str = "random"
    void: str = "none"
    scale: float = 0.5


def padding_label(dataset_info: DatasetInfo) -> int:
    """Label value of padding in the second crop, which differs from that of void pixels."""
    return dataset_info.void + 1


def random_choice(seed: Tensor, num_labels: Tensor) -> Tensor:
    """Chooses labels at random. Each number of chosen labels, from 0 to all, is equally likely.

    Args:
      seed: int [2].
      num_labels: int32, number of labels.

    Returns:
      bool [labels], whether a label is chosen.
    """
    draws = tf.random.stateless_uniform([num_labels + 1], seed)
    num_chosen = tf.cast(draws[0] * tf.cast(num_labels + 1, tf.float32), tf.int32)
    rank = tf.argsort(tf.argsort(draws[1:]))
    return rank < num_chosen


def copy_paste(
    image: Tensor,
    label_map: Tensor,
    pasted_image: Tensor,
    pasted_label_map: Tensor,
    *,
    options: CopyPaste,
    dataset_info: DatasetInfo,
    choose: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Pastes segments of a second crop onto a crop of the same size.

    Segments of the first crop lose the covered pixels and vanish if all are covered.

    Args:
      image: float32 [height, width, 3].
      label_map: int32 [height, width]. No instance exceeds `panoptic_ids.largest_instance_to_paste`, here and
        in `pasted_label_map`.
      pasted_image: float32 [height, width, 3].
      pasted_label_map: int32 [height, width]; padding has `padding_label`.
      options: What is pasted.
      dataset_info: The class table.
      choose: Function of the number of distinct values in `pasted_label_map`, void and padding included. It returns
        bool [labels], the random choice, in raster order of their first pixels; see `random_choice`.

    Returns:
      float32 [height, width, 3] and int32 [height, width].
    """
    divisor = dataset_info.label_divisor
    labels, index = tf.unique(tf.reshape(pasted_label_map, [-1]))
    chosen = choose(tf.size(labels))
    which = {"all": tf.ones_like(chosen), "random": chosen, "none": tf.zeros_like(chosen)}
    class_id, instance = panoptic_ids.decode_label(labels, divisor)
    is_thing = tf.reduce_any(class_id[:, tf.newaxis] == tf.constant(dataset_info.thing_ids, tf.int32), axis=1)
    is_void = class_id == dataset_info.ignore_label
    keep = tf.where(is_thing, which[options.things], tf.where(is_void, which[options.void], which[options.stuff]))
    keep &= labels != padding_label(dataset_info)
    # Instances of both crops stay distinct: those of the second one lie in the upper half of the numbers.
    new_instance = tf.where(instance == 0, 0, divisor - 1 - instance)
    new_labels = panoptic_ids.encode_label(class_id, new_instance, divisor)

    is_pasted = tf.reshape(tf.gather(keep, index), label_map.shape)
    pasted_label_map = tf.reshape(tf.gather(new_labels, index), label_map.shape)
    return (
        tf.where(is_pasted[..., tf.newaxis], pasted_image, image),
        tf.where(is_pasted, pasted_label_map, label_map),
    )
