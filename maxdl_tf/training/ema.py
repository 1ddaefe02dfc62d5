"""Exponential moving average (EMA) of the weights, which often scores better than the weights themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf


class ExponentialMovingAverage(tf.Module):
    """EMA of all variables of a model: weights, and moving statistics of batch norms.

    ema = decay * ema + (1 - decay) * weight after each step. In the first steps the decay is lower,
    (1 + step) / (10 + step), so that the initial weights are soon forgotten.

    While the model trains, the copies here hold the EMA. Inside `in_model`, where the model is saved and evaluated, the
    model holds the EMA and the copies hold the weights. The model in a checkpoint is therefore always the EMA, and the
    checkpoint has the weights to train on beside it.

    Args:
      strategy: Strategy in whose scope the model was created.
      model: Model whose variables exist.
      decay: Share of the EMA that stays at each step, 0..1.
    """

    def __init__(self, strategy: tf.distribute.Strategy, model: tf.Module, decay: float):
        super().__init__()
        self._decay = decay
        averaged = [variable for variable in model.variables if variable.dtype.is_floating]
        weights = [variable for variable in averaged if variable.trainable]
        statistics = [variable for variable in averaged if not variable.trainable]
        # The names of these attributes are part of the checkpoint's keys.
        with strategy.scope():
            self.weights = [tf.Variable(weight, trainable=False) for weight in weights]
            # Each replica has its own statistics, and so its own EMA of them.
            self.statistics = [
                tf.Variable(s, trainable=False, synchronization=s.synchronization, aggregation=s.aggregation)
                for s in statistics
            ]
        # A function, because a checkpoint follows attributes and would save the model's variables twice.
        self._pairs = lambda: (zip(weights, self.weights), zip(statistics, self.statistics))
        self._swap_in_graph = tf.function(lambda: strategy.run(lambda: self._for_each(_swap)), autograph=False)
        self._restart_in_graph = tf.function(lambda: strategy.run(lambda: self._for_each(_copy)), autograph=False)

    def update(self, step: tf.Tensor) -> None:
        """Updates the EMA after a step, in replica context.

        Args:
          step: Number of steps before this one.
        """
        step = tf.cast(step, tf.float32)
        share = 1.0 - tf.minimum(self._decay, (1.0 + step) / (10.0 + step))
        self._for_each(lambda variable, ema, share: ema.assign_sub(share * (ema - variable)), share)

    def restart(self) -> None:
        """Starts again from the model's current weights, after they were loaded."""
        self._restart_in_graph()

    @contextlib.contextmanager
    def in_model(self) -> Iterator[None]:
        """Context in which the model holds the EMA, and the copies here hold its weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        """Exchanges the model's weights and the EMA."""
        self._swap_in_graph()

    def _for_each(self, change, *args) -> None:
        """Calls `change(variable, ema, *args)` for each pair, in replica context."""

        pairs_of_weights, pairs_of_statistics = self._pairs()

        def change_weights(strategy: tf.distribute.Strategy, *args):
            for weight, ema in pairs_of_weights:
                strategy.extended.update(weight, change, args=(ema, *args))

        # A replica by itself must not assign shared variables.
        tf.distribute.get_replica_context().merge_call(change_weights, args=args)
        for statistic, ema in pairs_of_statistics:
            change(statistic, ema, *args)


def _swap(variable, ema):
    value = tf.identity(variable)
    variable.assign(ema)
    return ema.assign(value)


def _copy(variable, ema):
    return ema.assign(variable)
