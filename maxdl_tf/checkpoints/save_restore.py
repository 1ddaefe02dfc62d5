"""Saves checkpoints and restores them strictly: the whole model, or an error that names what does not fit."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from maxdl_tf.checkpoints import folder
from maxdl_tf.checkpoints.compare import compare
from maxdl_tf.checkpoints.keys import BOOKKEEPING, is_of_model, name_of, shapes_by_key, variables_by_key
from maxdl_tf.checkpoints.source import check_no_pattern
from maxdl_tf.errors import UserError
from maxdl_tf.files import disk_space

_BYTES_PER_NAME = 1000  # In a checkpoint's index and object graph, about.
# Errors of reading a damaged checkpoint. TensorFlow's reader turns some of its errors into Python's own.
DAMAGE = (tf.errors.OpError, IndexError, RuntimeError)


class CheckpointMismatch(UserError):
    """The checkpoint belongs to another model."""


class NonFiniteModelError(UserError):
    """A variable that is about to be saved, or was restored, is NaN or infinite."""


class MovingAverage(Protocol):
    """EMA of a model's variables, which is in the model when a checkpoint is written; see `training.ema`."""

    def in_model(self) -> contextlib.AbstractContextManager[None]: ...

    def swap(self) -> None: ...


class Restored(NamedTuple):
    """Result of restoring a checkpoint.

    Attributes:
      path: Path of the checkpoint.
      step: Global step of the checkpoint.
      model_variables: Number of restored variables of the model, which are all of them.
      optimizer_variables: Number of restored variables of the optimizers: all, or 0 if there are no optimizers.
    """

    path: str
    step: int
    model_variables: int
    optimizer_variables: int

    def report(self) -> str:
        """One human-readable line."""
        optimizers = f" and {self.optimizer_variables} of the optimizers" if self.optimizer_variables else ""
        return (
            f"restored all {self.model_variables} variables of the model{optimizers} from {self.path}, step {self.step}"
        )


class Checkpoints:
    """The checkpoints of one model_dir, `ckpt-STEP`.

    Args:
      directory: Folder of the checkpoints; created by the first `save`.
      model: Model whose variables exist.
      global_step: int64 variable that counts the steps.
      optimizers: Optimizers by their names in the checkpoint; none if the model is only evaluated.
      ema: EMA of the model's weights. The model in a checkpoint is then the EMA. The weights to resume from are beside
        it, as `trained_weights`.
      keep: Number of checkpoints to keep. Older ones are deleted.
      writes: False in workers that must take part in saving but keep no files.
      log: Receives a line about each restored or skipped checkpoint.

    Raises:
      UserError: TensorFlow would take the path of the directory as a pattern.
    """

    def __init__(
        self,
        directory: str,
        *,
        model: tf.Module,
        global_step: tf.Variable,
        optimizers: Mapping[str, Any] | None = None,
        ema: MovingAverage | None = None,
        keep: int = 5,
        writes: bool = True,
        log: Callable[[str], None] = print,
    ):
        check_no_pattern(directory)
        self.directory = directory
        self._log = log
        self._optimizers = dict(optimizers or {})
        self._global_step = global_step
        self._ema = ema
        beside = {"trained_weights": ema} if ema is not None else {}
        self._root = tf.train.Checkpoint(model=model, global_step=global_step, **self._optimizers, **beside)
        self._keep = keep
        self._writes = writes

    @property
    def size(self) -> int:
        """Estimated bytes of one checkpoint."""
        variables = variables_by_key(self._root).values()
        tensors = sum(variable.shape.num_elements() * variable.dtype.size for variable in variables)
        return tensors + _BYTES_PER_NAME * len(variables)

    def save(self) -> str:
        """Writes `ckpt-STEP` and deletes old checkpoints. All workers must call it.

        A checkpoint of a higher step, which could not be restored, counts for nothing and stays.

        Raises:
          NonFiniteModelError: A variable is NaN or infinite. Nothing is written.
          UserError: The disk is full.
        """
        step = int(self._global_step.numpy())
        variables = variables_by_key(self._root)
        broken = [key for key, variable in variables.items() if not _is_finite(variable)]
        if broken:
            raise NonFiniteModelError(
                f"step {step} is not saved in {self.directory}: {_share(broken, variables)} not finite; start again "
                "from the last checkpoint with a lower training.optimizer.learning_rate"
            )
        self._root.save_counter.assign_add(1)
        try:
            with contextlib.ExitStack() as stack:
                directory = self.directory
                if not self._writes:
                    directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="maxdl_worker_"))
                if self._ema is not None:
                    stack.enter_context(self._ema.in_model())
                path = self._root.write(os.path.join(directory, f"{folder.PREFIX}-{step}"))
            if self._writes:
                folder.keep_newest(self.directory, self._keep, step)
        except (tf.errors.ResourceExhaustedError, OSError) as error:
            if isinstance(error, OSError) and not disk_space.full_disk(error):
                raise
            raise UserError(
                f"cannot save step {step} in {self.directory}: {reason_of(error)}; make room, and start the same "
                "command again to resume from the last checkpoint"
            ) from error
        return path

    def restore_latest(self) -> Restored | None:
        """Restores the newest complete checkpoint of the directory; returns None if there are no checkpoints.

        A checkpoint that a killed process or a full disk left incomplete, or that is not finite, is skipped and logged.

        Raises:
          CheckpointMismatch: The checkpoint does not fit; see `restore`.
          UserError: All checkpoints are damaged.
        """
        paths = folder.checkpoint_paths(self.directory)
        for path in paths:
            try:
                return self.restore(path)
            except DAMAGE as error:
                self._log(f"checkpoint {path} is incomplete ({reason_of(error)}); trying the one before it")
            except NonFiniteModelError as error:
                self._log(f"skipping {error}")
        if paths:
            raise UserError(
                f"none of the {len(paths)} checkpoints in {self.directory} can be read; delete them to train again, or "
                "choose another folder"
            )
        return None

    def restore(self, path: str) -> Restored:
        """Restores model, step and optimizers from one checkpoint.

        Raises:
          CheckpointMismatch: A variable is missing from the checkpoint, has another shape, or is unknown.
          NonFiniteModelError: A variable is NaN or infinite.
          tf.errors.OpError, IndexError, RuntimeError: Files are missing or damaged. No variable has changed.
        """
        check_no_pattern(path)
        wanted = {key: v for key, v in variables_by_key(self._root).items() if key not in BOOKKEEPING}
        reader = tf.train.load_checkpoint(path)
        _require_same(path, reader, wanted, whole=bool(self._optimizers))
        # Checksums first. TensorFlow would find damage halfway, and warn of each variable that it did not reach.
        broken = [key for key in wanted if not np.isfinite(reader.get_tensor(key)).all()]
        if broken:
            raise NonFiniteModelError(f"checkpoint {path}: {_share(broken, wanted)} not finite; take an earlier one")
        status = self._root.restore(path)
        status.assert_existing_objects_matched()
        if self._ema is not None:
            self._ema.swap()
        if not self._optimizers:
            status.expect_partial()  # Only the optimizers are unused: the keys were compared above.
        model_variables = sum(is_of_model(key) for key in wanted)
        restored = Restored(
            path,
            int(self._global_step.numpy()),
            model_variables,
            len(wanted) - model_variables - 1,  # 1: the global step.
        )
        self._log(restored.report())
        return restored


