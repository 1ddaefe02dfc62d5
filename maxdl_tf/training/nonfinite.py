"""Steps with a loss or gradient that is not finite: their batches are written, and too many end the run."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from maxdl_tf.errors import UserError

_IDS_NAMED = 8


class NonFiniteLossError(UserError):
    """A loss term or the gradient became NaN or infinite. Weights and optimizers are as before that step."""


class NonFiniteSteps:
    """Writes the batches of steps that are not finite, and ends the run after too many of them.

    Args:
      folder: Folder of the files `nonfinite-STEP.npz`; None: nothing is written.
      allowed: Number of such steps to skip; the next one ends the run. A resumed run counts from 0.
      suffix: Suffix of the file names. Each worker has its own, because it has only its part of the batch.
      log: Receives a line for each skipped step.
    """

    def __init__(
        self,
        folder: str | None = None,
        *,
        allowed: int = 0,
        suffix: str = "",
        log: Callable[[str], None] = lambda line: None,
    ):
        self._folder = folder
        self._allowed = allowed
        self._suffix = suffix
        self._log = log
        self.count = 0

    def add(self, step: int, term: str, value: float, batch: Any) -> None:
        """Records one step.

        Args:
          step: Number of the step, from 1.
          term: Name of what is not finite: a loss term or the norm of the gradient.
          value: NaN or an infinity.
          batch: Batch of the step, a named tuple of NumPy arrays with `image_ids`.

        Raises:
          NonFiniteLossError: There were more such steps than allowed.
        """
        self.count += 1
        facts = f"{term} became {value} at step {step}{self._where(step, batch)}"
        if self.count <= self._allowed:
            self._log(f"{facts}; the step is skipped, {self.count} of {self._allowed} allowed")
            return
        skipped = f" after {self._allowed} such steps were skipped" if self._allowed else ""
        raise NonFiniteLossError(
            f"{facts}{skipped}; look at these images, or start again from the last checkpoint with a lower "
            "training.optimizer.learning_rate or a longer warm-up; training.skip_nonfinite_steps skips such steps"
        )

    def _where(self, step: int, batch: Any) -> str:
        ids = [image_id.decode(errors="replace") for image_id in np.ravel(batch.image_ids)]
        named = ", ".join(ids[:_IDS_NAMED]) + (f" and {len(ids) - _IDS_NAMED} more" if len(ids) > _IDS_NAMED else "")
        where = f", on the images {named}"
        if self._folder is None:
            return where
        # A skipped step does not count, so the next one may fail under the same number.
        repeated = f"-{self.count}" if self.count > 1 else ""
        path = os.path.join(self._folder, f"nonfinite-{step}{self._suffix}{repeated}.npz")
        try:
            write_batch(path, batch)
        except (OSError, tf.errors.OpError) as error:
            return f"{where} (which could not be written to {path}: {error})"
        return f"{where}, written to {path}"


def write_batch(path: str, batch: Any) -> None:
    """Writes the fields of nested named tuples as `.npz`: images, targets/semantic, image_ids, ..."""
    content = io.BytesIO()
    np.savez(content, **_by_path(batch))
    tf.io.gfile.makedirs(os.path.dirname(path) or ".")
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(content.getvalue())


def _by_path(value: Any, path: str = "") -> dict[str, np.ndarray]:
    if not hasattr(value, "_fields"):
        array = np.asarray(value)
        return {path: array.astype(np.bytes_) if array.dtype == object else array}  # Object arrays would be pickled.
    arrays: dict[str, np.ndarray] = {}
    for name in value._fields:
        arrays.update(_by_path(getattr(value, name), f"{path}/{name}".lstrip("/")))
    return arrays
