"""Variables that have a shape and no memory, so that a test can build and trace a network of any size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.python.ops.resource_variable_ops import UninitializedVariable


@contextlib.contextmanager
def abstract_variables() -> Iterator[None]:
    """All variables that are made meanwhile can be traced in a tf.function and never read or run.

    Unlike in a tf.Graph of version 1, all code means there what it means in eager mode.
    """

    def create(next_creator, initial_value=None, shape=None, dtype=None, **options):
        del next_creator
        if shape is None or dtype is None:
            # An initializer tells its shape in a graph, where it computes nothing.
            with tf.Graph().as_default():
                value = initial_value() if callable(initial_value) else initial_value
                value = value if hasattr(value, "shape") else tf.convert_to_tensor(value, dtype)
            shape, dtype = value.shape, value.dtype
        kept = {"name", "trainable", "synchronization", "aggregation", "constraint"} & set(options)
        return UninitializedVariable(shape=shape, dtype=dtype, **{option: options[option] for option in kept})

    with tf.variable_creator_scope(create):
        yield
