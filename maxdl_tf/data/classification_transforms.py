"""Images of any size to crops for a classifier, as in the training and evaluation of Inception and ResNets.

All randomness comes from a seed, through operations with the same results eagerly, in a graph and in tf.data.
"""

from __future__ import annotations

import math

import tensorflow as tf

from maxdl_tf.data import color_augmentation, transforms
from maxdl_tf.structs import Tensor

# Width / height of the part of an image that becomes a crop (Szegedy et al., CVPR 2015; arXiv 1409.4842, section 6).
ASPECT_RANGE = (3 / 4, 4 / 3)
# Fraction of the shorter side in the crop of evaluation: 224 of 256, as for ResNets.
EVALUATED_SHARE = 0.875
_TRIES = 10


def train_transform(
    image: Tensor, *, crop_size: tuple[int, int], augmentation: transforms.Augmentation, seed: Tensor
) -> Tensor:
    """Resizes a random part of an image to the crop.

    The area of the part is drawn between 1 / max_scale^2 and 1 / min_scale^2 of the area of the image, and is at most
    the whole image. Inception's 8 % correspond to a max_scale of 3.5. The position of the part is uniform. `scale_step`
    is ignored.

    Args:
      image: uint8 [h, w, 3].
      crop_size: (height, width).
      augmentation: Random changes.
      seed: int [2], the only source of randomness.

    Returns:
      float32 [height, width, 3], 0..255.
    """
    draws = tf.random.stateless_uniform([2 * _TRIES + 3 + color_augmentation.NUM_DRAWS], seed)
    image_size = tf.shape(image)[:2]
    size = _part_size(tf.cast(image_size, tf.float32), augmentation, draws[: 2 * _TRIES])
    draws = draws[2 * _TRIES :]
    offset = tf.cast(draws[:2] * tf.cast(image_size - size + 1, tf.float32), tf.int32)
    part = tf.slice(image, tf.pad(offset, [[0, 1]]), tf.pad(size, [[0, 1]], constant_values=3))
    crop = transforms.resize_image(tf.cast(part, tf.float32), crop_size)
    if augmentation.color:
        crop = color_augmentation.augment_color(tf.cast(crop, tf.uint8), draws[3:], augmentation.color_magnitude)
        crop = tf.cast(crop, tf.float32)
    if augmentation.flip:
        crop = tf.cond(draws[2] < 0.5, lambda: crop[:, ::-1], lambda: crop)
    crop.set_shape([*crop_size, 3])
    return crop


def _part_size(image_size: Tensor, augmentation: transforms.Augmentation, draws: Tensor) -> Tensor:
    """int32 [2], (height, width) of the part of an image, whose size is float32 [2].

    The first of ten draws of area and aspect ratio that fits into the image; if none fits, the largest part within the
    range of aspect ratios.
    """
    largest, smallest = (min(1.0, 1 / scale**2) for scale in (augmentation.min_scale, augmentation.max_scale))
    area = tf.reduce_prod(image_size) * (smallest + (largest - smallest) * draws[:_TRIES])
    low, high = (math.log(aspect) for aspect in ASPECT_RANGE)
    aspect = tf.exp(low + (high - low) * draws[_TRIES:])
    sizes = tf.round(tf.sqrt(tf.stack([area / aspect, area * aspect], axis=1)))  # [tries, 2]
    fits = tf.reduce_all(sizes <= image_size, axis=1)
    height, width = image_size[0], image_size[1]
    most = tf.stack([tf.minimum(height, width / ASPECT_RANGE[0]), tf.minimum(width, height * ASPECT_RANGE[1])])
    size = tf.where(tf.reduce_any(fits), sizes[tf.argmax(fits)], most)
    return tf.cast(tf.maximum(size, 1.0), tf.int32)


def evaluation_transform(image: Tensor, crop_size: tuple[int, int]) -> Tensor:
    """Cuts out the center of an image, resized with the same aspect ratio so that the crop covers 7/8 of a side.

    Args:
      image: uint8 [h, w, 3].
      crop_size: (height, width).

    Returns:
      float32 [height, width, 3], 0..255.
    """
    crop = tf.constant(crop_size, tf.float32)
    image_size = tf.cast(tf.shape(image)[:2], tf.float32)
    size = tf.round(image_size * tf.reduce_max(tf.round(crop / EVALUATED_SHARE) / image_size))
    resized = transforms.resize_image(tf.cast(image, tf.float32), tf.cast(size, tf.int32))
    offset = (tf.cast(size, tf.int32) - crop_size) // 2
    cut = tf.slice(resized, tf.pad(offset, [[0, 1]]), [*crop_size, 3])
    cut.set_shape([*crop_size, 3])
    return cut
