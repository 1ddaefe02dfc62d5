"""Wires a run: devices, model, optimizers, EMA, checkpoints, trainer and evaluation of an experiment."""

from __future__ import annotations

import copy
import hashlib
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import orbit
import tensorflow as tf
from google.protobuf import text_format

from maxdl_tf import config
from maxdl_tf.checkpoints import best
from maxdl_tf.checkpoints.folder import checkpoint_paths, remove_leftovers
from maxdl_tf.checkpoints.initial_weights import load_initial_weights
from maxdl_tf.checkpoints.save_restore import CheckpointMismatch, Checkpoints
from maxdl_tf.data.record_streams import DataService
from maxdl_tf.errors import UserError
from maxdl_tf.files import disk_space, storage
from maxdl_tf.files.folder_lock import FolderLock
from maxdl_tf.keras_api import keras
from maxdl_tf.protos import experiment_pb2
from maxdl_tf.tasks import task_of
from maxdl_tf.tasks.base import Task, build_schedule
from maxdl_tf.training import distribution, run_info
from maxdl_tf.training.ema import ExponentialMovingAverage
from maxdl_tf.training.loop import Loop, Plan
from maxdl_tf.training.nonfinite import NonFiniteSteps
from maxdl_tf.training.optimizers import Optimizers
from maxdl_tf.training.step import StepOptions, Trainer


class TrainState(NamedTuple):
    """The state of a training: the model and the variables that change with it.

    Attributes:
      strategy: Strategy in whose scope the variables were created.
      model: The network.
      global_step: Number of finished steps, int64.
      optimizers: Optimizers of the model. None: the model is only evaluated.
      ema: Moving averages of the model's weights, if the experiment has them.
    """

    strategy: tf.distribute.Strategy
    model: tf.Module
    global_step: tf.Variable
    optimizers: Optimizers | None
    ema: ExponentialMovingAverage | None


def build_state(task: Task, strategy: tf.distribute.Strategy) -> TrainState:
    """Builds the model with initial weights, and its optimizers and EMA if the task is for training."""
    with strategy.scope():
        model = task.build_model()
        global_step = orbit.utils.create_global_step()
        optimizers = task.build_optimizers(model) if task.for_training else None
    decay = task.experiment.training.ema_decay
    ema = ExponentialMovingAverage(strategy, model, decay) if task.for_training and decay else None
    return TrainState(strategy, model, global_step, optimizers, ema)


def build_trainer(
    task: Task, state: TrainState, batches: tf.data.Dataset, nonfinite: NonFiniteSteps | None = None
) -> Trainer:
    """Builds what runs the training steps.

    Args:
      task: Task of the state.
      state: From `build_state`.
      batches: Endless batches, distributed by the strategy.
      nonfinite: Receives steps that are not finite. None: the first one ends the run.
    """
    training = task.experiment.training
    return Trainer(
        strategy=state.strategy,
        model=state.model,
        loss=task.build_loss(state.model),
        optimizers=state.optimizers,
        batches=batches,
        global_step=state.global_step,
        options=StepOptions(
            batch_size=task.experiment.train_dataset.batch_size,
            steps_per_loop=training.steps_per_loop,
            accumulate_steps=training.accumulate_steps,
            jit_compile=training.jit_compile,
        ),
        ema=state.ema,
        nonfinite=nonfinite,
    )


