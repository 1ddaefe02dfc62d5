"""The Keras 2 API, wherever the installed TensorFlow has it, and the precision that layers compute in.

TensorFlow up to 2.15 includes Keras 2 as `tf.keras`. From 2.16 on it is the package tf-keras. Every other module writes
`from maxdl_tf.keras_api import keras`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf

if tuple(int(part) for part in tf.__version__.split(".")[:2]) >= (2, 16):
    import tf_keras as keras
else:
    keras = tf.keras

__all__ = ["compute_in", "computing_in", "keras"]


@contextlib.contextmanager
def computing_in(policy: str) -> Iterator[None]:
    """Layers constructed inside this context compute by a mixed-precision policy for their whole life.

    Under every policy these stay float32: variables, the statistics and scales of `BatchNorm`, softmax, L2 norms and
    the logits of the heads (Micikevicius et al., Mixed Precision Training, arXiv 1710.03740).

    Args:
      policy: "float32", "mixed_bfloat16" or "mixed_float16": the type of convolutions and matrix products and of their
        results.
    """
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(policy)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)


def compute_in(layer: keras.layers.Layer, policy: str) -> None:
    """Makes a layer compute by another policy of `computing_in`; the layers inside it stay as they are."""
    layer._set_dtype_policy(policy)  # Keras 2 has no public way for a layer that exists.
