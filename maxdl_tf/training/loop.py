"""The outer loop: trains to the next stop, saves, evaluates and reports progress."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import time
from collections.abc import Callable, Iterator

import orbit
import tensorflow as tf

from maxdl_tf.checkpoints.best import BestCheckpoint
from maxdl_tf.checkpoints.folder import new_checkpoints
from maxdl_tf.checkpoints.save_restore import DAMAGE, Checkpoints
from maxdl_tf.evaluation.model_images import Evaluator, Result
from maxdl_tf.files import storage
from maxdl_tf.progress import Progress, duration
from maxdl_tf.training.ema import ExponentialMovingAverage
from maxdl_tf.training.step import StopTraining, Trainer
from maxdl_tf.training.watchdog import Watchdog

# Time from the traced step to the end of the first step, relative to the time of tracing. Measured on CPUs: 0.9 for
# tiny, 1.7 for S.
_COMPILING_PER_TRACING = 1.5


@dataclasses.dataclass(frozen=True)
class Plan:
    """Numbers of steps after which things happen.

    Attributes:
      steps: Number of steps in the whole training.
      per_checkpoint: Steps between two checkpoints.
      per_summary: Steps between two points of the curves.
      per_evaluation: Steps between two evaluations; 0: only at the end.
    """

    steps: int
    per_checkpoint: int
    per_summary: int
    per_evaluation: int = 0

    def next_stop(self, step: int) -> int:
        """The next step to save a checkpoint at: a multiple of an interval, or the end.

        Stops do not depend on where the run started, so a resumed run stops where an unbroken one would.
        """
        stops = [_next_multiple(step, interval) for interval in (self.per_checkpoint, self.per_evaluation) if interval]
        return min(self.steps, *stops)

    def next_summary(self, step: int) -> int:
        """The step of the next point of the curves."""
        return min(self.next_stop(step), _next_multiple(step, self.per_summary))

    def evaluates_at(self, step: int) -> bool:
        """Whether to evaluate at a stop."""
        return step >= self.steps or bool(self.per_evaluation and step % self.per_evaluation == 0)


class Loop:
    """Drives a `Trainer` and an `Evaluator`.

    It takes the place of `orbit.Controller`, which restores without comparing names, wants stops at even distances and
    prints dictionaries.

    Args:
      global_step: Step counter.
      model_dir: Folder of the curves (`train/`, `eval/`) and the metrics (`metrics.json`, `eval/metrics-STEP.json`).
      checkpoints: Checkpoints in model_dir.
      ema: EMA of the model's weights, which is evaluated during training.
      best: Keeps the weights that did best in the evaluations of a training.
      writes: False in workers that leave writing to the chief.
      keep_folder: Called before something is written into model_dir; creates it again if someone removed it, and
        returns whether it did.
    """

    def __init__(
        self,
        *,
        global_step: tf.Variable,
        model_dir: str,
        checkpoints: Checkpoints,
        ema: ExponentialMovingAverage | None = None,
        best: BestCheckpoint | None = None,
        writes: bool = True,
        keep_folder: Callable[[], bool] = lambda: False,
    ):
        self._global_step = global_step
        self._model_dir = model_dir
        self._checkpoints = checkpoints
        self._ema = ema
        self._best = best
        self._writes = writes
        self._restore_folder = keep_folder
        self._stop_requested: Callable[[], bool] = lambda: False
        self._summaries: dict[str, orbit.utils.SummaryManager] = {}
        tf.summary.experimental.set_step(global_step)

    def train(
        self,
        trainer: Trainer,
        plan: Plan,
        evaluator: Evaluator | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        """Trains from the current step to the end of the plan, and evaluates in between if there is an evaluator.

        A finished training is evaluated again, because it may have been killed before its last evaluation.

        Args:
          trainer: Trainer of the model.
          plan: When to save and evaluate.
          evaluator: Evaluator of the model; None: no evaluation.
          stop_requested: If it returns True, training stops after the next step, and evaluation after the next batch.

        Raises:
          StopTraining: `stop_requested` returned True; the last step is saved.
        """
        trainer.stop_requested = self._stop_requested = stop_requested
        step = self._step()
        if step >= plan.steps:
            if evaluator is not None:
                self._evaluate_ema(evaluator)
            return
        stream = None if self._writes else io.StringIO()  # Only the chief reports progress.
        with Progress(
            "training", plan.steps, "steps", images_per_unit=trainer.batch_size, done=step, stream=stream
        ) as progress:
            watchdog = Watchdog(progress.say)
            trainer.on_progress = _progress_reporter(progress, trainer, watchdog)
            while step < plan.steps:
                stop = plan.next_stop(step)
                try:
                    with watchdog.watching():
                        self._train_to(stop, trainer, plan)
                except StopTraining:
                    self._save()
                    progress.close()
                    progress.say(f"stopped; step {self._step()} is saved")
                    raise
                step = stop
                self._save()
                if evaluator is not None and plan.evaluates_at(step):
                    self._evaluate_ema(evaluator)
                progress.restart_rate()

    def evaluate(self, evaluator: Evaluator) -> Result:
        """Evaluates the current weights; prints the table and writes JSON and curves.

        Returns:
          The result of the metric.
        """
        summaries = self._summaries_of("eval")
        with _reporting(evaluator, self._stop_requested), summaries.summary_writer().as_default():
            curves = evaluator.evaluate(tf.constant(-1))
        summaries.write_summaries(curves)
        summaries.flush()
        step = self._step()
        if self._writes:
            metrics = {"step": step, **evaluator.result.as_dict()}
            storage.write_json(os.path.join(self._model_dir, "eval", f"metrics-{step}.json"), metrics)
            storage.write_json(os.path.join(self._model_dir, "metrics.json"), metrics)
        print(f"step {step}\n{evaluator.result.as_table()}", flush=True)
        return evaluator.result

    def evaluate_continuously(self, evaluator: Evaluator, *, steps: int, timeout_seconds: float) -> None:
        """Evaluates each new checkpoint of model_dir up to that of step `steps`, or until none appears in time."""
        log = Progress("waiting", None).say
        log(f"waiting for checkpoints in {self._model_dir}, at most {timeout_seconds:g} s for each")
        for path in new_checkpoints(self._model_dir, timeout_seconds):
            try:
                self._checkpoints.restore(path)
            except DAMAGE as error:
                # The training run deletes old checkpoints, perhaps this one just now.
                log(f"checkpoint {path} cannot be read ({error}); waiting for the next")
                continue
            self._evaluate_and_keep(evaluator)
            if self._step() >= steps:
                return
        log(f"no new checkpoint for {timeout_seconds:g} s")

    def _train_to(self, stop: int, trainer: Trainer, plan: Plan) -> None:
        """Trains up to a step and writes the curves on the way."""
        while self._step() < stop:
            step, start = self._step(), time.monotonic()
            num_steps = plan.next_summary(step) - step
            curves = trainer.train(tf.constant(num_steps))
            steps_per_second = num_steps / (time.monotonic() - start)
            self._keep_folder()
            summaries = self._summaries_of("train")
            summaries.write_summaries({**curves, "steps_per_second": steps_per_second})
            summaries.flush()

    def _keep_folder(self) -> bool:
        """Creates model_dir again if someone removed it; returns whether it did."""
        was_gone = self._restore_folder()
        if was_gone:
            self._summaries.clear()  # Their files are gone, which TensorFlow does not notice.
        return was_gone

    def _save(self) -> None:
        self._keep_folder()
        try:
            self._checkpoints.save()
        except (tf.errors.NotFoundError, FileNotFoundError):  # Perhaps it was removed just now.
            if not self._keep_folder():
                raise
            self._checkpoints.save()

    def _evaluate_ema(self, evaluator: Evaluator) -> None:
        with contextlib.nullcontext() if self._ema is None else self._ema.in_model():
            self._evaluate_and_keep(evaluator)

    def _evaluate_and_keep(self, evaluator: Evaluator) -> None:
        result = self.evaluate(evaluator)
        if self._best is not None:
            self._best.offer(result.score)

    def _step(self) -> int:
        return int(self._global_step.numpy())

    def _summaries_of(self, name: str) -> orbit.utils.SummaryManager:
        """The curves in a folder of model_dir. Each manager opens a file of its own."""
        if name not in self._summaries:
            folder = os.path.join(self._model_dir, name) if self._writes else None
            self._summaries[name] = orbit.utils.SummaryManager(folder, tf.summary.scalar, self._global_step)
        return self._summaries[name]


def evaluate_with_progress(evaluator: Evaluator) -> Result:
    """The result of the metric for the current weights; writes nothing."""
    with _reporting(evaluator):
        evaluator.evaluate(tf.constant(-1))
    return evaluator.result


def _next_multiple(step: int, interval: int) -> int:
    return (step // interval + 1) * interval


def _progress_reporter(
    progress: Progress, trainer: Trainer, watchdog: Watchdog
) -> Callable[[int, dict[str, float]], None]:
    """Traces the step, reports what comes before it, and returns a callback for `Trainer.on_progress`."""
    start = time.monotonic()
    progress.say("tracing the training step")
    estimate = trainer.estimate_memory()
    for line in estimate.lines() if estimate else ():
        progress.say(line)
    if trainer.xla_compiles:
        progress.say("compiling the training step with XLA; a large network takes minutes")
    else:
        usual = duration(_COMPILING_PER_TRACING * (time.monotonic() - start))
        progress.say(f"compiling the training step, usually about {usual}")
    compiled = False

    def on_progress(steps: int, means: dict[str, float]) -> None:
        nonlocal compiled
        if not compiled:
            progress.say(f"training; compiling and the first step took {duration(time.monotonic() - start)}")
            compiled = True
        progress.advance(steps, note=_note(means, trainer.loss_terms))
        watchdog.beat()

    return on_progress


def _note(means: dict[str, float], terms: tuple[str, ...]) -> str:
    parts = " ".join(f"{name} {means[name]:.3g}" for name in terms if name != "total" and means[name])
    waiting = f"  waiting for input {means['wait_share']:.0%}" if "wait_share" in means else ""
    return f"loss {means['total']:.4g}" + (f" ({parts})" if parts else "") + waiting


@contextlib.contextmanager
def _reporting(evaluator: Evaluator, stop_requested: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Reports the evaluator's progress, and raises StopTraining in it if `stop_requested` returns True."""
    with Progress("evaluating", evaluator.image_count, "images") as progress:

        def on_progress(images: int) -> None:
            progress.advance(images)
            if stop_requested():
                raise StopTraining

        evaluator.on_progress = on_progress
        yield
