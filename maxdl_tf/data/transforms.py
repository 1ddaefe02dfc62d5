"""Images of any size to crops: resize, random scale, color, crop, pad, flip (architecture section 8).

All randomness comes from a seed, through operations with the same results eagerly, in a graph and in tf.data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from maxdl_tf.data import color_augmentation
from maxdl_tf.data.copy_paste import CopyPaste
from maxdl_tf.structs import Tensor

PADDING = 127.5  # Becomes 0 when the model normalizes its input.


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images.

    Attributes:
      min_scale: Smallest random scale.
      max_scale: Largest random scale; no scaling if both are 1.
      scale_step: Approximate distance between two scales.
      flip: Whether to flip images horizontally with probability 1/2.
      color: Whether to change colors (the reference: L only).
      color_magnitude: Factor of the strength of color changes.
      copy_paste: What to paste of a second image; None for nothing.
      rotate: Whether to rotate by a random multiple of 90 degrees.
      contrast: Largest relative change of the distances from the mean color.

    Classification ignores the last three.
    """

    min_scale: float = 0.5
    max_scale: float = 1.5
    scale_step: float = 0.1
    flip: bool = True
    color: bool = False
    color_magnitude: float = 1.0
    copy_paste: CopyPaste | None = None
    rotate: bool = False
    contrast: float = 0.0

    def scales(self) -> np.ndarray:
        """float32 [scales], evenly spaced.

        The defaults give 10 scales, as in the reference, and not 11: float32 0.1 is slightly more than a tenth.
        """
        low, high, step = np.float32([self.min_scale, self.max_scale, self.scale_step])
        count = int((float(high) - float(low)) / float(step) + 1)
        return low + (high - low) / np.float32(max(count - 1, 1)) * np.arange(count, dtype=np.float32)

    def of_pasted(self) -> Augmentation:
        """The random changes of the image that `copy_paste` pastes."""
        factor = self.copy_paste.scale
        return replace(self, min_scale=factor * self.min_scale, max_scale=factor * self.max_scale)


def train_transform(
    image: Tensor,
    label_map: Tensor,
    *,
    crop_size: tuple[int, int],
    augmentation: Augmentation,
    void: int,
    seed: Tensor,
    enlarge: bool = True,
    tile: int = 0,
) -> tuple[Tensor, Tensor]:
    """Makes a random crop for training.

    All offsets of an image inside the crop are equally likely. The padding of the reference differs: there, an image
    never touches the right or lower border of the crop.

    Args:
      image: uint8 [h, w, 3].
      label_map: int32 [h, w].
      crop_size: (height, width).
      augmentation: Random changes.
      void: Label value of padding.
      seed: int [2], the only source of randomness.
      enlarge: As in `resized_size`.
      tile: Pixels of the image that the crop's shorter side shows at scale 1. One resize keeps the image's details. 0:
        the image is first resized to fit into the crop, as in the reference.

    Returns:
      float32 [height, width, 3], 0..255, and int32 [height, width].
    """
    draws = tf.random.stateless_uniform([6 + color_augmentation.NUM_DRAWS], seed)
    scales = augmentation.scales()
    scale = tf.gather(scales, _pick(draws[0], len(scales)))
    image = tf.cast(image, tf.float32)
    if augmentation.rotate or augmentation.contrast:  # Their draws leave those of the other changes as they are.
        turn, strength = tf.unstack(tf.random.stateless_uniform([2], tf.random.experimental.stateless_fold_in(seed, 1)))
    if augmentation.rotate:
        quarters = _pick(turn, 4)
        image = tf.image.rot90(image, quarters)
        label_map = tf.image.rot90(label_map[:, :, tf.newaxis], quarters)[:, :, 0]
    if augmentation.contrast:
        mean = tf.reduce_mean(image, axis=[0, 1])
        factor = 1.0 + augmentation.contrast * (2.0 * strength - 1.0)
        image = tf.clip_by_value(mean + factor * (image - mean), 0.0, 255.0)
    if tile:
        sizes = [scaled_size(tf.shape(image)[:2], scale * np.float32(min(crop_size) / tile))]
    else:
        sizes = [resized_size(tf.shape(image)[:2], crop_size, enlarge)]
        if not np.all(scales == 1):
            sizes.append(scaled_size(sizes[0], scale))
    for size in sizes:
        image = resize_image(image, size)
        label_map = resize_labels(label_map, size)
    if augmentation.color:
        image = color_augmentation.augment_color(tf.cast(image, tf.uint8), draws[6:], augmentation.color_magnitude)
        image = tf.cast(image, tf.float32)
    visible = tf.minimum(size, crop_size)
    offset = _pick(draws[1:3], size - visible + 1)
    image = tf.slice(image, tf.pad(offset, [[0, 1]]), tf.concat([visible, [3]], axis=0))
    label_map = tf.slice(label_map, offset, visible)
    offset = _pick(draws[3:5], crop_size - visible + 1)
    image = pad_image(image, crop_size, offset)
    label_map = pad_labels(label_map, crop_size, void, offset)
    if augmentation.flip:
        flip = draws[5] < 0.5
        image = tf.cond(flip, lambda: image[:, ::-1], lambda: image)
        label_map = tf.cond(flip, lambda: label_map[:, ::-1], lambda: label_map)
    return image, label_map


