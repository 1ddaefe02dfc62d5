"""Label maps made of what other formats say of each pixel."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable

import numpy as np
from PIL import Image

from maxdl_tf import panoptic_ids
from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.data.coco_files import some
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage


class Numbering:
    """The labels of one image's segments: things are numbered from 1 within their class, in the order they come.

    Args:
      dataset_info: The class table.
      treat_crowd_as_ignore: Make crowds void; otherwise they are instance 0 of their class.
    """

    def __init__(self, dataset_info: DatasetInfo, treat_crowd_as_ignore: bool = True):
        self._info = dataset_info
        self._treat_crowd_as_ignore = treat_crowd_as_ignore
        self._instances: Counter[int] = Counter()

    def label(self, row: SegmentClass, is_crowd: bool = False) -> int:
        """The label of the next segment of that class.

        Raises:
          UserError: If the table's label_divisor has no room for it.
        """
        if is_crowd and self._treat_crowd_as_ignore:
            return self._info.void
        instance = 0
        if row.is_thing and not is_crowd:
            self._instances[row.id] += 1
            instance = self._instances[row.id]
            if instance >= self._info.label_divisor:
                raise UserError(
                    f"is instance {instance} of {row.name!r}, label_divisor {self._info.label_divisor} has room for "
                    f"{self._info.label_divisor - 1}; take a larger one"
                )
        return panoptic_ids.encode_label(row.id, instance, self._info.label_divisor)


def replace_values(values: np.ndarray, label_of_value: Callable[[int], int], name: str) -> np.ndarray:
    """A label map of a map of other values.

    Args:
      values: int [height, width].
      label_of_value: The label of a value; called once for each that occurs, in ascending order. Raises UserError for
        one that must not occur.
      name: Of the map, in complaints.

    Returns:
      int32 [height, width].

    Raises:
      UserError: With the name, the values that must not occur and what is wrong with them.
    """
    found, position = np.unique(values, return_inverse=True)
    labels, faults = [], []
    for value in found.tolist():
        try:
            labels.append(label_of_value(value))
        except UserError as error:
            faults.append(f"value {value}: {error}")
    if faults:
        raise UserError(f"{name}: {some(faults)}")
    return np.array(labels, np.int32)[position].reshape(values.shape)


def read_png(path: str | os.PathLike) -> tuple[np.ndarray, str]:
    """A PNG's pixels and its mode, as Pillow names it.

    Returns:
      int32 [height, width] of a gray or palette PNG ("L", "I;16", "P", ...), uint8 [height, width, channels] of others.

    Raises:
      UserError: If it cannot be read or decoded.
    """
    try:
        with Image.open(io.BytesIO(storage.read_file(path))) as image:
            pixels = np.asarray(image)
            return (pixels.astype(np.int32) if pixels.ndim == 2 else pixels), image.mode
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be decoded: {error}") from error


def read_gray_png(path: str | os.PathLike) -> np.ndarray:
    """int32 [height, width] of a PNG whose pixels are numbers.

    Raises:
      UserError: If it cannot be read or decoded, or has colors.
    """
    pixels, mode = read_png(path)
    if pixels.ndim != 2:
        raise UserError(f"{path}: a PNG of mode {mode}; wanted a gray one, whose values are numbers of classes")
    return pixels


def check_size(path: str | os.PathLike, got: tuple[int, ...], wanted: tuple[int, ...], of: str) -> None:
    """UserError if two sizes (height, width) are not the same."""
    if tuple(got) != tuple(wanted):
        raise UserError(
            f"{path}: {got[0]} x {got[1]} (height x width), but {of} is {wanted[0]} x {wanted[1]}; "
            "a label map needs a pixel for each of its image"
        )