def load_model_weights(model: tf.Module, path: str, log: Callable[[str], None] = lambda line: None) -> Restored:
    """Restores all variables of a model, and only these, from a checkpoint of `Checkpoints`.

    Args:
      model: Model whose variables exist.
      path: A checkpoint (`.../ckpt-1000`), or a directory whose newest complete checkpoint is used.
      log: Receives a line about each restored or skipped checkpoint.

    Raises:
      CheckpointMismatch: A variable is missing from the checkpoint, has another shape, or is unknown.
      UserError: There is no checkpoint, or it cannot be read.
    """
    is_directory = tf.io.gfile.isdir(path)
    checkpoints = Checkpoints(
        path if is_directory else os.path.dirname(path),
        model=model,
        global_step=tf.Variable(0, dtype=tf.int64, trainable=False),
        log=log,
    )
    if is_directory:
        restored = checkpoints.restore_latest()
        if restored is None:
            raise UserError(f"no checkpoint in {path}; wanted files like {folder.PREFIX}-1000.index")
        return restored
    try:
        return checkpoints.restore(path)
    except DAMAGE as error:
        raise UserError(f"cannot read the checkpoint {path}: {reason_of(error)}; check the path") from error


def _share(broken: Sequence[str], keys: Collection[str]) -> str:
    return f"{len(broken)} of {len(keys)} variables, such as {name_of(broken[0])}, are"


def _is_finite(variable: tf.Variable) -> bool:
    if not variable.dtype.is_floating:
        return True
    # Reading a distributed variable as a whole would contact the other workers.
    copies = variable.values if isinstance(variable, tf.distribute.DistributedValues) else (variable,)
    return all(bool(tf.reduce_all(tf.math.is_finite(copy))) for copy in copies)


def _require_same(path: str, reader: Any, expected: Mapping[str, tf.Variable], whole: bool) -> None:
    """Raises CheckpointMismatch unless the checkpoint has exactly these variables.

    If not `whole`, only the variables of the model are compared.
    """
    shapes = shapes_by_key(reader)
    found = {name_of(key): shape for key, shape in shapes.items() if whole or key in expected or is_of_model(key)}
    wanted = {name_of(key): tuple(variable.shape) for key, variable in expected.items()}
    difference = compare(found, wanted)
    if not difference.is_none:
        raise CheckpointMismatch(
            f"checkpoint {path} does not fit this experiment; {difference.summary()}; use the config that it was "
            "trained with, or train in an empty folder"
        )


def reason_of(error: Exception) -> str:
    """The human-readable reason of an error, without names of TensorFlow operations."""
    text = str(getattr(error, "message", error)).strip() or type(error).__name__
    return re.sub(r"^\{\{.*?\}\} |\s*\[Op:\w+\].*$", "", text.splitlines()[0])
