"""From image files to the files of their predictions, in this process or by the workers of an Apache Beam pipeline.

Each Beam worker loads the export once, reads images from paths that tf.io.gfile reaches, and writes their pictures.
The caller then collects the entries for the JSON files.
"""

from __future__ import annotations

import functools
import os
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from maxdl_tf import beam_pipeline
from maxdl_tf.drawing import feature_picture
from maxdl_tf.errors import UserError
from maxdl_tf.evaluation.diagnosis import Diagnosis
from maxdl_tf.files import images, storage
from maxdl_tf.inference.predictor import Predictor
from maxdl_tf.inference.tiles import TiledPredictor
from maxdl_tf.inference.writer import ImageRecord, PictureWriter

IMAGES_PER_CHUNK = 32
_RESOURCE_EXHAUSTED = 8  # TensorFlow's error code if memory is lacking.
_LOADING = threading.Lock()
_FOLDER = ".beam"  # In the folder of predictions, where hidden files are ignored.


class ImageTask(NamedTuple):
    """An image to predict.

    Attributes:
      path: Path of the image file.
      name: Name of its outputs without suffix; see `writer.output_names`.
      image_id: Id of the image in the JSON files; see `writer.image_ids`.
    """

    path: str
    name: str
    image_id: int | str


@dataclass(frozen=True)
class FileOptions:
    """How image files are predicted.

    Attributes:
      min_score: Segments with a lower score become void.
      max_pixels: Images with more pixels are refused.
      features: Whether to draw features.
      diagnose: Whether to count what each rule of the post-processing removes.
      tile: Side of the tiles in which an image is predicted, in pixels; 0: as a whole; None: as the model states.
      tile_overlap: Number of pixels that neighboring tiles share; None: as the model states.
    """

    min_score: float
    max_pixels: int
    features: bool
    diagnose: bool = False
    tile: int | None = None
    tile_overlap: int | None = None

    def in_tiles(self, predictor: Predictor) -> Predictor | TiledPredictor:
        """The predictor for whole images, or that for tiles.

        Raises:
          UserError: The tiles are impossible, or another option needs the network's view of the whole image.
        """
        found = predictor.in_tiles(self.tile, self.tile_overlap)
        if self.tile_overlap is not None and not isinstance(found, TiledPredictor):
            raise UserError(f"--tile_overlap {self.tile_overlap} has no effect on whole images; drop it, or add --tile")
        flag = "--diagnose" if self.diagnose else "--visualize features" if self.features else None
        if flag and isinstance(found, TiledPredictor):
            raise UserError(f"{flag} shows one run of the network, and this model sees tiles; drop it, or add --tile 0")
        return found


class PredictedFile(NamedTuple):
    """The prediction of an image file.

    Attributes:
      record: Its entries for the JSON files.
      diagnosis: What each rule removed; None unless requested.
    """

    record: ImageRecord
    diagnosis: Diagnosis | None


def predict_file(
    predictor: Predictor | TiledPredictor, task: ImageTask, pictures: PictureWriter, options: FileOptions
) -> PredictedFile:
    """Predicts an image and writes its pictures. Tiles allow neither features nor a diagnosis.

    Raises:
      UserError: The image cannot be read, is too large, or does not fit into memory.
      OSError: The pictures cannot be written.
    """
    image = images.read_image(
        task.path, options.max_pixels, limit_flag="--max_pixels", intensity=predictor.dataset_info.intensity
    )
    try:
        outputs = predictor.network_outputs(image) if options.diagnose else None
        prediction = predictor(image, outputs) if outputs else predictor(image)
        kept = prediction.without_unsure_segments(options.min_score)
        record = pictures.write(task.name, task.image_id, os.path.basename(task.path), kept)
        if options.features:
            void = kept.label_map == predictor.dataset_info.void
            pictures.write_features(task.name, feature_picture.feature_picture(image, *predictor.features(image), void))
        found = None
        if outputs:
            from maxdl_tf.inference.diagnosis import diagnose  # Needs TensorFlow.

            found = diagnose(outputs, predictor.postprocessor, prediction, kept)
    except Exception as error:
        if not isinstance(error, MemoryError) and getattr(error, "error_code", None) != _RESOURCE_EXHAUSTED:
            raise
        raise UserError(f"{task.path}: {image.shape[1]}x{image.shape[0]} pixels do not fit into memory") from error
    return PredictedFile(record, found)


class ChunkPredictor:
    """Predicts a chunk of images in a Beam worker.

    Args:
      model: Folder of the export.
      pictures: Writes the pictures.
      options: How the files are predicted.
      compute: As in `Predictor.from_export`.
    """

    def __init__(self, model: str, pictures: PictureWriter, options: FileOptions, compute: str = "float32"):
        self._model, self._compute = model, compute
        self._run = uuid.uuid4().hex  # A later run in this process may find another model at the path.
        self._pictures = pictures
        self._options = options

    def __call__(self, name: str, tasks: Sequence[ImageTask]) -> list[dict[str, Any]]:
        """For each image its `record`, or a `fault` that describes why it failed."""
        del name
        with _LOADING:
            predictor = self._options.in_tiles(_load(self._model, self._compute, self._run))
        answers = []
        for task in tasks:
            try:
                answers.append({"record": predict_file(predictor, task, self._pictures, self._options).record})
            except UserError as error:
                answers.append({"fault": str(error)})
        return answers


@functools.lru_cache(maxsize=1)
def _load(model: str, compute: str, run: str) -> Predictor:
    """Loads the model once in each process, for all its chunks and threads."""
    del run
    return Predictor.from_export(model, compute)


def predict_on_beam(
    work: ChunkPredictor, tasks: Sequence[ImageTask], output: str, runner: str, options: Sequence[str]
) -> list[ImageRecord | UserError]:
    """Predicts images on a runner of Beam.

    Args:
      work: Work of each worker.
      tasks: The images.
      output: Folder of the predictions, which all workers can reach.
      runner: One of `beam_pipeline.RUNNERS`.
      options: Flags for the runner.

    Returns:
      For each image, in order, its entries for the JSON files, or the error that describes why it failed.

    Raises:
      UserError: Beam is not installed, or its options are invalid.
      OSError: A file cannot be written.
    """
    starts = range(0, len(tasks), IMAGES_PER_CHUNK)
    chunks = {f"{start:09d}": list(tasks[start : start + IMAGES_PER_CHUNK]) for start in starts}
    folder = f"{output}/{_FOLDER}"
    storage.remove_folder(folder)
    storage.make_folder(folder)
    try:
        answers = beam_pipeline.run_chunks(work, chunks, folder, runner, options)
    finally:
        storage.remove_folder(folder)
    return [
        UserError(answer["fault"]) if "fault" in answer else ImageRecord(*answer["record"])
        for chunk in answers
        for answer in chunk
    ]