class Run:
    """Training or evaluation of an experiment in a folder.

    Args:
      experiment: The experiment.
      model_dir: Folder of the checkpoints, curves and metrics.
      strategy: Devices of the run.
      trains: Whether the experiment is trained. Otherwise its checkpoints are evaluated.
      evaluates: Whether it is evaluated, while it trains or from its checkpoints.
      written_as: The experiment with its placeholders, which is written into model_dir. None: `experiment`.
      lock: Lock of model_dir that the caller holds; None in workers that do not write, and without training.

    Raises:
      UserError: The experiment cannot run on these devices.
    """

    def __init__(
        self,
        experiment: experiment_pb2.Experiment,
        model_dir: str,
        strategy: tf.distribute.Strategy,
        *,
        trains: bool,
        evaluates: bool,
        written_as: experiment_pb2.Experiment | None = None,
        lock: FolderLock | None = None,
    ):
        if trains:
            check_devices(experiment, strategy)
        if evaluates and isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            raise UserError(
                "evaluation does not run on several hosts; use --mode train there, and --mode continuous_eval on one "
                "more host"
            )
        writes = distribution.is_chief(strategy)
        self._log: Callable[[str], None] = print_to_stderr if writes else lambda line: None
        self._log(f"building {experiment.model.variant!r} for {distribution.describe(strategy)}")
        self._experiment = experiment
        self._written_as = written_as or experiment
        self._model_dir = model_dir
        self._task = task_of(experiment, for_training=trains)
        self._set_seed(step=0)
        self._state = build_state(self._task, strategy)
        self._checkpoints = Checkpoints(
            model_dir,
            model=self._state.model,
            global_step=self._state.global_step,
            optimizers=self._state.optimizers.by_name if trains else None,
            ema=self._state.ema,
            keep=experiment.training.checkpoints_to_keep,
            writes=writes,
            log=self._log,
        )
        self._best = best.BestCheckpoint(
            os.path.join(model_dir, best.FOLDER),
            model=self._state.model,
            global_step=self._state.global_step,
            prepare=self._save_experiment,
            measure=_measure(self._written_as),
            log=self._log,
        )
        self._loop = Loop(
            global_step=self._state.global_step,
            model_dir=model_dir,
            checkpoints=self._checkpoints,
            ema=self._state.ema,
            best=self._best if writes else None,
            writes=writes,
            keep_folder=self._keep_model_dir,
        )
        self._writes = writes
        self._lock = lock
        self._evaluation = None
        if evaluates:
            self._evaluation = self._task.build_evaluation(
                strategy,
                self._state.model,
                show_picture=_show_in_tensorboard,
                num_pictures=experiment.training.summary_images,
            )
        self._datasets = [experiment.train_dataset] * trains + [experiment.eval_dataset] * evaluates

    def evaluate(self) -> None:
        """Evaluates the newest checkpoint.

        Raises:
          UserError: There is none.
        """
        if self._checkpoints.restore_latest() is None:
            raise UserError(f"no checkpoint in {self._model_dir}; train first, or choose another --model_dir")
        with self._task.naming_bad_records(*self._datasets):
            self._loop.evaluate(self._evaluation)

    def evaluate_continuously(self) -> None:
        """Evaluates each new checkpoint until the last one of the experiment, or until no new one appears in time."""
        with self._task.naming_bad_records(*self._datasets):
            self._loop.evaluate_continuously(
                self._evaluation,
                steps=self._experiment.training.steps,
                timeout_seconds=self._experiment.evaluation.timeout_seconds,
            )

    def start_training(self, config_file: str, data_service: str | None = None) -> Trainer:
        """Restores the newest checkpoint, or loads the initial weights, and prepares the folder and the batches.

        Args:
          config_file: Path of the experiment, for `run_info.json`.
          data_service: Address of the dispatcher of the tf.data service that makes the batches.

        Returns:
          What `train` takes.
        """
        step = self._restore_or_start()
        strategy = self._state.strategy
        if self._writes:
            self._prepare_model_dir(step)
            self._task.check_records(self._log)
            run = run_info.describe_run(config_file, step=step, devices=distribution.describe(strategy))
            run_info.append_run(self._model_dir, run)
        seed = self._set_seed(step)
        service = self._data_service(data_service, step) if data_service else None
        batches = strategy.distribute_datasets_from_function(
            lambda context: self._task.build_batches(context, seed=seed, service=service)
        )
        nonfinite = NonFiniteSteps(
            self._model_dir,
            allowed=self._experiment.training.skip_nonfinite_steps,
            suffix=distribution.worker_suffix(strategy),
            log=self._log,
        )
        return build_trainer(self._task, self._state, batches, nonfinite)

    def train(self, trainer: Trainer, stop_requested: Callable[[], bool] = lambda: False) -> None:
        """Trains to the end of the experiment's steps, and evaluates in between if the run evaluates.

        Args:
          trainer: From `start_training`.
          stop_requested: Returns True to stop after the next step.

        Raises:
          StopTraining: It was stopped; the last step is saved.
          WorkerLostError: Another worker has ended.
        """
        training, step = self._experiment.training, int(self._state.global_step.numpy())
        if step >= training.steps:
            self._log(
                f"step {step} of {training.steps} is reached, nothing is trained; raise training.steps to continue"
            )
        plan = Plan(
            steps=training.steps,
            per_checkpoint=training.steps_per_checkpoint,
            per_summary=training.steps_per_summary,
            per_evaluation=self._experiment.evaluation.steps_between_evaluations,
        )
        strategy = self._state.strategy
        with distribution.noticing_lost_workers(strategy), self._task.naming_bad_records(*self._datasets):
            self._loop.train(trainer, plan, self._evaluation, stop_requested)

    def _set_seed(self, step: int) -> int | None:
        """Seeds initial weights, drop path and dropout; returns the seed of the data.

        A run that resumes at `step` has another seed, so that it sees other images than before.
        """
        if not self._experiment.training.HasField("seed"):
            return None
        seed = self._experiment.training.seed + step
        keras.utils.set_random_seed(seed % 2**32)  # NumPy takes 32 bits.
        return seed

    def _restore_or_start(self) -> int:
        """Sets the weights: those of model_dir, or of initial_checkpoint, or random ones. Returns the step."""
        try:
            restored = self._checkpoints.restore_latest()
        except CheckpointMismatch:
            self._report_changes()  # One of them is the reason.
            raise
        if restored is not None:
            return restored.step
        initial_checkpoint = self._experiment.training.initial_checkpoint
        if initial_checkpoint:
            load_initial_weights(self._state.model, initial_checkpoint, log=self._log)
            self._state.optimizers.restart()
            if self._state.ema is not None:
                self._state.ema.restart()
        elif self._experiment.training.freeze:
            self._log(
                "warning: training.freeze keeps random weights in the backbone, because no training.initial_checkpoint "
                "is set; set it, or drop freeze"
            )
        return 0

    def _prepare_model_dir(self, step: int) -> None:
        """Removes what a killed run left, checks that the checkpoints will fit, and writes the experiment."""
        for folder in (self._model_dir, os.path.join(self._model_dir, best.FOLDER)):
            remove_leftovers(folder)
        # A new checkpoint is complete before the oldest is deleted.
        kept = self._experiment.training.checkpoints_to_keep + (self._evaluation is not None)  # And the best one.
        missing = kept + 1 - len(checkpoint_paths(self._model_dir))
        disk_space.check_space(self._model_dir, self._checkpoints.size, max(1, missing))
        if step:
            self._report_changes(step)
        else:
            self._best.forget()
        self._save_experiment(self._model_dir)

    def _save_experiment(self, folder: str) -> None:
        config.save_experiment(self._written_as, self._task.dataset_info, folder)

    def _report_changes(self, step: int = 0) -> None:
        """Reports what differs from the experiment that the run has followed up to `step`, 0 if it is not known."""
        path = os.path.join(self._model_dir, config.EXPERIMENT_FILE)
        if not storage.exists(path):
            return
        try:
            before = config.load_experiment(path, keep_placeholders=True)
        except UserError as error:
            self._log(f"warning: the changes since the last start are unknown: {error}")
            return
        changes = config.differences(before, self._written_as)
        if changes:
            self._log(f"changes since the last start: {', '.join(map(' '.join, changes.items()))}")
        rates = [float(build_schedule(options.training)(step)) for options in (self._experiment, before)]
        if 0 < step < self._experiment.training.steps and rates[0] != rates[1]:
            self._log(f"the learning rate continues at {rates[0]:.3g}; without the changes it would be {rates[1]:.3g}")

    def _keep_model_dir(self) -> bool:
        """Creates model_dir again if someone removed it, so that the next checkpoint is not lost; whether it did.

        Raises:
          UserError: Another run uses the new folder.
        """
        if self._lock is None or self._lock.is_held:
            return False
        self._log(f"{self._model_dir} was removed while training; it is created again")
        self._lock.renew()
        self._save_experiment(self._model_dir)
        return True

    def _data_service(self, address: str, step: int) -> DataService:
        """The job that the workers of this run share, but no run of another experiment or step."""
        digest = hashlib.sha256(self._experiment.SerializeToString(deterministic=True)).hexdigest()[:16]
        return DataService(address, f"{self._model_dir}@{step}:{digest}")


