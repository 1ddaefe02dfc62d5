"""The graph of training: batch -> outputs -> losses -> gradients -> one step of the optimizers, many times over."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.structs import Figure
from maxdl_tf.training.ema import WeightAverages
from maxdl_tf.training.optimizers import Optimizers


class Loss(Protocol):
    """What a model is taught by: `loss(outputs, targets)` gives a tuple with a field, [batch], for each name below.

    Attributes:
      terms: The losses; the first, `total`, is minimized.
      figures: What else is worth a curve.
    """

    terms: tuple[str, ...]
    figures: tuple[Figure, ...]

    def __call__(self, outputs, targets) -> NamedTuple: ...


class Tried(NamedTuple):
    """Where a call of the graph stopped.

    Attributes:
      steps: int32 scalar, steps that were done.
      parts: int32 scalar, parts of the next one whose gradients are added up already.
      finite: bool scalar; False: the last batch spoiled its step, which was not done.
      stops: bool scalar; True: a worker was asked to stop, and all have done the same number of steps.
      waited: float64 scalar, seconds that were spent waiting for batches.
      report: float32 [terms + 1]; what the last batch adds to the loss terms, and the norm of its gradient.
      batch: That batch.
    """

    steps: Any
    parts: Any
    finite: Any
    stops: Any
    waited: Any
    report: Any
    batch: Any


class GraphSteps:
    """Does steps in one call from the host, which ends early only where the host has something to decide.

    A batch whose loss or gradient is not finite changes nothing: neither weights, nor optimizers, nor the moving
    statistics of batch norms, nor the count of steps. Where the optimizers have a loss scale and that is to blame, it
    changes the scale, and the next batch takes its place.

    Args:
      strategy: Model and optimizers were made in its scope.
      model: `model(images, training=True)` gives the outputs that the loss takes.
      loss: Compares them with a batch's targets.
      optimizers: Hold the model's variables.
      global_step: Counts the steps.
      batch_size: Images of one step over all replicas.
      accumulate_steps: Batches whose gradients are added up for one step.
      averages: Of the model's weights, which follow them.
      jit_compile: Whether XLA compiles what each replica does with its part of a batch up to the gradient. Nothing in
        there may ask the host or the other replicas, and all shapes must be static.

    Attributes:
      differentiate: (images, targets) of a replica's part of a batch -> its losses and gradients, compiled or not.
      reported: Names of what `Tried.report` has.
      means: Metrics of the loss terms, the norm of the gradient and the loss's figures, by name.
    """

    def __init__(
        self,
        *,
        strategy: tf.distribute.Strategy,
        model: tf.Module,
        loss: Loss,
        optimizers: Optimizers,
        global_step: tf.Variable,
        batch_size: int,
        accumulate_steps: int = 1,
        averages: WeightAverages | None = None,
        jit_compile: bool = False,
    ):
        self._strategy = strategy
        self._model = model
        self._loss = loss
        self._optimizers = optimizers
        self._global_step = global_step
        self._batch_size = batch_size
        self._accumulate_steps = accumulate_steps
        self._averages = averages
        # Moving statistics of batch norms: what a forward pass changes.
        self._statistics = [variable for variable in model.variables if not variable.trainable]
        self.reported = (*loss.terms, "gradient_norm")
        figures = [figure.name for figure in loss.figures]
        with strategy.scope():
            # Each replica adds up for itself; a checkpoint, which is of whole steps, has nothing of it.
            self._sums = [] if accumulate_steps == 1 else [_local_zeros(v) for v in optimizers.variables]
            self.means = {name: keras.metrics.Mean(name) for name in (*self.reported, *figures)}
        # Without AutoGraph, which would take most of the time of tracing on layers that do not need it.
        self._call = tf.function(self._in_graph, autograph=False)
        self._traced: tf.Graph | None = None
        self.differentiate = self._differentiate
        # On a TPU all is compiled, and by another way.
        if jit_compile and not isinstance(strategy, tf.distribute.TPUStrategy):
            self.differentiate = tf.function(self._differentiate, autograph=False, jit_compile=True)

    def __call__(self, iterator, num_steps: int, stop: bool = False) -> Tried:
        """Does so many steps, or fewer if one is not finite.

        Args:
          iterator: Of distributed batches.
          num_steps: At least 1.
          stop: Whether to stop after one step. Asked of one worker, all of them do.
        """
        return Tried(*self._call(iterator, tf.constant(num_steps), tf.constant(float(stop))))

    def trace(self, iterator) -> None:
        """Makes the graph, which the first call need not do then."""
        self._call.get_concrete_function(iterator, tf.constant(1), tf.constant(0.0))

    @property
    def operations(self) -> list[tf.Operation]:
        """Of the graph that has forward pass and gradient; none before that is made."""
        return self._traced.get_operations() if self._traced else []

    @property
    def variables(self) -> list[tf.Variable]:
        """All that lasts from step to step."""
        averages = self._averages.variables if self._averages else ()
        return [*self._model.variables, *self._optimizers.slot_variables, *averages, *self._sums]

    def _in_graph(self, iterator, num_steps, stop) -> Tried:
        """The loop of `__call__`.

        It carries the batch, so that the one that spoiled a step comes out of the graph with it. That costs no
        copy, and the loop need not hold more than this one.
        """

        def goes_on(tried: Tried):
            return tried.finite & ~tried.stops & (tried.steps < num_steps)

        def next_batch(waited, after=()):
            with tf.control_dependencies(after):
                start = tf.timestamp()
            with tf.control_dependencies([start]):
                batch = iterator.get_next()
            with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
                return waited + tf.timestamp() - start, batch

        def body(*tried):
            tried = Tried(*tried)
            is_last = tf.equal(tried.parts, self._accumulate_steps - 1)
            finite, overflows, stops, report = self._try(tried.batch, is_last, stop)
            tried = tried._replace(
                steps=tried.steps + tf.cast(finite & is_last, tf.int32),
                parts=tf.where(finite & ~is_last, tried.parts + 1, 0),
                finite=finite | overflows,
                stops=stops & is_last & ~overflows,
                report=report,
            )
            waited, batch = tf.cond(
                goes_on(tried), lambda: next_batch(tried.waited, [finite]), lambda: (tried.waited, tried.batch)
            )
            return tried._replace(waited=waited, batch=batch)

        waited, batch = next_batch(tf.constant(0.0, tf.float64))
        start = Tried(
            steps=tf.constant(0),
            parts=tf.constant(0),
            finite=tf.constant(True),
            stops=tf.constant(False),
            waited=waited,
            report=tf.zeros([len(self.reported)]),
            batch=batch,
        )
        return tf.while_loop(lambda *tried: goes_on(Tried(*tried)), body, start)

    def _try(self, batch, is_last, stop) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Learns from a batch if that is finite, and does a step if it is the last for it.

        If it is not, all is as before the batch, and what was added up for the step is thrown away. The moving
        statistics keep what they saw of the step's earlier batches, which were finite.

        Returns:
          Whether it is finite, whether the loss scale is to blame if not, whether a worker is to stop, and its report.
        """
        losses, gradients, statistics, report = self._strategy.run(self.learn, args=(batch, stop))
        report = self._strategy.experimental_local_results(report)[0]  # All replicas have the same.
        stops, report = report[0] > 0, report[1:]
        finite = tf.reduce_all(tf.math.is_finite(report))
        overflows = self._overflows(report)

        def accept():
            if self._sums:
                self._strategy.run(self._add, args=(losses, gradients))
                tf.cond(is_last, step_from_sums, lambda: tf.constant(0))
                return tf.constant(0)
            self._strategy.run(self.accept, args=(losses, gradients))
            self._count_step()
            return tf.constant(0)

        def step_from_sums():
            self._strategy.run(self._step_from_sums)
            self._count_step()
            return tf.constant(0)

        def undo():
            self._strategy.run(self._undo, args=(statistics,))
            if self._optimizers.loss_scale:
                self._optimizers.loss_scale.shrink_if(overflows)
            return tf.constant(0)

        # The conditions are out here because a replica by itself may not change variables under one.
        done = tf.cond(finite, accept, undo)
        with tf.control_dependencies([done]):  # What waits for this waits for the step.
            return tf.identity(finite), overflows, stops, report

    def _overflows(self, report) -> tf.Tensor:
        """Whether the gradient of finite losses is not finite while the loss scale can be lowered."""
        if not self._optimizers.loss_scale:
            return tf.constant(False)
        *losses, norm = tf.unstack(tf.math.is_finite(report))
        return tf.reduce_all(losses) & ~norm & self._optimizers.loss_scale.can_shrink()

    def _count_step(self) -> None:
        self._global_step.assign_add(1)
        if self._optimizers.loss_scale:
            self._optimizers.loss_scale.count_step()

    def learn(self, batch, stop=0.0):
        """On a replica's part of the batch: its losses, gradients, the statistics before it, and (stop, *report)."""
        statistics = [tf.identity(variable) for variable in self._statistics]
        losses, gradients = self.differentiate(batch.images, batch.targets)
        report = [tf.reduce_sum(getattr(losses, name)) / self._batch_size for name in self._loss.terms]
        report = self._sum_over_replicas(tf.stack([stop, *report, tf.linalg.global_norm(gradients)]))
        return losses, gradients, statistics, report

    def _differentiate(self, images, targets):
        """On a replica's part of the batch: its losses, and the gradients of its share of the batch's mean."""
        self._traced = tf.compat.v1.get_default_graph()
        loss_scale = self._optimizers.loss_scale
        with tf.GradientTape() as tape:
            losses = self._loss(self._model(images, training=True), targets)
            minimized = tf.reduce_sum(losses.total) / self._batch_size
            if loss_scale:
                minimized = loss_scale.scaled(minimized)
        # What a switched-off loss term leaves without a gradient stays where it is: Adam does not move on zeros.
        variables, zero = self._optimizers.variables, tf.UnconnectedGradients.ZERO
        gradients = tape.gradient(minimized, variables, unconnected_gradients=zero)
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        return losses, loss_scale.unscaled(gradients) if loss_scale else gradients

    def accept(self, losses, gradients) -> None:
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
        self.means["gradient_norm"].update_state(norm)

    def _record(self, losses) -> None:
        for name in self._loss.terms:
            self.means[name].update_state(getattr(losses, name))
        for figure in self._loss.figures:
            weight = getattr(losses, figure.weight) if figure.weight else None
            self.means[figure.name].update_state(getattr(losses, figure.name), sample_weight=weight)

    @staticmethod
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
