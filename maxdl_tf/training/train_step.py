"""The inner loop of training: batch -> outputs -> losses -> gradients -> one step of the optimizers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import orbit
import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.structs import Figure
from maxdl_tf.training.averages import WeightAverages
from maxdl_tf.training.nonfinite import NonFiniteLossError, NonFiniteSteps
from maxdl_tf.training.optimizers import Optimizers

__all__ = ["Loss", "NonFiniteLossError", "Trainer"]


class Loss(Protocol):
    """What a model is taught by: `loss(outputs, targets)` gives a tuple with a field, [batch], for each name below.

    Attributes:
      terms: The losses; the first, `total`, is minimized.
      figures: What else is worth a curve.
    """

    terms: tuple[str, ...]
    figures: tuple[Figure, ...]

    def __call__(self, outputs, targets) -> NamedTuple: ...


class _Tried(NamedTuple):
    """Where a call of the graph stopped.

    Attributes:
      steps: int32 scalar, steps that were done.
      parts: int32 scalar, parts of the next one whose gradients are added up already.
      finite: bool scalar; False: the last batch spoiled its step, which was not done.
      report: float32 [terms + 1]; what the last batch adds to the loss terms, and the norm of its gradient.
      batch: That batch.
    """

    steps: Any
    parts: Any
    finite: Any
    report: Any
    batch: Any


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
      nonfinite: Told of steps that are not finite; if not given, the first one ends the run.

    Attributes:
      on_progress: Called after each such call with its number of steps and the means so far of this `train`.
      loss_terms: Those of the loss.
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
        nonfinite: NonFiniteSteps | None = None,
    ):
        super().__init__()
        self._strategy = strategy
        self._model = model
        self._loss = loss
        self.loss_terms = loss.terms
        self._optimizers = optimizers
        self._batches = batches
        self._iterator: Iterator | None = None
        self._global_step = global_step
        self.batch_size = batch_size
        self._steps_per_loop = steps_per_loop
        self._averages = averages
        self._nonfinite = nonfinite or NonFiniteSteps()
        self.on_progress: Callable[[int, dict[str, float]], None] = lambda steps, means: None
        # Without AutoGraph, which would take most of the time of tracing on layers that do not need it.
        self._run_steps = tf.function(self._steps_in_graph, autograph=False)
        self._compiled = False
        # Moving statistics of batch norms: what a forward pass changes.
        self._statistics = [variable for variable in model.variables if not variable.trainable]
        self._reported = (*loss.terms, "gradient_norm")
        figures = [figure.name for figure in loss.figures]
        self._accumulate_steps = accumulate_steps
        with strategy.scope():
            # Each replica adds up for itself; a checkpoint, which is of whole steps, has nothing of it.
            self._sums = [] if accumulate_steps == 1 else [_local_zeros(v) for v in optimizers.variables]
            self._means = {name: keras.metrics.Mean(name) for name in (*self._reported, *figures)}

    def train(self, num_steps: tf.Tensor) -> dict[str, float]:
        """Trains `num_steps` steps.

        Returns:
          Means over these steps under TensorBoard's tags, the learning rates at the last one, and images per second
          (without the compilation).

        Raises:
          NonFiniteLossError: Names the term, the step and the images.
        """
        if self._iterator is None:
            self._iterator = iter(self._batches)
        for mean in self._means.values():
            mean.reset_state()
        remaining, timed_steps, seconds = int(num_steps), 0, 0.0
        while remaining:
            # The first call compiles. A single step then shows soon that everything works.
            wanted = min(remaining, self._steps_per_loop) if self._compiled else 1
            start = time.monotonic()
            tried = _Tried(*self._run_steps(self._iterator, tf.constant(wanted)))
            steps = int(tried.steps)
            if not tried.finite:
                self._report_nonfinite(tried)
            means = {name: float(mean.result()) for name, mean in self._means.items()}
            if self._compiled:
                timed_steps, seconds = timed_steps + steps, seconds + time.monotonic() - start
            self._compiled = True
            remaining -= steps
            self.on_progress(steps, means)
        return self._curves(means, timed_steps * self.batch_size / seconds if seconds else None)

    def _steps_in_graph(self, iterator, num_steps) -> _Tried:
        """Does so many steps, or fewer if one is not finite.

        The loop carries the batch, so that the one that spoiled a step comes out of the graph with it. That costs no
        copy, and the loop need not hold more than this one.
        """

        def goes_on(tried: _Tried):
            return tried.finite & (tried.steps < num_steps)

        def body(*tried):
            tried = _Tried(*tried)
            is_last = tf.equal(tried.parts, self._accumulate_steps - 1)
            finite, report = self._try(tried.batch, is_last)
            tried = tried._replace(
                steps=tried.steps + tf.cast(finite & is_last, tf.int32),
                parts=tf.where(is_last, 0, tried.parts + 1),
                finite=finite,
                report=report,
            )
            return tried._replace(batch=tf.cond(goes_on(tried), iterator.get_next, lambda: tried.batch))

        start = _Tried(
            steps=tf.constant(0),
            parts=tf.constant(0),
            finite=tf.constant(True),
            report=tf.zeros([len(self._reported)]),
            batch=iterator.get_next(),
        )
        return tf.while_loop(lambda *tried: goes_on(_Tried(*tried)), body, start)

    def _try(self, batch, is_last) -> tuple[tf.Tensor, tf.Tensor]:
        """Learns from a batch if that is finite, and does a step if it is the last for it.

        If it is not, all is as before the batch, and what was added up for the step is thrown away. The moving
        statistics keep what they saw of the step's earlier batches, which were finite.

        Returns:
          Whether it is finite, and its report.
        """
        losses, gradients, statistics, report = self._strategy.run(self._learn, args=(batch,))
        report = self._strategy.experimental_local_results(report)[0]  # All replicas have the same.
        finite = tf.reduce_all(tf.math.is_finite(report))

        def accept():
            if self._sums:
                self._strategy.run(self._add, args=(losses, gradients))
                tf.cond(is_last, step_from_sums, lambda: tf.constant(0))
                return tf.constant(0)
            self._strategy.run(self._accept, args=(losses, gradients))
            self._global_step.assign_add(1)
            return tf.constant(0)

        def step_from_sums():
            self._strategy.run(self._step_from_sums)
            self._global_step.assign_add(1)
            return tf.constant(0)

        def undo():
            self._strategy.run(self._undo, args=(statistics,))
            return tf.constant(0)

        # The conditions are out here because a replica by itself may not change variables under one.
        tf.cond(finite, accept, undo)
        return finite, report

    def _learn(self, batch):
        """On a replica's part of the batch: its losses, its gradients, the statistics before it, and the report."""
        variables = self._optimizers.variables
        statistics = [tf.identity(variable) for variable in self._statistics]
        with tf.GradientTape() as tape:
            outputs = self._model(batch.images, training=True)
            losses = self._loss(outputs, batch.targets)
            share_of_mean = tf.reduce_sum(losses.total) / self.batch_size
        # What a switched-off loss term leaves without a gradient stays where it is: Adam does not move on zeros.
        gradients = tape.gradient(share_of_mean, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        report = [tf.reduce_sum(getattr(losses, name)) / self.batch_size for name in self._loss.terms]
        report = self._sum_over_replicas(tf.stack([*report, tf.linalg.global_norm(gradients)]))
        return losses, gradients, statistics, report

    def _accept(self, losses, gradients) -> None:
        """Does a step with a replica's part of the batch."""
        self._record(losses)
        self._step(gradients)

    def _add(self, losses, gradients) -> None:
        """Adds a replica's gradients to those of the step's earlier batches."""
        self._record(losses)
        for sum_of_gradients, gradient in zip(self._sums, gradients):
            sum_of_gradients.assign_add(gradient)

    def _step_from_sums(self) -> None:
        self._step([tf.identity(sum_of_gradients) for sum_of_gradients in self._sums])
        self._clear_sums()

    def _undo(self, statistics) -> None:
        """Puts the moving statistics back that the forward pass has changed."""
        for variable, value in zip(self._statistics, statistics):
            variable.assign(value)
        self._clear_sums()

    def _clear_sums(self) -> None:
        for sum_of_gradients in self._sums:
            sum_of_gradients.assign(tf.zeros_like(sum_of_gradients))

    def _step(self, gradients) -> None:
        gradients = self._sum_over_replicas(gradients)
        norm = tf.linalg.global_norm(gradients)
        self._optimizers.apply(gradients, norm)
        if self._averages is not None:
            self._averages.update(self._global_step)
        self._means["gradient_norm"].update_state(norm)

    def _record(self, losses) -> None:
        for name in self._loss.terms:
            self._means[name].update_state(getattr(losses, name))
        for figure in self._loss.figures:
            weight = getattr(losses, figure.weight) if figure.weight else None
            self._means[figure.name].update_state(getattr(losses, figure.name), sample_weight=weight)

    @staticmethod
    def _sum_over_replicas(tensors):
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensors)

    def _report_nonfinite(self, tried: _Tried) -> None:
        """Tells `nonfinite`, which may raise."""
        report = dict(zip(self._reported, tried.report.numpy()))
        # The total comes last: the term that spoiled it says more.
        order = (*self._loss.terms[1:], self._loss.terms[0], "gradient_norm")
        term = next(name for name in order if not np.isfinite(report[name]))
        batch = tf.nest.map_structure(self._local_part, tried.batch)
        self._nonfinite.add(int(self._global_step.numpy()) + 1, term, report[term], batch)

    def _local_part(self, value) -> np.ndarray:
        """This process's part of a distributed tensor."""
        return np.concatenate([part.numpy() for part in self._strategy.experimental_local_results(value)])

    def _curves(self, means: dict[str, float], images_per_second: float | None) -> dict[str, float]:
        curves = {f"losses/{name}": means[name] for name in self._loss.terms}
        curves.update({f"{figure.group}/{figure.name}": means[figure.name] for figure in self._loss.figures})
        curves["optimizer/gradient_norm"] = means["gradient_norm"]
        for name, rate in self._optimizers.learning_rates(self._global_step.numpy() - 1).items():
            curves[f"optimizer/{name}"] = float(rate)
        if images_per_second is not None:
            curves["images_per_second"] = images_per_second
        return curves


def _local_zeros(variable: tf.Variable) -> tf.Variable:
    """A variable of the same shape of which each replica has its own."""
    return tf.Variable(
        tf.zeros_like(variable),
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.SUM,
    )
