"""Keeps the weights that did best in the evaluations of a training."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import tensorflow as tf

from maxdl_tf.checkpoints import folder
from maxdl_tf.checkpoints.save_restore import Checkpoints
from maxdl_tf.files import storage

FOLDER = "best"  # In model_dir.
_RECORD = "score.json"


class BestCheckpoint:
    """One checkpoint in a folder of its own, with the model as it was evaluated and without optimizers.

    A training that resumes continues the comparison.

    Args:
      directory: Folder of the checkpoint; created by the first `offer`.
      model: Model whose variables exist.
      global_step: int64 variable that counts the steps.
      prepare: Receives the folder before a checkpoint is written, and creates it with what its user needs.
      measure: Describes how the scores are measured. Weights that were measured in another way do not compare.
      log: Receives a line about each new best checkpoint.

    Raises:
      UserError: TensorFlow would take the path of the directory as a pattern.
    """

    def __init__(
        self,
        directory: str,
        *,
        model: tf.Module,
        global_step: tf.Variable,
        prepare: Callable[[str], None] = storage.make_folder,
        measure: str = "",
        log: Callable[[str], None] = print,
    ):
        self._directory = directory
        self._record = os.path.join(directory, _RECORD)
        self._global_step = global_step
        self._prepare = prepare
        self._measure = measure
        self._log = log
        self._checkpoints = Checkpoints(directory, model=model, global_step=global_step, keep=2)

    def offer(self, score: float) -> bool:
        """Saves the current weights unless those in the folder did better; returns whether it did.

        Of weights that did equally well, the last ones stay: they were trained longer.

        Args:
          score: Metric of the current weights; greater is better.

        Raises:
          UserError: The disk is full.
        """
        best = self._best_score()
        if best is not None and score < best:
            return False
        self._prepare(self._directory)
        path = self._checkpoints.save()
        step = int(self._global_step.numpy())
        storage.write_json(self._record, {"step": step, "score": score, "measure": self._measure})
        folder.keep_only(self._directory, path)
        self._log(f"the best weights so far are kept as {path}")
        return True

    def forget(self) -> None:
        """Starts the comparison anew: the next weights are the best. Those in the folder stay until then."""
        if storage.exists(self._record):
            storage.remove_file(self._record)

    def _best_score(self) -> float | None:
        """Score of the checkpoint in the folder; None if it is not known, or was measured in another way."""
        try:
            record = json.loads(storage.read_file(self._record))
            return float(record["score"]) if record["measure"] == self._measure else None
        except (OSError, ValueError, KeyError, TypeError):  # None there, or damaged.
            return None
