"""The inner loop of training, seen from the host: so many steps, their curves, and what to do about a bad one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import orbit
import tensorflow as tf

from maxdl_tf.training import distribution, memory_estimate
from maxdl_tf.training.ema import WeightAverages
from maxdl_tf.training.graph_steps import GraphSteps, Loss, Tried
from maxdl_tf.training.memory_estimate import MemoryEstimate
from maxdl_tf.training.nonfinite import NonFiniteSteps
from maxdl_tf.training.optimizers import Optimizers


class StopTraining(Exception):
    """The training was asked to stop and has done so after a whole step."""


class Trainer(orbit.AbstractTrainer):
    """Trains for some steps at a time; the outer loop saves and evaluates in between.

    A step whose loss or gradient is not finite changes nothing: neither weights, nor optimizers, nor the moving
    statistics of batch norms, nor the count of steps. `nonfinite` decides whether the run goes on with the next batch.

    Args:
      strategy: Model and optimizers were made in its scope.
      model: `model(images, training=True)` gives the outputs that the loss takes.
      loss: Compares them with a batch's targets.
      optimizers: Hold the model's variables.
      batches: Endless batches with `images`, `targets` and `image_ids`, distributed by the strategy; each has
        `batch_size / accumulate_steps` images over all replicas.
      global_step: Counts the steps; see `orbit.utils.create_global_step`.
      batch_size: Images of one step over all replicas.
      steps_per_loop: Steps of one call from the host into the graph.
      accumulate_steps: Batches whose gradients are added up for one step.
      averages: Of the model's weights, which follow them.
      jit_compile: Whether XLA compiles the step; see `GraphSteps`.
      nonfinite: Told of steps that are not finite; if not given, the first one ends the run.

    Attributes:
      on_progress: Called after each such call with its number of steps and the means so far of this `train`, the share
        of waiting for batches among them as `wait_share`.
      stop_requested: Asked before each such call; after True all workers stop when one more step is done.
      loss_terms: Those of the loss.
      xla_compiles: Whether XLA compiles the step, before the first.
    """

    def __init__(
        self,
        *,
        strategy: tf.distribute.Strategy,
        model: tf.Module,
        loss: Loss,
        optimizers: Optimizers,
        batches: tf.data.Dataset,
        global_step: tf.Variable,
        batch_size: int,
        steps_per_loop: int,
        accumulate_steps: int = 1,
        averages: WeightAverages | None = None,
        jit_compile: bool = False,
        nonfinite: NonFiniteSteps | None = None,
    ):
        super().__init__()
        self._strategy = strategy
        self._loss = loss
        self.loss_terms = loss.terms
        self._optimizers = optimizers
        self._batches = batches
        self._iterator: Iterator | None = None
        self._global_step = global_step
        self.batch_size = batch_size
        self._steps_per_loop = steps_per_loop
        self._nonfinite = nonfinite or NonFiniteSteps()
        self.on_progress: Callable[[int, dict[str, float]], None] = lambda steps, means: None
        self.stop_requested: Callable[[], bool] = lambda: False
        self._compiled = False
        self.xla_compiles = jit_compile or isinstance(strategy, tf.distribute.TPUStrategy)
        self._graph = GraphSteps(
            strategy=strategy,
            model=model,
            loss=loss,
            optimizers=optimizers,
            global_step=global_step,
            batch_size=batch_size,
            accumulate_steps=accumulate_steps,
            averages=averages,
            jit_compile=jit_compile,
        )

    def estimate_memory(self) -> MemoryEstimate | None:
        """What a step will take, from its graph, which is made here if it is not there yet; None on TPUs."""
        if isinstance(self._strategy, tf.distribute.TPUStrategy):
            return None
        if not self._graph.operations:
            self._graph.trace(self._endless())
        devices = distribution.devices_of(self._strategy)
        return memory_estimate.estimate(self._graph.operations, self._graph.variables, devices)

    def _endless(self) -> Iterator:
        if self._iterator is None:
            self._iterator = iter(self._batches)
        return self._iterator

    def train(self, num_steps: tf.Tensor) -> dict[str, float]:
        """Trains `num_steps` steps.

        Returns:
          Means over these steps under TensorBoard's tags, the learning rates at the last one, images per second and
          the share of the time that went by waiting for batches (both without the compilation).

        Raises:
          StopTraining: It was asked to.
          NonFiniteLossError: Names the term, the step and the images.
        """
        iterator = self._endless()
        for mean in self._graph.means.values():
            mean.reset_state()
        remaining, timed_steps, seconds, waited = int(num_steps), 0, 0.0, 0.0
        while remaining:
            # The first call compiles. A single step then shows soon that everything works.
            wanted = min(remaining, self._steps_per_loop) if self._compiled else 1
            start = time.monotonic()
            tried = self._graph(iterator, wanted, self.stop_requested())
            steps = int(tried.steps)
            if not tried.finite:
                self._report_nonfinite(tried)
            means = {name: float(mean.result()) for name, mean in self._graph.means.items()}
            if self._compiled:
                timed_steps, seconds = timed_steps + steps, seconds + time.monotonic() - start
                waited += float(tried.waited)
                means["wait_share"] = waited / seconds
            self._compiled = True
            remaining -= steps
            self.on_progress(steps, means)
            if tried.stops:
                raise StopTraining
        curves = self._curves(means)
        if seconds:
            curves["images_per_second"] = timed_steps * self.batch_size / seconds
            curves["input/wait_share"] = waited / seconds
        return curves

    def _report_nonfinite(self, tried: Tried) -> None:
        """Tells `nonfinite`, which may raise."""
        report = dict(zip(self._graph.reported, tried.report.numpy()))
        # The total comes last: the term that spoiled it says more.
        order = (*self._loss.terms[1:], self._loss.terms[0], "gradient_norm")
        term = next(name for name in order if not np.isfinite(report[name]))
        batch = tf.nest.map_structure(self._local_part, tried.batch)
        self._nonfinite.add(int(self._global_step.numpy()) + 1, term, report[term], batch)

    def _local_part(self, value) -> np.ndarray:
        """This process's part of a distributed tensor."""
        return np.concatenate([part.numpy() for part in self._strategy.experimental_local_results(value)])

    def _curves(self, means: dict[str, float]) -> dict[str, float]:
        curves = {f"losses/{name}": means[name] for name in self._loss.terms}
        curves.update({f"{figure.group}/{figure.name}": means[figure.name] for figure in self._loss.figures})
        curves["optimizer/gradient_norm"] = means["gradient_norm"]
        for name, rate in self._optimizers.learning_rates(self._global_step.numpy() - 1).items():
            curves[f"optimizer/{name}"] = float(rate)
        if self._optimizers.loss_scale:
            curves["optimizer/loss_scale"] = float(self._optimizers.loss_scale.scale.numpy())
        return curves
