"""Submissions to COCO's panoptic test server: a zip with a JSON file and a folder of PNGs.

    panoptic_NAME_results.zip
      panoptic_NAME_results.json        annotations with image_id, file_name and segments_info (id and category_id)
      panoptic_NAME_results/FILE.png    segment ids as colors; void is black and not listed

NAME is the split and the name of the method, such as test-dev2017_maxdl.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from maxdl_tf import panoptic_ids
from maxdl_tf.errors import UserError
from maxdl_tf.evaluation.segment_map import SegmentMap
from maxdl_tf.files import disk_space, images, new_folder, storage

_LONGEST_NAME = 255  # Bytes, on most file systems.


def results_name(name: str) -> str:
    """Name of the zip, the JSON file and the folder, without suffix.

    Raises:
      UserError: `name` cannot be part of a file name.
    """
    if not name or os.path.basename(name) != name:
        raise UserError(
            f"--submission_name {name!r} cannot be part of a file name; give split and method, such as "
            "test-dev2017_maxdl"
        )
    return f"panoptic_{name}_results"


@contextmanager
def open_submission(path: str, name: str) -> Iterator[SubmissionWriter]:
    """Writes a submission into a folder, which appears when it is complete: the zip and its contents.

    Args:
      path: Path of the folder, new or empty.
      name: Split and name of the method.

    Raises:
      UserError: The folder cannot be written.
    """
    results = results_name(name)
    new_folder.check_new_folder(path, "--submission")
    with disk_space.full_disk_errors(path), new_folder.appears_when_complete(path) as folder:
        writer = SubmissionWriter(folder, results)
        yield writer
        writer.finish()


class SubmissionWriter:
    """Writes one prediction after the other; see `open_submission`.

    Args:
      folder: Path of an empty folder.
      results: Name of the files, see `results_name`.

    Attributes:
      num_images: Number of images so far.
    """

    def __init__(self, folder: str, results: str):
        self._folder, self._results = folder, results
        self._annotations: list[dict[str, Any]] = []
        os.mkdir(os.path.join(folder, results))

    @property
    def num_images(self) -> int:
        return len(self._annotations)

    def add(self, image_id: Any, prediction: SegmentMap, category_of_class: Mapping[int, int]) -> None:
        """Adds an image.

        Args:
          image_id: Id in the annotations; text that is a number becomes one.
          prediction: Predicted segments.
          category_of_class: Category id of each class id.

        Raises:
          UserError: A segment id does not fit into a PNG, or the image id is not a file name or occurs twice.
        """
        category_of = {segment.id: category_of_class[segment.class_id] for segment in prediction.segments}
        image_id = _coco_image_id(image_id)
        largest = max(category_of, default=0)
        if largest > panoptic_ids.MAX_SEGMENT_ID or min(category_of, default=1) < 1:
            raise UserError(
                f"image {image_id}: segment id {largest}; a PNG of a submission holds ids from 1 to "
                f"{panoptic_ids.MAX_SEGMENT_ID}"
            )
        file_name = f"{image_id:012d}.png" if isinstance(image_id, int) else f"{os.path.basename(str(image_id))}.png"
        if not file_name.isprintable() or len(file_name.encode()) > _LONGEST_NAME:
            raise UserError(
                f"image id {image_id!r:.80}: cannot be the name of a PNG; use numbers or short names as ids"
            )
        ids = np.where(np.isin(prediction.ids, list(category_of)), prediction.ids, 0)
        path = os.path.join(self._folder, self._results, file_name)
        if os.path.exists(path):
            raise UserError(f"image {image_id}: {file_name} exists already; ids of images must differ")
        images.write_image(path, panoptic_ids.id_to_color(ids))
        segments = [{"id": segment_id, "category_id": category} for segment_id, category in category_of.items()]
        self._annotations.append({"image_id": image_id, "file_name": file_name, "segments_info": segments})

    def finish(self) -> None:
        """Writes the JSON file and the zip."""
        json_name = f"{self._results}.json"
        annotations = json.dumps({"annotations": self._annotations})
        storage.write_whole(os.path.join(self._folder, json_name), annotations.encode())
        # PNGs are compressed already.
        with zipfile.ZipFile(os.path.join(self._folder, f"{self._results}.zip"), "w") as archive:
            archive.write(os.path.join(self._folder, json_name), json_name, zipfile.ZIP_DEFLATED)
            for annotation in self._annotations:
                inside = f"{self._results}/{annotation['file_name']}"
                archive.write(os.path.join(self._folder, inside), inside)


def _coco_image_id(image_id: Any) -> Any:
    """The number in an image's name, such as "val2017/000000000139"; other ids as they are."""
    name = os.path.basename(str(image_id))
    return int(name) if re.fullmatch(r"\d{1,18}", name, re.ASCII) else image_id
