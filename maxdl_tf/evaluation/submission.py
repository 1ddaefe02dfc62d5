"""What COCO's panoptic test server takes: a zip with a JSON file and a folder of PNGs.

panoptic_NAME_results.zip
  panoptic_NAME_results.json        annotations, of each image image_id, file_name, segments_info: id and category_id
  panoptic_NAME_results/FILE.png    segment ids as colors; void is black and is not listed

NAME is the split and the name of the method, such as test-dev2017_maxdl.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from maxdl_tf import panoptic_ids
from maxdl_tf.data.coco_files import load_results, read_panoptic_png
from maxdl_tf.errors import UserError
from maxdl_tf.evaluation.coco_pairs import PredictionFiles
from maxdl_tf.evaluation.matching import different_ids
from maxdl_tf.evaluation.segment_map import from_coco
from maxdl_tf.files import new_folder


def results_name(name: str) -> str:
    """What the JSON file, the folder and the zip are called.

    Raises:
      UserError: It cannot be a part of a file's name.
    """
    if not name or os.path.basename(name) != name:
        raise UserError(f"--submission_name {name!r}; wanted the split and a name, such as test-dev2017_maxdl")
    return f"panoptic_{name}_results"


@contextmanager
def open_submission(path: str, name: str) -> Iterator[SubmissionWriter]:
    """Writes a submission into a new folder, which appears when it is complete: the zip, and what is in it.

    Args:
      path: The folder, new or empty.
      name: Split and method, see above.

    Raises:
      UserError: It cannot be written there.
    """
    results = results_name(name)
    new_folder.check_new_folder(path, "--submission")
    with new_folder.appears_when_complete(path) as folder:
        writer = SubmissionWriter(folder, results)
        yield writer
        writer.finish()


class SubmissionWriter:
    """Writes one prediction after the other; see `open_submission`.

    Args:
      folder: Where to; it is there and empty.
      results: From `results_name`.
    """

    def __init__(self, folder: str, results: str):
        self._folder, self._results = folder, results
        self._annotations: list[dict] = []
        os.mkdir(os.path.join(folder, results))

    def add(self, image_id: Any, ids: np.ndarray, category_of: dict[int, int]) -> None:
        """Adds an image.

        Args:
          image_id: As in the annotations; text that is a number becomes one.
          ids: int [height, width], segment ids.
          category_of: Category id of each segment; other ids are void.

        Raises:
          UserError: An id does not fit into a PNG.
        """
        image_id = coco_image_id(image_id)
        largest = max(category_of, default=0)
        if largest > panoptic_ids.MAX_SEGMENT_ID or min(category_of, default=1) < 1:
            raise UserError(
                f"image {image_id}: segment id {largest}; a PNG of a submission holds ids from 1 to "
                f"{panoptic_ids.MAX_SEGMENT_ID}"
            )
        file_name = f"{image_id:012d}.png" if isinstance(image_id, int) else f"{os.path.basename(str(image_id))}.png"
        kept = np.where(np.isin(ids, list(category_of)), ids, 0)
        path = os.path.join(self._folder, self._results, file_name)
        if os.path.exists(path):
            raise UserError(f"image {image_id}: {file_name} is there already; the images' ids must differ")
        Image.fromarray(panoptic_ids.id_to_color(kept)).save(path, compress_level=3)
        segments = [{"id": segment_id, "category_id": category} for segment_id, category in category_of.items()]
        self._annotations.append({"image_id": image_id, "file_name": file_name, "segments_info": segments})

    def finish(self) -> None:
        """Writes the JSON file and the zip."""
        json_name = f"{self._results}.json"
        with open(os.path.join(self._folder, json_name), "w", encoding="utf-8") as file:
            json.dump({"annotations": self._annotations}, file)
        # PNGs are compressed already.
        with zipfile.ZipFile(os.path.join(self._folder, f"{self._results}.zip"), "w") as archive:
            archive.write(os.path.join(self._folder, json_name), json_name, zipfile.ZIP_DEFLATED)
            for annotation in self._annotations:
                inside = f"{self._results}/{annotation['file_name']}"
                archive.write(os.path.join(self._folder, inside), inside)


def coco_image_id(image_id: Any) -> Any:
    """The number that an image's name is ("val2017/000000000139"), or the id as it is."""
    name = os.path.basename(str(image_id))
    return int(name) if name.isascii() and name.isdigit() else image_id


def category_ids(segments: Iterable[Any], source_id_of_class: dict[int, int]) -> dict[int, int]:
    """Category id of each `SegmentInfo`'s id."""
    return {segment.id: source_id_of_class[segment.class_id] for segment in segments}


def submit_files(files: PredictionFiles, path: str, name: str, on_progress: Callable[[int], None]) -> int:
    """Writes predictions of files as a submission; all of them, whatever images they are of.

    Args:
      files: The predictions.
      path: As that of `open_submission`.
      name: The same.
      on_progress: Called with the number of images that were done since the last call.

    Returns:
      The number of images.

    Raises:
      UserError: A file cannot be read or contradicts its JSON, or the submission cannot be written.
    """
    results, _ = load_results(files.json)
    with open_submission(path, name) as writer:
        for image_id, result in results.items():
            png = files.pngs / result.png_name
            categories = {info.get("category_id"): info.get("category_id") for info in result.segments}
            prediction = from_coco(read_panoptic_png(png), result.segments, categories, str(png))
            prediction.check(different_ids(prediction.ids))
            writer.add(image_id, prediction.ids, {segment.id: segment.class_id for segment in prediction.segments})
            on_progress(1)
    return len(results)
