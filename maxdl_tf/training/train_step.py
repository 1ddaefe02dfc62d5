"""The inner loop of training: batch -> outputs -> losses -> gradients -> one step of the optimizers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import orbit
import tensorflow as tf

from maxdl_tf.errors import UserError
from maxdl_tf.keras_api import keras
from maxdl_tf.structs import Figure
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


class NonFiniteLossError(UserError):
    """A loss term or the gradient became NaN or infinite; no later checkpoint has been written."""


class Trainer(orbit.AbstractTrainer):
    """Trains for some steps at a time; the outer loop saves and evaluates in between.

    Args:
      strategy: Model and optimizers were made in its scope.
      model: `model(images, training=True)` gives the outputs that the loss takes.
      loss: Compares them with a batch's targets.
      optimizers: Hold the model's variables.
      batches: Endless batches with `images` and `targets`, distributed by the strategy.
      global_step: Counts the steps; see `orbit.utils.create_global_step`.
      batch_size: Images of one step over all replicas.
      steps_per_loop: Steps of one call from the host into the graph.

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
    ):
        super().__init__()
        self._strategy = strategy
        self._model = model
        self._loss = loss
        self.loss_terms = loss.terms
        self._optimizers = optimizers
        self._batches = batches
        self._iterator = None
        self._global_step = global_step
        self.batch_size = batch_size
        self._steps_per_loop = steps_per_loop
        self.on_progress: Callable[[int, dict[str, float]], None] = lambda steps, means: None
        # AutoGraph is for the loop only: it would take most of the time of tracing on layers that do not need it.
        train_step = tf.autograph.experimental.do_not_convert(self._train_step)
        self._run_steps = tf.function(orbit.utils.create_tf_while_loop_fn(train_step))
        self._compiled = False
        figures = [figure.name for figure in loss.figures]
        with strategy.scope():
            self._means = {name: keras.metrics.Mean(name) for name in (*loss.terms, *figures, "gradient_norm")}

    def train(self, num_steps: tf.Tensor) -> dict[str, float]:
        """Trains `num_steps` steps.

        Returns:
          Means over these steps under TensorBoard's tags, the learning rates at the last one, and images per second
          (without the compilation).

        Raises:
          NonFiniteLossError: Names the term.
        """
        if self._iterator is None:
            self._iterator = iter(self._batches)
        for mean in self._means.values():
            mean.reset_state()
        remaining, timed_steps, seconds = int(num_steps), 0, 0.0
        while remaining:
            # The first call compiles. A single step then shows soon that everything works.
            steps = min(remaining, self._steps_per_loop) if self._compiled else 1
            start = time.monotonic()
            self._run_steps(self._iterator, tf.constant(steps))
            means = self._finite_means(steps)
            if self._compiled:
                timed_steps, seconds = timed_steps + steps, seconds + time.monotonic() - start
            self._compiled = True
            remaining -= steps
            self.on_progress(steps, means)
        return self._curves(means, timed_steps * self.batch_size / seconds if seconds else None)

    def _train_step(self, iterator) -> None:
        self._strategy.run(self._replica_step, args=(iterator.get_next(),))
        self._global_step.assign_add(1)

    def _replica_step(self, batch) -> None:
        """One step on a replica's part of the batch."""
        variables = self._optimizers.variables
        with tf.GradientTape() as tape:
            outputs = self._model(batch.images, training=True)
            losses = self._loss(outputs, batch.targets)
            share_of_mean = tf.reduce_sum(losses.total) / self.batch_size
        # What a switched-off loss term leaves without a gradient stays where it is: Adam does not move on zeros.
        gradients = tape.gradient(share_of_mean, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        gradients = tf.distribute.get_replica_context().all_reduce(
            tf.distribute.ReduceOp.SUM, [tf.convert_to_tensor(gradient) for gradient in gradients]
        )
        self._optimizers.apply(gradients)

        for name in self._loss.terms:
            self._means[name].update_state(getattr(losses, name))
        for figure in self._loss.figures:
            weight = getattr(losses, figure.weight) if figure.weight else None
            self._means[figure.name].update_state(getattr(losses, figure.name), sample_weight=weight)
        self._means["gradient_norm"].update_state(tf.linalg.global_norm(gradients))

    def _finite_means(self, steps: int) -> dict[str, float]:
        """The means so far of this `train`; a NaN of any step stays in them and is found here."""
        means = {name: float(mean.result()) for name, mean in self._means.items()}
        # The total comes last: the term that spoiled it says more.
        for name in (*self._loss.terms[1:], self._loss.terms[0], "gradient_norm"):
            if not math.isfinite(means[name]):
                last = int(self._global_step.numpy())
                raise NonFiniteLossError(
                    f"{name} became {means[name]} between step {last - steps} and step {last}; start again from the "
                    "last checkpoint with a lower training.optimizer.learning_rate or a longer warm-up"
                )
        return means

    def _curves(self, means: dict[str, float], images_per_second: float | None) -> dict[str, float]:
        curves = {f"losses/{name}": means[name] for name in self._loss.terms}
        curves.update({f"{figure.group}/{figure.name}": means[figure.name] for figure in self._loss.figures})
        curves["optimizer/gradient_norm"] = means["gradient_norm"]
        for name, rate in self._optimizers.learning_rates(self._global_step.numpy() - 1).items():
            curves[f"optimizer/{name}"] = float(rate)
        if images_per_second is not None:
            curves["images_per_second"] = images_per_second
        return curves
