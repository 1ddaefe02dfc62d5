"""Steps whose loss or gradient is not a number: what is kept of them, and how many a run may have."""

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
    """A loss term or the gradient became NaN or infinite; weights and optimizers are as they were before that step."""


class NonFiniteSteps:
    """Writes down the batches of such steps and ends the run after too many of them.

    Args:
      folder: Gets `nonfinite-STEP.npz`; None: nothing is written.
      allowed: So many are passed over; the next one ends the run. A run that is resumed counts anew.
      suffix: Of the file's name: workers of one run have one each, for each knows its own part of the batch only.
      say: Gets a line on each that is passed over.
    """

    def __init__(
        self,
        folder: str | None = None,
        *,
        allowed: int = 0,
        suffix: str = "",
        say: Callable[[str], None] = lambda line: None,
    ):
        self._folder = folder
        self._allowed = allowed
        self._suffix = suffix
        self._say = say
        self.count = 0

    def add(self, step: int, term: str, value: float, batch: Any) -> None:
        """Counts one.

        Args:
          step: Its number, from 1.
          term: What is not finite, a term of the loss or the norm of the gradient.
          value: NaN or infinite.
          batch: NumPy arrays in a named tuple, with `image_ids`.

        Raises:
          NonFiniteLossError: There were too many.
        """
        self.count += 1
        facts = f"{term} became {value} at step {step}{self._where(step, batch)}"
        if self.count <= self._allowed:
            self._say(f"{facts}; the step is left out, {self.count} of {self._allowed} that may be")
            return
        skipped = f" after {self._allowed} such steps were left out" if self._allowed else ""
        raise NonFiniteLossError(
            f"{facts}{skipped}; look at these images, or start again from the last checkpoint with a lower "
            "training.optimizer.learning_rate or a longer warm-up; training.skip_nonfinite_steps lets some pass"
        )

    def _where(self, step: int, batch: Any) -> str:
        ids = [image_id.decode(errors="replace") for image_id in np.ravel(batch.image_ids)]
        named = ", ".join(ids[:_IDS_NAMED]) + (f" and {len(ids) - _IDS_NAMED} more" if len(ids) > _IDS_NAMED else "")
        where = f", on the images {named}"
        if self._folder is None:
            return where
        # A step that is left out does not count, so that the next one may fail under the same number.
        repeated = f"-{self.count}" if self.count > 1 else ""
        path = os.path.join(self._folder, f"nonfinite-{step}{self._suffix}{repeated}.npz")
        try:
            write_batch(path, batch)
        except (OSError, tf.errors.OpError) as error:
            return f"{where} (which could not be written to {path}: {error})"
        return f"{where}, written to {path}"


def write_batch(path: str, batch: Any) -> None:
    """Writes all fields of a named tuple, and of those in it, as `.npz`: images, targets/semantic, image_ids, ..."""
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
