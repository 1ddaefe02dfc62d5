"""Predictions in files of the COCO panoptic format beside their truth, image by image."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data.coco_categories import table_of_categories
from maxdl_tf.data.coco_files import ImageAnnotation, ImageEntry, load_annotations, load_results, read_panoptic_png
from maxdl_tf.drawing import label_maps
from maxdl_tf.errors import UserError, size_mismatch, some
from maxdl_tf.evaluation import pairing
from maxdl_tf.evaluation.comparison import Comparison, DatasetEvaluation, compare
from maxdl_tf.evaluation.segment_map import SegmentMap, from_coco, to_label_maps
from maxdl_tf.evaluation.submission import open_submission
from maxdl_tf.files import images, storage
from maxdl_tf.files.intensity import Percentiles
from maxdl_tf.processes import results_in_order

_IMAGES_PER_PROCESS = 100  # Starting a process costs more than comparing fewer images.


@dataclasses.dataclass(frozen=True)
class PredictionFiles:
    """Predictions in the COCO panoptic format.

    Attributes:
      json: Path of the JSON file.
      pngs: Path of the folder of PNGs.
    """

    json: Path
    pngs: Path


def find_predictions(path: str) -> PredictionFiles:
    """Finds the files of predictions.

    Args:
      path: Path of a JSON file, or of a folder that maxdl-predict wrote or that has a single JSON file. The PNGs are in
        the folder of the JSON file's name without .json, in `panoptic`, or beside the JSON file.

    Raises:
      UserError: The files do not exist.
    """
    given = Path(path)
    if given.is_dir():
        jsons = sorted(given.glob("*.json"))
        wanted = given / "panoptic.json"
        if wanted in jsons:
            jsons = [wanted]
        if len(jsons) != 1:
            raise UserError(
                f"--predictions {path}: {len(jsons)} JSON files in the folder; expected panoptic.json or a single one. "
                "Give the path of the JSON file"
            )
        given = jsons[0]
    if not given.is_file():
        raise UserError(f"--predictions {path}: no such file or folder; check the path")
    for folder in (given.with_suffix(""), given.parent / "panoptic", given.parent):
        if folder.is_dir() and (folder != given.parent or next(folder.glob("*.png"), None)):
            return PredictionFiles(given, folder)
    raise UserError(
        f"--predictions {path}: no folder {given.with_suffix('')} with the PNGs; put it beside the JSON file"
    )


@dataclasses.dataclass(frozen=True)
class CocoPairs:
    """Images with truth and prediction.

    Attributes:
      images: Images of the truth.
      results: Prediction of each image by its id in the truth.
      truth_pngs: Folder of the truth's PNGs.
      result_pngs: Folder of the predictions' PNGs.
      dataset_info: Class table of the truth's categories.
      warnings: Lines about differences between the two files that do not prevent a comparison.
      image_dir: Folder of the images, for pictures; None draws label maps alone.
    """

    images: list[ImageEntry]
    results: dict[Any, ImageAnnotation]
    truth_pngs: Path
    result_pngs: Path
    dataset_info: DatasetInfo
    warnings: list[str]
    image_dir: str | None = None

    def read(self, entry: ImageEntry) -> tuple[SegmentMap, SegmentMap]:
        """Reads truth and prediction of an image.

        Raises:
          UserError: A file cannot be read or does not fit; the error has its path.
        """
        class_of_category = {row.source_id: row.id for row in self.dataset_info.classes}
        result = self.results[entry.image_id]
        maps = []
        for path, segments in (
            (storage.path_inside(self.truth_pngs, entry.png_name), entry.segments),
            (storage.path_inside(self.result_pngs, result.png_name), result.segments),
        ):
            ids = read_panoptic_png(path, (entry.height, entry.width))
            maps.append(from_coco(ids, segments, class_of_category, path))
        return maps[0], maps[1]


def open_pairs(
    files: PredictionFiles, annotations: str, panoptic_dir: str | None = None, image_dir: str | None = None
) -> CocoPairs:
    """Finds the prediction of each image of the truth.

    Args:
      files: Predictions.
      annotations: Path of the truth's JSON file.
      panoptic_dir: Path of the folder of its PNGs; `annotations` without .json if not given.
      image_dir: Path of the folder of the images, for pictures.

    Raises:
      UserError: Files are missing or malformed, or an image of the truth has no prediction.
    """
    truth = load_annotations(annotations)
    truth_pngs = Path(panoptic_dir) if panoptic_dir else Path(annotations).with_suffix("")
    if not truth_pngs.is_dir():
        raise UserError(f"{truth_pngs} is not a folder; give the folder of the PNGs of {annotations} as --panoptic_dir")
    results = load_results(files.json)
    annotated = [entry for entry in truth.images if entry.png_name is not None]
    if not annotated:
        raise UserError(f"{annotations} has no annotated image; expected at least one to compare with")
    if image_dir and not os.path.isfile(storage.path_inside(image_dir, annotated[0].file_name)):
        raise UserError(f"--image_dir {image_dir} has no {annotated[0].file_name}; check the path")
    prediction_of, disagreement = pairing.prediction_of(truth.images, results, files.json)
    missing = [f"{entry.image_id} ({entry.file_name})" for entry in annotated if entry.image_id not in prediction_of]
    if missing:
        raise UserError(
            f"{files.json} has no prediction of {len(missing)} of {len(annotated)} images: {some(missing)}; predict "
            "all images of the annotations"
        )
    info = table_of_categories(truth.categories, annotations, Path(annotations).stem)
    other_names = pairing.other_names(results.categories, info, files.json)
    warnings = [line for line in (disagreement, other_names) if line]
    extra = results.annotations.keys() - prediction_of.values()
    if extra:
        warnings.append(
            f"{len(extra)} predictions, such as {min(extra, key=str)}, are skipped; the annotations do not have their "
            "images"
        )
    predictions = {entry.image_id: results.annotations[prediction_of[entry.image_id]] for entry in annotated}
    return CocoPairs(annotated, predictions, truth_pngs, files.pngs, info, warnings, image_dir)


def compare_pairs(
    pairs: CocoPairs,
    *,
    with_masks: bool = False,
    num_processes: int = 1,
    on_progress: Callable[[int], None] = lambda images: None,
) -> list[Comparison]:
    """Compares all images. The result does not depend on the number of processes.

    Args:
      pairs: Truth and predictions.
      with_masks: Whether to keep masks for mask AP, for which each predicted segment needs a score.
      num_processes: Largest number of processes that compare.
      on_progress: Receives the number of images compared since the last call.

    Raises:
      UserError: A file cannot be read or contradicts its JSON, or a segment has no score, which mask AP needs.
    """
    task, indices = _CompareImage(pairs, with_masks), range(len(pairs.images))
    comparisons = []
    with results_in_order(task, indices, min(num_processes, len(indices) // _IMAGES_PER_PROCESS)) as results:
        for comparison in results:
            if with_masks and comparison.things is None:
                raise UserError(
                    f"image {comparison.image_id}: a predicted segment has no score, which mask AP needs; add `score` "
                    "to each segment in segments_info, or drop --mask_ap"
                )
            comparisons.append(comparison)
            on_progress(1)
    return comparisons


class _CompareImage:
    """Task of the processes; each process receives the pairs once."""

    def __init__(self, pairs: CocoPairs, with_masks: bool):
        self._pairs, self._with_masks = pairs, with_masks

    def __call__(self, index: int) -> Comparison:
        entry = self._pairs.images[index]
        truth, prediction = self._pairs.read(entry)
        return compare(entry.image_id, truth, prediction, self._pairs.dataset_info, with_masks=self._with_masks)


def draw_pairs(pairs: CocoPairs, evaluation: DatasetEvaluation, num_pictures: int) -> DatasetEvaluation:
    """Adds pictures to an evaluation of the pairs.

    Args:
      pairs: Truth and predictions.
      evaluation: Evaluation of the pairs.
      num_pictures: Number of pictures of the best images, and of the worst.

    Raises:
      UserError: A file cannot be read or has another size than the JSON file says.
    """
    shown = {image.image_id for image in evaluation.best(num_pictures) + evaluation.worst(num_pictures)}
    pictures = {}
    for entry in pairs.images:
        if entry.image_id in shown:
            *maps, table = to_label_maps(*pairs.read(entry), pairs.dataset_info)
            image = None
            if pairs.image_dir:
                path = storage.path_inside(pairs.image_dir, entry.file_name)
                # The files do not tell the rule of the data set; a picture shows all values.
                image = images.read_image(path, images.MAX_DATA_PIXELS, intensity=Percentiles(0, 100))
                if image.shape[:2] != (entry.height, entry.width):
                    raise UserError(size_mismatch(entry.file_name, image.shape[:2], (entry.height, entry.width)))
            pictures[entry.image_id] = label_maps.comparison_picture(image, *maps, table)
    return dataclasses.replace(evaluation, pictures=pictures)


def submit_files(
    files: PredictionFiles, path: str, name: str, on_progress: Callable[[int], None] = lambda images: None
) -> int:
    """Writes predictions as a submission, with or without truth.

    Args:
      files: Predictions.
      path: Path of the submission's folder, new or empty.
      name: Split and name of the method.
      on_progress: Receives the number of images written since the last call.

    Returns:
      The number of images.

    Raises:
      UserError: A file cannot be read or contradicts its JSON, or the submission cannot be written.
    """
    results = load_results(files.json).annotations
    with open_submission(path, name) as writer:
        for image_id, result in results.items():
            png = storage.path_inside(files.pngs, result.png_name)
            categories = {info["category_id"]: info["category_id"] for info in result.segments}
            writer.add(image_id, from_coco(read_panoptic_png(png), result.segments, categories, png), categories)
            on_progress(1)
    return len(results)
