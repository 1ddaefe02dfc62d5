"""Prediction as an Apache Beam pipeline: the files of `maxdl-predict`, made by many workers.

Each worker loads the SavedModel once, reads images where tf.io.gfile reaches and writes their pictures; the caller,
when all are done, puts together what the JSON files say.
"""

from __future__ import annotations

import functools
import threading
import uuid
from collections.abc import Sequence
from typing import Any

from maxdl_tf import beam_pipeline
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage
from maxdl_tf.inference.predict_file import ImageTask, predict_file
from maxdl_tf.inference.prediction_writer import ImageRecord, PictureWriter
from maxdl_tf.inference.predictor import Predictor

IMAGES_PER_CHUNK = 32
_LOADING = threading.Lock()
_FOLDER = ".beam"  # In the folder of predictions, where names with a dot count for nothing.


class ChunkPredictor:
    """Predicts a chunk of images, in a worker.

    Args:
      model: The SavedModel's folder.
      pictures: Writes.
      min_score: Segments with a lower score become void.
      max_pixels: Images with more pixels fail.
      features: Whether to draw features.
    """

    def __init__(self, model: str, pictures: PictureWriter, *, min_score: float, max_pixels: int, features: bool):
        self._model = model
        self._run = uuid.uuid4().hex  # A later run in this process may find another model at the path.
        self._pictures = pictures
        self._options = {"min_score": min_score, "max_pixels": max_pixels, "features": features}

    def __call__(self, name: str, tasks: Sequence[ImageTask]) -> list[dict[str, Any]]:
        """Of each image, its `record`, or as `fault` what is wrong with it."""
        del name
        with _LOADING:
            predictor = _load(self._model, self._run)
        answers = []
        for task in tasks:
            try:
                predicted = predict_file(predictor, task, self._pictures, **self._options)
                answers.append({"record": predicted.record})
            except UserError as error:
                answers.append({"fault": str(error)})
        return answers


@functools.lru_cache(maxsize=1)
def _load(model: str, run: str) -> Predictor:
    """Once in each process, however many chunks and threads it has."""
    del run
    return Predictor.from_saved_model(model)


def predict(
    work: ChunkPredictor, tasks: Sequence[ImageTask], output: str, runner: str, options: Sequence[str]
) -> list[ImageRecord | UserError]:
    """Predicts images on a runner of Beam.

    Args:
      work: What workers do.
      tasks: The images.
      output: Folder of the predictions, which all workers can reach.
      runner: One of `beam_pipeline.RUNNERS`.
      options: Flags for it.

    Returns:
      Of each image, in order, what the JSON files shall have of it, or what is wrong with it.

    Raises:
      UserError: Beam is not installed or its options make no sense.
      OSError: Something cannot be written.
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
