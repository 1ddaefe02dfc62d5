"""Activations by name, a gradient of GELU that takes less memory, and the softmax of attention."""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.training_mode import is_training


def get(name: str | None) -> Callable[[tf.Tensor], tf.Tensor]:
    """The activation of Keras with this name, such as "relu" or "gelu"; the identity for None."""
    return gelu if name == "gelu" else keras.activations.get(name)


def gelu(x: tf.Tensor) -> tf.Tensor:
    """Exact GELU, x * Phi(x) (arXiv 1606.08415).

    In training its gradient keeps the input alone. TensorFlow's keeps three tensors of this size. SavedModels would
    store a gradient function for each activation, so inference uses TensorFlow's.
    """
    return _gelu_of_kept_input(x) if is_training() else tf.nn.gelu(x)


def softmax(logits: tf.Tensor) -> tf.Tensor:
    """Softmax over the last axis, computed in float32; keeps the type."""
    return tf.cast(tf.nn.softmax(tf.cast(logits, tf.float32)), logits.dtype)


@tf.custom_gradient
def _gelu_of_kept_input(x):
    def gradient(upstream):
        # Not by Erf: TensorFlow would keep that of the forward pass.
        cumulative = 0.5 * tf.math.erfc(x * -math.sqrt(0.5))
        density = tf.exp(-0.5 * tf.square(x)) / math.sqrt(2.0 * math.pi)
        return upstream * (cumulative + x * density)

    return tf.nn.gelu(x), gradient
