"""The outer loop: trains up to the next stop, saves, evaluates, and tells how far it is."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import orbit
import tensorflow as tf

from maxdl_tf.checkpoints.save_restore import DAMAGE, Checkpoints
from maxdl_tf.evaluation.model_images import Evaluator, Result
from maxdl_tf.progress import Progress, duration
from maxdl_tf.training.ema import WeightAverages
from maxdl_tf.training.step import StopTraining, Trainer
from maxdl_tf.training.watchdog import Watchdog

# What TensorFlow needs from the traced step to the end of the first one, against the time of tracing: 0.9 times were
# measured for tiny, 1.7 for S, on CPUs.
_COMPILING_PER_TRACING = 1.5


@dataclasses.dataclass(frozen=True)
class Plan:
    """When what happens; all in steps.

    Attributes:
      steps: Of the whole training.
      per_checkpoint: Between two checkpoints.
      per_summary: Between two points of the curves.
      per_evaluation: Between two evaluations; 0: only at the end.
    """

    steps: int
    per_checkpoint: int
    per_summary: int
    per_evaluation: int = 0

    def next_stop(self, step: int) -> int:
        """Where training is interrupted next, for a checkpoint: multiples of the intervals, and the end.

        They do not depend on where the run started, so that a resumed run stops where the unbroken one would.
        """
        stops = [_next_multiple(step, interval) for interval in (self.per_checkpoint, self.per_evaluation) if interval]
        return min(self.steps, *stops)

    def next_summary(self, step: int) -> int:
        """Up to where the next point of the curves is averaged."""
        return min(self.next_stop(step), _next_multiple(step, self.per_summary))

    def evaluates_at(self, step: int) -> bool:
        return step >= self.steps or bool(self.per_evaluation and step % self.per_evaluation == 0)


class Loop:
    """Drives a `Trainer` and an `Evaluator` by Orbit's controller.

    Args:
      global_step: Counts the steps.
      model_dir: Curves go below `train/` and `eval/`, metrics into `metrics.json` and `eval/metrics-STEP.json`.
      checkpoints: Of model_dir.
      averages: Of the model's weights; they are evaluated while it trains.
      writes: False in the workers that leave writing to the chief.
    """

    def __init__(
        self,
        *,
        global_step: tf.Variable,
        model_dir: str,
        checkpoints: Checkpoints,
        averages: WeightAverages | None = None,
        writes: bool = True,
    ):
        self._global_step = global_step
        self._model_dir = model_dir
        self._checkpoints = checkpoints
        self._averages = averages
        self._writes = writes
        self._stop_requested: Callable[[], bool] = lambda: False
        self._eval_controllers: dict[Evaluator, orbit.Controller] = {}

    def train(
        self,
        trainer: Trainer,
        plan: Plan,
        evaluator: Evaluator | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        """Trains from the current step to the end of the plan; evaluates on the way where there is an evaluator.

        A training that is at its end already is evaluated, because it may have been killed before that.

        Args:
          trainer: Its steps end where the plan says.
          plan: When what happens.
          evaluator: None: nothing is evaluated.
          stop_requested: After True the training stops at the next step, and evaluation at the next batch.

        Raises:
          StopTraining: It was asked to; the last step is saved.
        """
        trainer.stop_requested = self._stop_requested = stop_requested
        controller = orbit.Controller(
            global_step=self._global_step,
            trainer=trainer,
            steps_per_loop=lambda step: plan.next_summary(int(step)) - int(step),
            summary_dir=self._summary_dir("train"),
        )
        step = int(self._global_step.numpy())
        if step >= plan.steps:
            if evaluator is not None:
                self._evaluate_averages(evaluator)
            return
        stream = None if self._writes else io.StringIO()  # One worker of several speaks.
        with Progress(
            "training", plan.steps, "steps", images_per_unit=trainer.batch_size, done=step, stream=stream
        ) as progress:
            watchdog = Watchdog(progress.say)
            told = _tell_progress(progress, trainer)

            def on_progress(steps: int, means: dict[str, float]) -> None:
                told(steps, means)
                watchdog.beat()

            trainer.on_progress = on_progress
            while step < plan.steps:
                try:
                    with _hushed(), watchdog.watching():
                        controller.train(plan.next_stop(step), checkpoint_at_completion=False)
                except StopTraining:
                    self._checkpoints.save()
                    progress.close()
                    progress.say(f"stopped; step {int(self._global_step.numpy())} is saved")
                    raise
                step = plan.next_stop(step)
                self._checkpoints.save()
                if evaluator is not None and plan.evaluates_at(step):
                    self._evaluate_averages(evaluator)

    def evaluate(self, evaluator: Evaluator) -> Result:
        """Evaluates the weights as they are; prints the table, writes JSON and curves.

        Returns:
          The metric's result.
        """
        if evaluator not in self._eval_controllers:  # Each opens a file of events.
            self._eval_controllers[evaluator] = orbit.Controller(
                global_step=self._global_step, evaluator=evaluator, eval_summary_dir=self._summary_dir("eval")
            )
        with _shown(evaluator, self._stop_requested), _hushed():
            self._eval_controllers[evaluator].evaluate()
        step = int(self._global_step.numpy())
        if self._writes:
            metrics = {"step": step, **evaluator.result.as_dict()}
            write_json(os.path.join(self._model_dir, "eval", f"metrics-{step}.json"), metrics)
            write_json(os.path.join(self._model_dir, "metrics.json"), metrics)
        print(f"step {step}\n{evaluator.result.as_table()}", flush=True)
        return evaluator.result

    def evaluate_continuously(self, evaluator: Evaluator, *, steps: int, timeout_seconds: float) -> None:
        """Evaluates each new checkpoint of model_dir until that of step `steps`, or none comes for so long."""
        say = Progress("waiting", None).say
        say(f"waiting for checkpoints in {self._model_dir}, at most {timeout_seconds:g} s for each")
        for path in tf.train.checkpoints_iterator(self._model_dir, timeout=timeout_seconds):
            try:
                self._checkpoints.restore(path)
            except DAMAGE as error:
                # The training run deletes old checkpoints, perhaps this one just now.
                say(f"checkpoint {path} cannot be read ({error}); waiting for the next")
                continue
            self.evaluate(evaluator)
            if int(self._global_step.numpy()) >= steps:
                return
        say(f"no new checkpoint for {timeout_seconds:g} s")

    def _evaluate_averages(self, evaluator: Evaluator) -> None:
        with contextlib.nullcontext() if self._averages is None else self._averages.in_model():
            self.evaluate(evaluator)

    def _summary_dir(self, name: str) -> str | None:
        return os.path.join(self._model_dir, name) if self._writes else None


def evaluate_with_progress(evaluator: Evaluator) -> Result:
    """The metric's result of the weights as they are; writes nothing."""
    with _shown(evaluator):
        evaluator.evaluate(tf.constant(-1))
    return evaluator.result