def check_devices(experiment: experiment_pb2.Experiment, strategy: tf.distribute.Strategy) -> None:
    """Raises UserError if the experiment cannot be trained on the devices of a strategy."""
    replicas = strategy.num_replicas_in_sync
    batch_size, parts = experiment.train_dataset.batch_size, experiment.training.accumulate_steps
    if batch_size % (replicas * parts):
        wanted = f"the {replicas} replicas" + (f" times training.accumulate_steps {parts}" if parts > 1 else "")
        raise UserError(f"train_dataset.batch_size {batch_size} is not a multiple of {wanted}; make it one")
    is_compiled = experiment.training.jit_compile and not isinstance(strategy, tf.distribute.TPUStrategy)
    if is_compiled and experiment.model.sync_batch_norm and replicas > 1:
        raise UserError(
            f"training.jit_compile does not work with model.sync_batch_norm on {replicas} replicas, which would have "
            "to exchange statistics inside the compiled step; switch one of them off, or use --strategy one_device"
        )


def print_to_stderr(line: str) -> None:
    """Prints a line of progress."""
    print(line, file=sys.stderr, flush=True)


def _measure(experiment: experiment_pb2.Experiment) -> str:
    """What decides how an evaluation scores weights, with placeholders: it is written into model_dir."""
    evaluation = copy.deepcopy(experiment.evaluation)
    for field in ("steps_between_evaluations", "timeout_seconds"):  # They decide only when.
        evaluation.ClearField(field)
    parts = (experiment.eval_dataset, evaluation, experiment.model.postprocess)
    return "\n".join(text_format.MessageToString(part, as_one_line=True) for part in parts)


def _show_in_tensorboard(image_id: str, picture: np.ndarray) -> None:
    tf.summary.image(f"examples/{image_id}", picture[None])
