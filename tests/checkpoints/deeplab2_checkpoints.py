"""Writes checkpoints as DeepLab2 lays them out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from maxdl_tf.checkpoints.deeplab2_import import variable_tree
from maxdl_tf.checkpoints.source import CheckpointSource
from maxdl_tf.keras_api import keras


def write_deeplab2_checkpoint(
    folder: Path, weights: Mapping[str, np.ndarray], step: int = 123, trained: bool = True
) -> CheckpointSource:
    """Writes folder/ckpt-STEP.

    Args:
      folder: Created if need be.
      weights: By published name, such as `encoder/memory_feature`.
      step: Global step.
      trained: Whether optimizers are in it, one with slots.
    """
    variables = {name: tf.Variable(value) for name, value in weights.items()}
    tree = variable_tree(variables)
    tree.global_step = tf.Variable(step, dtype=tf.int64)
    if trained:
        tree.optimizer = keras.optimizers.legacy.Adam()
        tree.backbone_optimizer = keras.optimizers.legacy.Adam()
        variable = next(variable for variable in variables.values() if variable.dtype.is_floating)
        tree.optimizer.apply_gradients([(tf.zeros_like(variable), variable)])
    prefix = str(folder / f"ckpt-{step}")
    tf.train.Checkpoint(tree).write(prefix)
    return CheckpointSource(prefix, prefix)