def write_json(path: str, content: Any) -> None:
    """Writes a JSON file at once: whoever reads it meanwhile sees the old one or the new one."""
    tf.io.gfile.makedirs(os.path.dirname(path) or ".")
    temporary = f"{path}.tmp{os.getpid()}"
    with tf.io.gfile.GFile(temporary, "w") as file:
        file.write(json.dumps(content, indent=2) + "\n")
    tf.io.gfile.rename(temporary, path, overwrite=True)


def _next_multiple(step: int, interval: int) -> int:
    return (step // interval + 1) * interval


def _tell_progress(progress: Progress, trainer: Trainer) -> Callable[[int, dict[str, float]], None]:
    """Tells what comes before the first step; gives what a trainer calls after some steps, the first by itself."""
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

    return on_progress


def _note(means: dict[str, float], terms: tuple[str, ...]) -> str:
    parts = " ".join(f"{name} {means[name]:.3g}" for name in terms if name != "total" and means[name])
    waiting = f"  waiting for input {means['wait_share']:.0%}" if "wait_share" in means else ""
    return f"loss {means['total']:.4g}" + (f" ({parts})" if parts else "") + waiting


@contextlib.contextmanager
def _shown(evaluator: Evaluator, stop_requested: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Shows the evaluator's progress, and ends it with StopTraining where that is asked for."""
    with Progress("evaluating", evaluator.image_count, "images") as progress:

        def on_progress(images: int) -> None:
            progress.advance(images)
            if stop_requested():
                raise StopTraining

        evaluator.on_progress = on_progress
        yield


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keeps the dictionaries off the screen that Orbit's controller prints; our own lines go to stderr meanwhile."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
