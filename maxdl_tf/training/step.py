"""The training step, from a batch to the applied gradient.

One call of `Trainer.train` runs, from the host down to a replica:

    train                       host: the steps up to the next point of the curves
      _run_steps                graph: repeats train_step until the host has to decide something
        train_step              all replicas: one batch
          forward_backward      each replica: losses and gradients
          apply_gradients       each replica: one step of the optimizers and of the EMA
          restore_statistics    each replica: what happens instead if a loss or gradient is not finite
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import orbit
import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.structs import Metric
from maxdl_tf.training import distribution, memory_estimate
from maxdl_tf.training.ema import ExponentialMovingAverage
from maxdl_tf.training.memory_estimate import MemoryEstimate
from maxdl_tf.training.nonfinite import NonFiniteSteps
from maxdl_tf.training.optimizers import Optimizers


class StopTraining(Exception):
    """The training was asked to stop and stopped after a whole step."""


class Loss(Protocol):
    """The loss of a model: `loss(outputs, targets)` returns a tuple with a field, [batch], for each name below.

    Attributes:
      terms: Names of the losses. The first, `total`, is minimized.
      metrics: Other values that get a curve.
      needs_seed: Whether it draws random numbers. Then it also takes their seed, int32 [2], as its third argument.
    """

    terms: tuple[str, ...]
    metrics: tuple[Metric, ...]
    needs_seed: bool

    def __call__(self, outputs, targets) -> NamedTuple: ...


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """How a training step is run.

    Attributes:
      batch_size: Number of images in a step, over all replicas.
      steps_per_loop: Number of steps in one call from the host into the graph.
      accumulate_steps: Number of batches whose gradients are added for one step.
      jit_compile: Whether XLA compiles the forward and backward pass of each replica. The compiled part cannot call the
        host or other replicas, and all of its shapes must be static.
    """

    batch_size: int
    steps_per_loop: int = 1
    accumulate_steps: int = 1
    jit_compile: bool = False


class Outcome(NamedTuple):
    """Result of one or several calls of `Trainer.train_step`.

    Attributes:
      steps: int32 scalar, number of steps applied.
      finite: bool scalar; False if the last batch was not finite and its step was dropped.
      stops: bool scalar; True if a worker was asked to stop. All workers then have applied the same number of steps.
      waited: float64 scalar, seconds spent waiting for batches.
      report: float32 [terms + 1], loss terms of the last batch and the norm of its gradient.
      batch: tf.experimental.Optional of the last batch, empty if that was finite.
    """

    steps: Any
    finite: Any
    stops: Any
    waited: Any
    report: Any
    batch: Any


class Trainer(orbit.AbstractTrainer):
    """Trains a number of steps at a time; the outer loop saves and evaluates in between.

    A step whose loss or gradient is not finite changes nothing: not the weights, the optimizers, the moving statistics
    of batch norms or the step count. `nonfinite` decides whether training goes on with the next batch. If the loss
    scale of float16 causes the overflow, the scale is lowered instead and training goes on.

    This is not an `orbit.StandardTrainer`, whose loop cannot end early. It has the same three methods.

    Args:
      strategy: Strategy in whose scope the model and the optimizers were created.
      model: Model; `model(images, training=True)` returns the outputs that the loss takes.
      loss: Loss of outputs and targets.
      optimizers: Optimizers of the model's variables.
      batches: Endless batches with `images`, `targets` and `image_ids`, distributed by the strategy. Each has
        `batch_size / accumulate_steps` images over all replicas.
      global_step: Step counter; see `orbit.utils.create_global_step`.
      options: How a step is run.
      ema: EMA of the model's variables, updated after each step.
      nonfinite: Receives steps that are not finite. By default the first one ends the run.

    Attributes:
      on_progress: Called after each call into the graph with the number of steps and the means since `train` began.
        From the second call on, `wait_share` is the share of time spent waiting for batches.
      stop_requested: Called before each call into the graph. If it returns True, all workers stop after one more step.
      batch_size: Number of images in a step.
      loss_terms: Names of the loss terms.
      xla_compiles: Whether XLA compiles the step.
      differentiate: Function (images, targets) -> (losses, gradients) of a replica, compiled or not. With a loss that
        needs a seed, it is the third argument.
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
        options: StepOptions,
        ema: ExponentialMovingAverage | None = None,
        nonfinite: NonFiniteSteps | None = None,
    ):
        super().__init__()
        self._strategy = strategy
        self._model = model
        self._loss = loss
        self._optimizers = optimizers
        self._batches = batches
        self._iterator: Iterator | None = None
        self._global_step = global_step
        self._options = options
        self._ema = ema
        self._nonfinite = nonfinite or NonFiniteSteps()
        self.on_progress: Callable[[int, dict[str, float]], None] = lambda steps, means: None
        self.stop_requested: Callable[[], bool] = lambda: False
        self.batch_size = options.batch_size
        self.loss_terms = loss.terms
        self._reported = (*loss.terms, "gradient_norm")

        # Moving statistics of batch norms: the only variables that a forward pass changes.
        self._statistics = [variable for variable in model.variables if not variable.trainable]
        with strategy.scope():
            names = (*self._reported, *(metric.name for metric in loss.metrics))
            self._means = {name: keras.metrics.Mean(name) for name in names}
            # Each replica adds its own gradients. A checkpoint is of whole steps and does not need the sums.
            accumulates = options.accumulate_steps > 1
            self._sums = [_local_zeros(variable) for variable in optimizers.variables] if accumulates else []
        self._batches_in_sums = tf.Variable(0, trainable=False)

        # AutoGraph would take most of the tracing time and is not needed.
        self._step_in_graph = tf.function(self.train_step, autograph=False)
        self._run_in_graph = tf.function(self._run_steps, autograph=False)
        is_tpu = isinstance(strategy, tf.distribute.TPUStrategy)  # There everything is compiled anyway.
        self.xla_compiles = options.jit_compile or is_tpu
        self.differentiate = self._differentiate
        if options.jit_compile and not is_tpu:
            self.differentiate = tf.function(self._differentiate, autograph=False, jit_compile=True)
        self._has_run = False  # The first call into the graph compiles it.

    # --- on the host ---

    def train(self, num_steps: tf.Tensor) -> dict[str, float]:
        """Trains `num_steps` steps.

        Returns:
          Means over these steps by their TensorBoard tags, the learning rates of the last step, images per second and
          the share of time spent waiting for batches. The last two are absent if all the time went into compiling.

        Raises:
          StopTraining: `stop_requested` returned True.
          NonFiniteLossError: A loss or gradient was not finite; names the term, the step and the images.
        """
        self.train_loop_begin()
        remaining = int(num_steps)
        while remaining:
            # The first call, which compiles, does one step and so shows early that all works.
            steps_in_call = min(remaining, self._options.steps_per_loop) if self._has_run else 1
            start = time.monotonic()
            outcome = Outcome(
                *self._run_in_graph(
                    self._endless_iterator(), tf.constant(steps_in_call), tf.constant(float(self.stop_requested()))
                )
            )
            steps = int(outcome.steps)
            if not outcome.finite:
                self._report_nonfinite(outcome)
            means = self._means_so_far()
            if self._has_run:
                self._timed_steps += steps
                self._seconds += time.monotonic() - start
                self._waited += float(outcome.waited)
                means["wait_share"] = self._waited / self._seconds
            self._has_run = True
            remaining -= steps
            self.on_progress(steps, means)
            if outcome.stops:
                raise StopTraining
        return self.train_loop_end()

    def train_loop_begin(self) -> None:
        """Resets what `train_loop_end` returns."""
        for mean in self._means.values():
            mean.reset_state()
        self._timed_steps, self._seconds, self._waited = 0, 0.0, 0.0

    def train_loop_end(self) -> dict[str, float]:
        """The curves of all steps since `train_loop_begin`, by their TensorBoard tags."""
        means = self._means_so_far()
        curves = {f"losses/{name}": means[name] for name in self._loss.terms}
        curves.update({f"{metric.group}/{metric.name}": means[metric.name] for metric in self._loss.metrics})
        curves["optimizer/gradient_norm"] = means["gradient_norm"]
        for name, rate in self._optimizers.learning_rates(self._global_step.numpy() - 1).items():
            curves[f"optimizer/{name}"] = float(rate)
        if self._optimizers.loss_scale:
            curves["optimizer/loss_scale"] = float(self._optimizers.loss_scale.scale.numpy())
        if self._seconds:
            curves["images_per_second"] = self._timed_steps * self.batch_size / self._seconds
            curves["input/wait_share"] = self._waited / self._seconds
        return curves

    def estimate_memory(self) -> MemoryEstimate | None:
        """The memory that a step takes, estimated from its graph, which is traced here. None on TPUs."""
        if isinstance(self._strategy, tf.distribute.TPUStrategy):
            return None
        iterator = self._endless_iterator()
        if self.xla_compiles:  # The step calls the compiled function as one operation.
            spec = tf.nest.map_structure(_of_first_replica, iterator.element_spec)
            seed = [tf.TensorSpec([2], tf.int32)] if self._loss.needs_seed else []
            traced = self.differentiate.get_concrete_function(spec.images, spec.targets, *seed)
        else:
            traced = self._step_in_graph.get_concrete_function(iterator, tf.constant(0.0))
        ema = self._ema.variables if self._ema else ()
        kept = [*self._model.variables, *self._optimizers.slot_variables, *ema, *self._sums]
        devices = distribution.devices_of(self._strategy)
        return memory_estimate.estimate(traced.graph.get_operations(), kept, devices)

    def _endless_iterator(self) -> Iterator:
        if self._iterator is None:
            self._iterator = iter(self._batches)
        return self._iterator

    def _means_so_far(self) -> dict[str, float]:
        return {name: float(mean.result()) for name, mean in self._means.items()}

    def _report_nonfinite(self, outcome: Outcome) -> None:
        """Hands the dropped batch to `nonfinite`, which may raise."""
        report = dict(zip(self._reported, outcome.report.numpy()))
        # The total comes last, because the term that spoiled it says more.
        order = (*self._loss.terms[1:], self._loss.terms[0], "gradient_norm")
        term = next(name for name in order if not np.isfinite(report[name]))
        batch = tf.nest.map_structure(self._local_part, outcome.batch.get_value())
        self._nonfinite.add(int(self._global_step.numpy()) + 1, term, report[term], batch)

    def _local_part(self, value) -> np.ndarray:
        """This process's part of a distributed tensor."""
        return np.concatenate([part.numpy() for part in self._strategy.experimental_local_results(value)])

    # --- in the graph, for all replicas ---

    def _run_steps(self, iterator, num_steps, stop) -> Outcome:
        """Applies `num_steps` steps, or fewer if one is not finite or a worker is asked to stop."""

        def goes_on(*outcome):
            outcome = Outcome(*outcome)
            return outcome.finite & ~outcome.stops & (outcome.steps < num_steps)

        def one_more(*outcome):
            before, outcome = Outcome(*outcome), Outcome(*self._step_in_graph(iterator, stop))
            return outcome._replace(steps=before.steps + outcome.steps, waited=before.waited + outcome.waited)

        start = Outcome(
            steps=tf.constant(0),
            finite=tf.constant(True),
            stops=tf.constant(False),
            waited=tf.constant(0.0, tf.float64),
            report=tf.zeros([len(self._reported)]),
            batch=tf.experimental.Optional.empty(iterator.element_spec),
        )
        return tf.while_loop(goes_on, one_more, start)

    def train_step(self, iterator, stop=0.0) -> Outcome:
        """Trains on the next batch, in cross-replica context.

        A batch that is not finite is dropped, and with it the gradients added before it for the same step. The moving
        statistics keep what they took from those earlier batches, which were finite.

        Args:
          iterator: Iterator of distributed batches.
          stop: 1.0 to ask all workers to stop after this step, else 0.0.
        """
        batch, waited = _next_batch(iterator)
        losses, gradients, report, statistics = self._strategy.run(self.forward_backward, args=(batch, stop))
        report = self._strategy.experimental_local_results(report)[0]  # The same on all replicas.
        stops, report = report[0] > 0, report[1:]
        finite = tf.reduce_all(tf.math.is_finite(report))
        overflows = self._overflows(report)

        def accept():
            if not self._sums:
                return self._apply_everywhere(self.apply_gradients, losses, gradients)
            self._strategy.run(self._add_gradients, args=(losses, gradients))
            is_last = tf.equal(self._batches_in_sums.assign_add(1), self._options.accumulate_steps)
            return tf.cond(is_last, lambda: self._apply_everywhere(self._apply_sums), lambda: tf.constant(0))

        def reject():
            self._strategy.run(self.restore_statistics, args=(statistics,))
            self._batches_in_sums.assign(0)
            if self._optimizers.loss_scale:
                self._optimizers.loss_scale.shrink_if(overflows)
            return tf.constant(0)

        # The conditions are here because a replica by itself must not change variables under a condition.
        steps = tf.cond(finite, accept, reject)
        goes_on = finite | overflows
        return Outcome(
            steps=steps,
            finite=goes_on,
            stops=stops & (steps > 0),
            waited=waited,
            report=report,
            batch=_optional(batch, iterator.element_spec, has_value=~goes_on),
        )

    def _apply_everywhere(self, function, *args) -> tf.Tensor:
        """Applies one step in all replicas and counts it; returns 1."""
        self._strategy.run(function, args=args)
        self._batches_in_sums.assign(0)
        self._global_step.assign_add(1)
        if self._optimizers.loss_scale:
            self._optimizers.loss_scale.count_step()
        return tf.constant(1)

    def _overflows(self, report) -> tf.Tensor:
        """Whether the gradient of finite losses is not finite while the loss scale can be lowered."""
        if not self._optimizers.loss_scale:
            return tf.constant(False)
        *losses, norm = tf.unstack(tf.math.is_finite(report))
        return tf.reduce_all(losses) & ~norm & self._optimizers.loss_scale.can_shrink()

    # --- in the graph, in each replica ---

    def forward_backward(self, batch, stop=0.0):
        """Computes a replica's losses and gradients, in replica context.

        Args:
          batch: The replica's part of a batch.
          stop: See `train_step`.

        Returns:
          (losses, gradients, report, statistics). `report` is float32 [1 + terms + 1], summed over the replicas:
          `stop`, the loss terms of the batch, the replicas' gradient norms. `statistics` are the moving statistics
          before the forward pass.
        """
        # Runs that skip no step take these copies, too: their time is not measurable. A step of tiny, with 186 of them,
        # took 80 ms of processor time with and 84 ms without them (medians of 19 calls on a CPU).
        statistics = [tf.identity(variable) for variable in self._statistics]
        losses, gradients = self.differentiate(batch.images, batch.targets, *self.draw_seed())
        terms = [tf.reduce_sum(getattr(losses, name)) / self.batch_size for name in self._loss.terms]
        report = _sum_over_replicas(tf.stack([stop, *terms, tf.linalg.global_norm(gradients)]))
        return losses, gradients, report, statistics

    def draw_seed(self) -> list[tf.Tensor]:
        """A seed for the losses of a replica's batch, if they need one. XLA would ignore the seed of the run."""
        if not self._loss.needs_seed:
            return []
        # Workers with the same seed of the run draw the same numbers.
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return [tf.random.uniform([2], maxval=tf.int32.max, dtype=tf.int32) + tf.stack([replica, 0])]

    def _differentiate(self, images, targets, *seed):
        """A replica's losses, and the gradients of its share of the batch's mean loss."""
        loss_scale = self._optimizers.loss_scale
        with tf.GradientTape() as tape:
            losses = self._loss(self._model(images, training=True), targets, *seed)
            minimized = tf.reduce_sum(losses.total) / self.batch_size
            if loss_scale:
                minimized = loss_scale.scaled(minimized)
        # Variables of a loss term that is off have a gradient of 0, on which Adam does not move.
        variables, zero = self._optimizers.variables, tf.UnconnectedGradients.ZERO
        gradients = tape.gradient(minimized, variables, unconnected_gradients=zero)
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        return losses, loss_scale.unscaled(gradients) if loss_scale else gradients

    def apply_gradients(self, losses, gradients) -> None:
        """Applies one step with the gradients of one batch."""
        self._record(losses)
        self._update_weights(gradients)

    def _add_gradients(self, losses, gradients) -> None:
        """Adds the gradients of one batch to those of the earlier batches of the step."""
        self._record(losses)
        for sum_of_gradients, gradient in zip(self._sums, gradients):
            sum_of_gradients.assign_add(gradient)

    def _apply_sums(self) -> None:
        """Applies one step with the gradients of all of its batches."""
        self._update_weights([tf.identity(sum_of_gradients) for sum_of_gradients in self._sums])
        self._clear_sums()

    def restore_statistics(self, statistics) -> None:
        """Undoes what the forward pass changed, and drops the gradients added so far."""
        for variable, value in zip(self._statistics, statistics):
            variable.assign(value)
        self._clear_sums()

    def _clear_sums(self) -> None:
        for sum_of_gradients in self._sums:
            sum_of_gradients.assign(tf.zeros_like(sum_of_gradients))

    def _update_weights(self, gradients) -> None:
        gradients = _sum_over_replicas(gradients)
        norm = tf.linalg.global_norm(gradients)
        self._optimizers.apply(gradients, norm)
        if self._ema is not None:
            self._ema.update(self._global_step)
        self._means["gradient_norm"].update_state(norm)

    def _record(self, losses) -> None:
        for name in self._loss.terms:
            self._means[name].update_state(getattr(losses, name))
        for metric in self._loss.metrics:
            weight = getattr(losses, metric.weight) if metric.weight else None
            self._means[metric.name].update_state(getattr(losses, metric.name), sample_weight=weight)


def _next_batch(iterator) -> tuple[Any, tf.Tensor]:
    """The next batch, and the seconds that it took to arrive."""
    start = tf.timestamp()
    with tf.control_dependencies([start]):
        batch = iterator.get_next()
    with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
        return batch, tf.timestamp() - start


def _optional(batch, spec, has_value: tf.Tensor) -> tf.experimental.Optional:
    """The batch if `has_value`; the memory is taken only then."""

    def full():
        with tf.device("CPU:0"):  # Where strings can be, too.
            return tf.experimental.Optional.from_value(batch)

    return tf.cond(has_value, full, lambda: tf.experimental.Optional.empty(spec))


def _of_first_replica(spec: tf.TypeSpec) -> tf.TensorSpec:
    return tf.nest.flatten(spec, expand_composites=True)[0]


def _sum_over_replicas(tensors):
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensors)


def _local_zeros(variable: tf.Variable) -> tf.Variable:
    """A variable of the same shape of which each replica has its own."""
    return tf.Variable(
        tf.zeros_like(variable),
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.SUM,
    )