def evaluation_transform(image: Tensor, crop_size: tuple[int, int], enlarge: bool = True) -> tuple[Tensor, Tensor]:
    """Resizes an image to fit into the crop and pads it on the right and at the bottom.

    Args:
      image: uint8 [h, w, 3].
      crop_size: (height, width).
      enlarge: As in `resized_size`.

    Returns:
      float32 [height, width, 3], 0..255, and int32 [2], the (height, width) of the image in it.
    """
    size = resized_size(tf.shape(image)[:2], crop_size, enlarge)
    return pad_image(resize_image(tf.cast(image, tf.float32), size), crop_size), size


def resized_size(size: Tensor, crop_size: tuple[int, int], enlarge: bool = True) -> Tensor:
    """Computes the size of a resized image: the largest that fits into the crop with the same aspect ratio.

    The image is enlarged until both sides reach the crop, then shrunk until both fit. Both steps round down in float32,
    so the long side is that of the crop or, rarely, one less.

    Args:
      size: int [2], (height, width).
      crop_size: (height, width).
      enlarge: Whether an image that is smaller than the crop is enlarged. Otherwise it keeps its size.

    Returns:
      int32 [2], (height, width).
    """
    crop = tf.cast(crop_size, tf.float32)
    size = tf.cast(size, tf.float32)
    if enlarge:
        size = tf.floor(size * tf.reduce_max(crop / size))
    size = tf.floor(size * tf.minimum(tf.reduce_min(crop / size), 1.0))
    return tf.cast(tf.maximum(size, 1.0), tf.int32)


def scaled_size(size: Tensor, scale: Tensor) -> Tensor:
    """Returns int32 [2], `size` times `scale` (float32), rounded down."""
    return tf.maximum(tf.cast(tf.cast(size, tf.float32) * scale, tf.int32), 1)


def resize_image(image: Tensor, size: Tensor) -> Tensor:
    """Resizes float32 [h, w, 3] to float32 [size[0], size[1], 3]: bilinear, with aligned corners."""
    return tf.raw_ops.ResizeBilinear(images=image[tf.newaxis], size=size, align_corners=True)[0]


def resize_labels(label_map: Tensor, size: Tensor) -> Tensor:
    """Resizes numbers [h, w] to [size[0], size[1]]: nearest neighbor, with aligned corners."""
    label_map = label_map[tf.newaxis, :, :, tf.newaxis]
    return tf.raw_ops.ResizeNearestNeighbor(images=label_map, size=size, align_corners=True)[0, :, :, 0]


def pad_image(image: Tensor, size: tuple[int, int], offset: Tensor | tuple[int, int] = (0, 0)) -> Tensor:
    """Pads float32 [h, w, 3] to [size[0], size[1], 3] with gray; its upper left corner is at `offset`."""
    margins = _margins(tf.shape(image)[:2], size, offset)
    padded = tf.pad(image, tf.pad(margins, [[0, 1], [0, 0]]), constant_values=PADDING)
    padded.set_shape([*size, 3])
    return padded


def pad_labels(
    label_map: Tensor, size: tuple[int, int], void: int, offset: Tensor | tuple[int, int] = (0, 0)
) -> Tensor:
    """Pads int32 [h, w] to [size[0], size[1]] with `void`; its upper left corner is at `offset`."""
    padded = tf.pad(label_map, _margins(tf.shape(label_map), size, offset), constant_values=void)
    padded.set_shape(size)
    return padded


def _margins(old_size: Tensor, new_size: tuple[int, int], offset: Tensor | tuple[int, int]) -> Tensor:
    """int32 [2, 2]: margins above and below, left and right."""
    return tf.stack([offset, new_size - old_size - offset], axis=1)


def _pick(draw: Tensor, count: Tensor | int) -> Tensor:
    """Converts a uniform draw from [0, 1) to an integer from 0 to count - 1."""
    return tf.cast(draw * tf.cast(count, tf.float32), tf.int32)
