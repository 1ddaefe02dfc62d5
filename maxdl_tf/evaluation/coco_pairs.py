"""Predictions and truth in the COCO panoptic format, image by image."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maxdl_tf.class_table import DatasetInfo, from_categories
from maxdl_tf.data.coco_files import (
    ImageAnnotation,
    ImageEntry,
    load_annotations,
    load_results,
    read_panoptic_png,
    some,
)
from maxdl_tf.errors import UserError
from maxdl_tf.evaluation.segment_map import SegmentMap, from_coco


@dataclass(frozen=True)
class PredictionFiles:
    """Where predictions are.

    Attributes:
      json: The file that lists them.
      pngs: The folder of PNGs.
    """

    json: Path
    pngs: Path


def find_predictions(path: str) -> PredictionFiles:
    """The files that a JSON file, or a folder of predictions, stands for.

    A JSON's PNGs are in the folder of its name without .json, or in `panoptic`, or beside it. A folder is what
    maxdl-predict writes, or one with a single JSON file.

    Raises:
      UserError: There are none.
    """
    given = Path(path)
    if given.is_dir():
        jsons = sorted(given.glob("*.json"))
        wanted = given / "panoptic.json"
        if wanted in jsons:
            jsons = [wanted]
        if len(jsons) != 1:
            raise UserError(
                f"--predictions {path}: {len(jsons)} JSON files in the folder, wanted panoptic.json or a single one; "
                "name the JSON file instead"
            )
        given = jsons[0]
    if not given.is_file():
        raise UserError(f"--predictions {path}: there is no such file or folder")
    for folder in (given.with_suffix(""), given.parent / "panoptic", given.parent):
        if folder.is_dir() and (folder != given.parent or next(folder.glob("*.png"), None)):
            return PredictionFiles(given, folder)
    raise UserError(f"--predictions {path}: no folder {given.with_suffix('')} with the PNGs beside the JSON file")


@dataclass(frozen=True)
class CocoPairs:
    """Images with truth and prediction.

    Attributes:
      images: Those of the truth.
      results: The prediction of each, by image id.
      truth_pngs: Folder of the truth's PNGs.
      result_pngs: Folder of the predictions' PNGs.
      dataset_info: Class table of the truth's categories.
      extra: Image ids of predictions that the truth does not have.
    """

    images: list[ImageEntry]
    results: dict[Any, ImageAnnotation]
    truth_pngs: Path
    result_pngs: Path
    dataset_info: DatasetInfo
    extra: list[Any]

    def read(self, entry: ImageEntry) -> tuple[SegmentMap, SegmentMap]:
        """Truth and prediction of an image.

        Raises:
          UserError: A file cannot be read or does not fit, with its path.
        """
        class_of_category = {row.source_id: row.id for row in self.dataset_info.classes}
        maps = []
        result = self.results[entry.image_id]
        for folder, png, segments in (
            (self.truth_pngs, entry.png_name, entry.segments),
            (self.result_pngs, result.png_name, result.segments),
        ):
            path = folder / png
            ids = read_panoptic_png(path, (entry.height, entry.width))
            maps.append(from_coco(ids, segments, class_of_category, str(path)))
        return maps[0], maps[1]


def open_pairs(files: PredictionFiles, annotations: str, panoptic_dir: str | None = None) -> CocoPairs:
    """Finds the prediction of each image of the truth.

    Args:
      files: The predictions.
      annotations: The truth's JSON file.
      panoptic_dir: Folder of its PNGs; if not given, `annotations` without .json.

    Raises:
      UserError: Files are missing or malformed, or images of the truth have no prediction.
    """
    truth = load_annotations(annotations)
    truth_pngs = Path(panoptic_dir) if panoptic_dir else Path(annotations).with_suffix("")
    if not truth_pngs.is_dir():
        raise UserError(f"{truth_pngs} is not a folder; say with --panoptic_dir where the PNGs of {annotations} are")
    results, _ = load_results(files.json)
    results = _by_id_of(results, truth.images)
    images = [entry for entry in truth.images if entry.png_name is not None]
    if not images:
        raise UserError(f"{annotations} has no annotated image; there is nothing to compare with")
    missing = [f"{entry.image_id} ({entry.file_name})" for entry in images if entry.image_id not in results]
    if missing:
        raise UserError(
            f"{files.json} has no prediction of {len(missing)} of {len(images)} images: {some(missing)}; predict all "
            "images of the annotations"
        )
    info = from_categories(truth.categories, annotations, Path(annotations).stem)
    known = {entry.image_id for entry in truth.images}
    extra = [image_id for image_id in results if image_id not in known]
    return CocoPairs(images, results, truth_pngs, files.pngs, info, extra)


def _by_id_of(results: dict[Any, ImageAnnotation], images: list[ImageEntry]) -> dict[Any, ImageAnnotation]:
    """The results under the truth's ids.

    maxdl-predict calls an image by the name of its file where names are no numbers; the truth may have numbers of its
    own then.
    """
    if any(entry.image_id in results for entry in images):
        return results
    id_of_name = {os.path.splitext(os.path.basename(entry.file_name))[0]: entry.image_id for entry in images}
    by_name = {os.path.splitext(os.path.basename(found.png_name))[0]: found for found in results.values()}
    if not set(by_name) & set(id_of_name):
        return results
    return {id_of_name.get(name, name): found for name, found in by_name.items()}
