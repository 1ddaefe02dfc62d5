"""The two encodings of panoptic segmentation: label values, and the colors of COCO's PNGs."""

from __future__ import annotations

import numpy as np

MAX_SEGMENT_ID = 2**24 - 1  # The largest number in the three bytes of an RGB pixel.


def encode_label(class_id, instance, label_divisor: int):
    """Returns `class_id * label_divisor + instance` of numbers, arrays or tensors of any shape."""
    return class_id * label_divisor + instance


def decode_label(label, label_divisor: int):
    """Returns (class_id, instance); the inverse of `encode_label`."""
    return label // label_divisor, label % label_divisor


def largest_instance_to_paste(label_divisor: int) -> int:
    """Largest instance number in training with copy-paste, which numbers pasted instances down from the divisor."""
    return label_divisor // 2 - 1


def color_to_id(color: np.ndarray) -> np.ndarray:
    """Converts the colors of a COCO panoptic PNG to segment ids: red + 256 green + 65536 blue.

    Args:
      color: uint8 [..., 3], RGB.

    Returns:
      int32 [...].
    """
    red, green, blue = (color[..., channel].astype(np.int32) for channel in range(3))
    return red + 256 * green + 65536 * blue


def id_to_color(segment_id: np.ndarray) -> np.ndarray:
    """Converts int [...] in 0..2^24-1 to uint8 [..., 3]; the inverse of `color_to_id`."""
    segment_id = np.asarray(segment_id)
    color = np.empty((*segment_id.shape, 3), np.uint8)
    for channel in range(3):
        color[..., channel] = segment_id >> 8 * channel & 255
    return color
