"""Moving averages of the weights, which are often better than the weights themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf


class WeightAverages(tf.Module):
    """Exponential moving averages of all that a model has: weights, and moving statistics of batch norms.

    average = decay * average + (1 - decay) * weight after each step; for the first steps the decay is lower,
    (1 + step) / (10 + step), so that the initial weights are soon forgotten.

    While the model trains, the copies here hold the averages. Whoever saves or evaluates the model does it inside of
    `in_model`, where it is the other way round. So the model in a checkpoint is the averaged one, for all that read
    it, and beside it lie the weights with which the training goes on.

    Args:
      strategy: The model was made in its scope.
      model: Its variables exist.
      decay: 0..1.
    """

    def __init__(self, strategy: tf.distribute.Strategy, model: tf.Module, decay: float):
        super().__init__()
        self._strategy = strategy
        self._decay = decay
        averaged = [variable for variable in model.variables if variable.dtype.is_floating]
        weights = [variable for variable in averaged if variable.trainable]
        statistics = [variable for variable in averaged if not variable.trainable]
        with strategy.scope():
            self.weights = [tf.Variable(weight, trainable=False) for weight in weights]
            # Each replica has statistics of its own, and so averages of its own.
            self.statistics = [
                tf.Variable(s, trainable=False, synchronization=s.synchronization, aggregation=s.aggregation)
                for s in statistics
            ]
        # Not as attributes, which a checkpoint would follow to variables that it has as the model's already.
        self._pairs = lambda: (zip(weights, self.weights), zip(statistics, self.statistics))
        self._swap_in_graph = tf.function(lambda: strategy.run(lambda: self._for_each(_swap)), autograph=False)
        self._restart_in_graph = tf.function(lambda: strategy.run(lambda: self._for_each(_copy)), autograph=False)

    def update(self, step: tf.Tensor) -> None:
        """After a step of the optimizers; call it in replica context.

        Args:
          step: Number of steps before this one.
        """
        step = tf.cast(step, tf.float32)
        share = 1.0 - tf.minimum(self._decay, (1.0 + step) / (10.0 + step))
        self._for_each(lambda variable, average, share: average.assign_sub(share * (average - variable)), share)

    def restart(self) -> None:
        """Begins anew from the model's weights, which were set to other values."""
        self._restart_in_graph()

    @contextlib.contextmanager
    def in_model(self) -> Iterator[None]:
        """Meanwhile the model has the averages, and the copies here have its weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        """Exchanges the model's weights and the averages."""
        self._swap_in_graph()

    def _for_each(self, change, *args) -> None:
        """Calls `change(variable, average, *args)` for each pair; in replica context."""

        pairs_of_weights, pairs_of_statistics = self._pairs()

        def change_weights(strategy: tf.distribute.Strategy, *args):
            for weight, average in pairs_of_weights:
                strategy.extended.update(weight, change, args=(average, *args))

        # Replicas by themselves may not assign what they share.
        tf.distribute.get_replica_context().merge_call(change_weights, args=args)
        for statistic, average in pairs_of_statistics:
            change(statistic, average, *args)


def _swap(variable, average):
    value = tf.identity(variable)
    variable.assign(average)
    return average.assign(value)


def _copy(variable, average):
    return average.assign(variable)
