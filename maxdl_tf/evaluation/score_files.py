"""Compares files of predictions with files of truth, several images at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data.coco_files import size_mismatch
from maxdl_tf.errors import UserError
from maxdl_tf.evaluation.coco_pairs import CocoPairs
from maxdl_tf.evaluation.comparison import Comparison, compare
from maxdl_tf.evaluation.segment_map import to_label_maps
from maxdl_tf.processes import results_in_order

_IMAGES_PER_PROCESS = 100  # For fewer a process is not worth its start.


def compare_all(
    pairs: CocoPairs, *, with_masks: bool, num_processes: int, on_progress: Callable[[int], None]
) -> list[Comparison]:
    """Compares every image; the result does not depend on the number of processes.

    Args:
      pairs: Predictions and truth.
      with_masks: Whether to keep masks for mask AP.
      num_processes: How many at most.
      on_progress: Called with the number of images that were done since the last call.

    Raises:
      UserError: A file cannot be read or contradicts its JSON, or masks are asked for and a segment has no score.
    """
    task, images = _Task(pairs, with_masks), range(len(pairs.images))
    found = []
    with results_in_order(task, images, min(num_processes, len(images) // _IMAGES_PER_PROCESS)) as comparisons:
        for comparison in comparisons:
            if with_masks and comparison.things is None:
                raise UserError(
                    f"image {comparison.image_id}: a predicted segment has no score, which mask AP needs; add a "
                    "`score` to each of segments_info, or leave out --mask_ap"
                )
            found.append(comparison)
            on_progress(1)
    return found


def draw(
    pairs: CocoPairs,
    shown: Sequence[Comparison],
    read_image: Callable[[str], np.ndarray] | None,
    picture: Callable[[np.ndarray | None, np.ndarray, np.ndarray, DatasetInfo], np.ndarray],
) -> dict[Any, np.ndarray]:
    """Pictures of some images, by their ids.

    Args:
      pairs: Predictions and truth.
      shown: Of which images.
      read_image: Gives an image, uint8 [h, w, 3], by its file name; None if there are no images.
      picture: Draws label maps of truth and prediction over an image, or over nothing.
    """
    image_ids = {found.image_id for found in shown}
    pictures = {}
    for entry in pairs.images:
        if entry.image_id in image_ids:
            image = read_image(entry.file_name) if read_image else None
            if image is not None and image.shape[:2] != (entry.height, entry.width):
                raise UserError(size_mismatch(entry.file_name, image.shape[:2], (entry.height, entry.width)))
            truth, prediction, table = to_label_maps(*pairs.read(entry), pairs.dataset_info)
            pictures[entry.image_id] = picture(image, truth, prediction, table)
    return pictures


class _Task:
    """What the processes do; the pairs are given to each of them once."""

    def __init__(self, pairs: CocoPairs, with_masks: bool):
        self._pairs, self._with_masks = pairs, with_masks

    def __call__(self, index: int) -> Comparison:
        entry = self._pairs.images[index]
        truth, prediction = self._pairs.read(entry)
        return compare(entry.image_id, truth, prediction, self._pairs.dataset_info, with_masks=self._with_masks)
