"""Batch normalization, with the epsilon of all of MaX-DeepLab (architecture section 1)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.configured import Configured
from maxdl_tf.layers.recompute import is_second_pass

EPSILON = 1e-3


class BatchNorm(Configured, keras.layers.BatchNormalization):
    """Keras' layer and variables, with statistics taken in as few passes over the features as possible.

    On one replica, or where replicas are not synchronized, TensorFlow's fused kernel takes statistics over all but the
    last axis. All statistics are biased, those in the moving averages too, and float32 whatever the type of the
    features. Outputs have the dtype of the inputs under every policy of mixed precision.

    Args:
      axis: Axes whose indices each have their own statistics, which are taken over all other axes.
      momentum: Share of the old moving statistics that is kept at each step.
      gamma_initializer: Initial scale.
      synchronized: Whether to take the statistics over all replicas of a distribution strategy together.
    """

    def __init__(
        self,
        axis: int | tuple[int, ...] = -1,
        *,
        momentum: float = 0.99,
        gamma_initializer: Any = "ones",
        synchronized: bool = False,
        **kwargs,
    ):
        super().__init__(
            axis=[axis] if isinstance(axis, int) else list(axis),
            momentum=momentum,
            epsilon=EPSILON,
            gamma_initializer=gamma_initializer,
            synchronized=synchronized,
            fused=False,
            autocast=False,
            **kwargs,
        )

    def call(self, inputs, training=None):
        return self._normalize(inputs, list(self.axis), training)

    def of_channels(self, inputs, training=None):
        """As a call, for inputs [..., channels] with a channel for each of the statistics, in their order.

        Several axes with statistics are reduced slowly, channels fast. The layer must be built.
        """
        return self._normalize(inputs, [inputs.shape.rank - 1], training)

    def _normalize(self, inputs, axes, training):
        if not (training and self.trainable):
            return self._scale(inputs, axes, self.moving_mean, self.moving_variance)
        # For a single channel, the fused kernel is slow.
        if self._replicas() == 1 and axes == [inputs.shape.rank - 1] and inputs.shape[-1] > 1:
            outputs, mean, variance = self._fused(inputs)
        else:
            mean, variance = self._moments(inputs, axes)
            outputs = self._scale(inputs, axes, mean, variance)
        if is_second_pass():
            return outputs
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign_sub((moving - tf.stop_gradient(tf.reshape(batch, moving.shape))) * (1.0 - self.momentum))
        return outputs

    def _replicas(self) -> int:
        context = tf.distribute.get_replica_context()
        return context.num_replicas_in_sync if self.synchronized and context else 1

    def _scale(self, inputs, axes, mean, variance):
        shape = [inputs.shape[axis] if axis in axes else 1 for axis in range(inputs.shape.rank)]
        gamma, beta, mean, variance = (tf.reshape(value, shape) for value in (self.gamma, self.beta, mean, variance))
        scale = gamma * tf.math.rsqrt(variance + self.epsilon)
        outputs = tf.cast(inputs, tf.float32) * scale + (beta - mean * scale)
        return tf.cast(outputs, inputs.dtype)

    def _fused(self, inputs):
        """(normalized inputs, mean, variance) over all axes but the last."""
        channels = inputs.shape[-1]
        pixels = tf.reshape(inputs, [1, -1, 1, channels])
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            pixels, _flat(self.gamma), _flat(self.beta), epsilon=self.epsilon, is_training=True
        )
        shape = inputs.shape if inputs.shape.is_fully_defined() else tf.shape(inputs)
        # The kernel multiplies the variance by n / (n - 1).
        return tf.reshape(outputs, shape), mean, variance * (1.0 - 1.0 / _size(inputs, range(inputs.shape.rank - 1)))

    def _moments(self, inputs, axes):
        """(mean, variance) as E[x] and E[x^2] - E[x]^2, over the replicas if they are synchronized."""
        axes = [axis for axis in range(inputs.shape.rank) if axis not in axes]
        values = tf.cast(inputs, tf.float32)
        count = _size(inputs, axes)
        if math.prod(self.moving_mean.shape) == 1:
            axes = None  # A sum over all axes is faster than one over all but an axis of one channel.
        total, total_of_squares = tf.reduce_sum(values, axes), tf.reduce_sum(tf.square(values), axes)
        if self._replicas() > 1:
            sums = [total, total_of_squares, tf.convert_to_tensor(count)]
            total, total_of_squares, count = tf.distribute.get_replica_context().all_reduce(
                tf.distribute.ReduceOp.SUM, sums
            )
        mean = total / count
        return mean, tf.maximum(total_of_squares / count - tf.square(mean), 0.0)


def _flat(statistics):
    return statistics if statistics.shape.rank == 1 else tf.reshape(statistics, [-1])


def _size(values, axes):
    """Product of the sizes of some axes: a number where they are known, which spares the graph, else float32."""
    sizes = [values.shape[axis] for axis in axes]
    if None not in sizes:
        return float(math.prod(sizes))
    return tf.cast(tf.reduce_prod(tf.gather(tf.shape(values), list(axes))), tf.float32)


@dataclasses.dataclass(frozen=True)
class Norm:
    """Factory of a network's batch norms, which decides in one place what they have in common.

    Attributes:
      momentum: Share of the old moving statistics that is kept at each step.
      synchronized: Whether statistics are taken over all replicas together.
    """

    momentum: float = 0.99
    synchronized: bool = False

    def __call__(
        self, axis: int | tuple[int, ...] = -1, *, gamma_initializer: Any = "ones", name: str | None = None
    ) -> BatchNorm:
        return BatchNorm(axis, gamma_initializer=gamma_initializer, name=name, **dataclasses.asdict(self))

    def get_config(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Norm:
        return cls(**config)


DEFAULT_NORM = Norm()
