"""Activations by name, and a gradient of GELU that takes less memory."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator

import tensorflow as tf

from maxdl_tf.keras_api import keras

_training: contextvars.ContextVar[bool] = contextvars.ContextVar("training", default=False)


def get(name: str | None) -> Callable[[tf.Tensor], tf.Tensor]:
    """The activation of Keras with this name, such as "relu" or "gelu"; the identity for None."""
    return gelu if name == "gelu" else keras.activations.get(name)


def gelu(x: tf.Tensor) -> tf.Tensor:
    """Exact GELU, x * Phi(x) (arXiv 1606.08415)."""
    return _gelu_of_kept_input(x) if _training.get() else tf.nn.gelu(x)


@contextlib.contextmanager
def in_training(training: bool | None) -> Iterator[None]:
    """Makes the gradient of GELU keep its input alone; TensorFlow's keeps three tensors of this size.

    Not outside of training: SavedModels would store a gradient function for each activation.
    """
    token = _training.set(bool(training))
    try:
        yield
    finally:
        _training.reset(token)


@tf.custom_gradient
def _gelu_of_kept_input(x):
    def gradient(upstream):
        # Not by Erf: TensorFlow would keep that of the forward pass.
        cumulative = 0.5 * tf.math.erfc(x * -math.sqrt(0.5))
        density = tf.exp(-0.5 * tf.square(x)) / math.sqrt(2.0 * math.pi)
        return upstream * (cumulative + x * density)

    return tf.nn.gelu(x), gradient
