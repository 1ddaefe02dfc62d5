"""Variables as a tree of objects, so that a checkpoint names them by chosen paths."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf


def variable_tree(variables: Mapping[str, tf.Variable]) -> tf.Module:
    """An object below which each variable lies at its slash-separated path; `tf.train.Checkpoint` takes it."""
    root = tf.Module()
    for path, variable in variables.items():
        *parents, last = path.split("/")
        node = root
        for name in parents:
            if not hasattr(node, name):
                setattr(node, name, tf.Module())
            node = getattr(node, name)
        setattr(node, last, variable)
    return root
