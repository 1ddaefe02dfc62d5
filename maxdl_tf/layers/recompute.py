"""Activations that are computed again for the gradient instead of being kept (Chen et al., arXiv 1604.06174).

Whoever calls layers decides which of them are `recomputed`. The layers themselves are written as always; two kinds ask
here, because they must not do the same thing twice: batch norms, which move their statistics in the first pass only,
and drop path and dropout, which must drop the same in both.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable

import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.training_mode import in_training


class _Pass:
    """One pass through a recomputed layer: the first draws at random, the second reads what was drawn."""

    def __init__(self, drawn: list[tf.Tensor], is_second: bool):
        self.is_second = is_second
        self._drawn = drawn
        self._next = iter(drawn)

    def draw(self, draw: Callable[[], tf.Tensor]) -> tf.Tensor:
        if self.is_second:
            return next(self._next)
        self._drawn.append(draw())
        return self._drawn[-1]


_current: contextvars.ContextVar[_Pass | None] = contextvars.ContextVar("recompute_pass", default=None)


def recomputed(layer: Callable, kinds: tuple[type, ...] = (keras.layers.Layer,)) -> Callable:
    """The layer, called so that training keeps its inputs only and computes its inside again for the gradient.

    Outputs, gradients and moving statistics are those of the layer. It takes time and saves memory.

    Args:
      layer: Called as `layer(inputs, *arguments, training=training)`. `inputs` are tensors in any nesting; `arguments`
        get no gradient. Must be built before the first call in training.
      kinds: Classes to which this applies. A layer of no such class is returned as it is.
    """
    if not isinstance(layer, kinds):
        return layer

    def call(inputs, *arguments, training=None):
        if not training:
            return layer(inputs, *arguments, training=training)
        drawn: list[tf.Tensor] = []
        is_second = False

        def run(*tensors):
            nonlocal is_second
            token = _current.set(_Pass(drawn, is_second))
            is_second = True
            try:
                with in_training(True):  # The second pass runs after the network's call.
                    return layer(tf.nest.pack_sequence_as(inputs, tensors), *arguments, training=True)
            finally:
                _current.reset(token)

        return tf.recompute_grad(run)(*tf.nest.flatten(inputs))

    return call


def is_second_pass() -> bool:
    """Whether the current call computes again what was computed before."""
    current = _current.get()
    return current is not None and current.is_second


def drawn_once(draw: Callable[[], tf.Tensor]) -> tf.Tensor:
    """`draw()`, a random tensor; in the second pass through a layer, the tensor of the first pass."""
    current = _current.get()
    return current.draw(draw) if current else draw()
