"""Label maps from the pixel values and masks of other formats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from maxdl_tf import panoptic_ids
from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.errors import UserError, some

OVERLAPS = ("smaller_on_top", "larger_on_top", "later_on_top", "void")
NOTHING, CONTESTED = -1, -2


class Numbering:
    """Assigns labels to the segments of one image; things are numbered from 1 within their class.

    Args:
      dataset_info: The class table.
      treat_crowd_as_ignore: Whether crowds become void; otherwise they are instance 0 of their class.
    """

    def __init__(self, dataset_info: DatasetInfo, treat_crowd_as_ignore: bool = True):
        self._info = dataset_info
        self._treat_crowd_as_ignore = treat_crowd_as_ignore
        self._instances: Counter[int] = Counter()

    def label(self, row: SegmentClass, is_crowd: bool = False) -> int:
        """Returns the label of the next segment of a class.

        Raises:
          UserError: The instance number exceeds the label_divisor of the class table.
        """
        if is_crowd and self._treat_crowd_as_ignore:
            return self._info.void
        instance = 0
        if row.is_thing and not is_crowd:
            self._instances[row.id] += 1
            instance = self._instances[row.id]
            if instance >= self._info.label_divisor:
                raise UserError(
                    f"is instance {instance} of {row.name!r}; label_divisor {self._info.label_divisor} allows "
                    f"instances below {self._info.label_divisor}; use a larger one"
                )
        return panoptic_ids.encode_label(row.id, instance, self._info.label_divisor)


def replace_values(values: np.ndarray, label_of_value: Callable[[int], int], name: str) -> np.ndarray:
    """Converts a map of other values to a label map.

    Args:
      values: int [height, width].
      label_of_value: Function that returns the label of a value and raises UserError for an invalid one. It is called
        once for each value in the map, in ascending order.
      name: Name of the map in error messages.

    Returns:
      int32 [height, width].

    Raises:
      UserError: The map has invalid values; the message has the name and the values.
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


def paint(masks: Sequence[np.ndarray], size: tuple[int, int], overlap: str) -> np.ndarray:
    """Assigns each pixel to one of several masks, which may overlap.

    Args:
      masks: bool [height, width] each.
      size: (height, width).
      overlap: Mask that gets a pixel of several masks, one of OVERLAPS: the smaller or the larger mask (the later one
        among equals), the later mask, or none ("void").

    Returns:
      int32 [height, width]: index of the mask, NOTHING outside of all masks, CONTESTED where no mask gets the pixel.
    """
    order = list(range(len(masks)))
    if overlap in ("smaller_on_top", "larger_on_top"):
        sign = -1 if overlap == "smaller_on_top" else 1
        order.sort(key=lambda index: sign * np.count_nonzero(masks[index]))  # The sort is stable.
    painted = np.full(size, NOTHING, np.int32)
    for index in order:
        if overlap == "void":
            painted[masks[index]] = np.where(painted[masks[index]] == NOTHING, index, CONTESTED)
        else:
            painted[masks[index]] = index
    return painted
