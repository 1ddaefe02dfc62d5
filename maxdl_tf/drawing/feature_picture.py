"""Pixel features and mask embeddings as colors, as in the paper's figure for D = 3."""

from __future__ import annotations

import numpy as np
from PIL import Image

from maxdl_tf.drawing.label_maps import side_by_side


def feature_picture(
    image: np.ndarray, pixel: np.ndarray, slot: np.ndarray, mask: np.ndarray, void: np.ndarray
) -> np.ndarray:
    """The image, its pixel features, and its masks in the colors of their embeddings, side by side.

    A pixel belongs to the mask whose embedding has the direction of its feature, so equal colors in the last two
    pictures make a mask. Features of three channels are shown as colors, -1..1 from dark to bright. Other features are
    reduced to three principal components.

    Args:
      image: uint8 [h, w, 3], RGB.
      pixel: float [h', w', channels], L2-normalized pixel features; the corners are those of the image.
      slot: int [h', w'], mask of each pixel.
      mask: float [slots, channels], mask embeddings.
      void: bool [h, w], void pixels of the prediction; they become black.

    Returns:
      uint8 [height, width, 3].
    """
    direction = mask / np.maximum(np.linalg.norm(mask, axis=-1, keepdims=True), 1e-6)
    project = _projection(pixel, direction[np.unique(slot)])
    size = (image.shape[1], image.shape[0])
    pixels = np.asarray(Image.fromarray(_color(project(pixel))).resize(size, Image.Resampling.BILINEAR))
    masks = np.asarray(Image.fromarray(_color(project(direction))[slot]).resize(size, Image.Resampling.NEAREST))
    masks = np.where(void[..., np.newaxis], 0, masks).astype(np.uint8)
    return side_by_side([image, pixels, masks], ["image", "pixels", "masks"])


def _projection(pixel: np.ndarray, direction: np.ndarray):
    """A function from [..., channels] to [..., 3] in -1..1, for both pixels and masks."""
    channels = pixel.shape[-1]
    if channels == 3:
        return lambda values: values
    # Masks weigh as much as pixels; otherwise masks of few pixels would have no distinct color.
    pixels = pixel.reshape(-1, channels)
    samples = np.concatenate([pixels, np.repeat(direction, -(-len(pixels) // len(direction)), axis=0)])
    center = samples.mean(axis=0)
    _, axes = np.linalg.eigh(np.cov(samples - center, rowvar=False).reshape(channels, channels))
    axes = axes[:, ::-1][:, :3]
    axes = np.pad(axes, [(0, 0), (0, 3 - axes.shape[1])])
    # A common scale keeps a component that is only noise dark.
    reach = max(np.abs((samples - center) @ axes).max(), 1e-6)
    return lambda values: (values - center) @ axes / reach


def _color(values: np.ndarray) -> np.ndarray:
    """-1..1 to 0..255."""
    return np.clip(127.5 * (values + 1.0) + 0.5, 0, 255).astype(np.uint8)
