"""Writes checkpoints as DeepLab2 lays them out."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from maxdl_tf.checkpoints.deeplab2_import import variable_tree
from maxdl_tf.checkpoints.source import CheckpointSource
from maxdl_tf.keras_api import keras
from tests.helpers import shared_path


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


def published_shapes(listed: str) -> dict[str, tuple[int, ...]]:
    """Shapes of all variables of a full model by published name, such as those of "kmax_r50"."""
    lines = shared_path("reference", f"{listed}_variables.txt").read_text().splitlines()
    return {name: ast.literal_eval(shape) for name, shape, *_ in (line.split("\t") for line in lines)}


def random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of a kMaX-DeepLab that predicts some segments, by published name.

    Residual branches and attention are damped, so that rounding does not grow from layer to layer.
    """
    random = np.random.default_rng(seed)

    def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
        layer, _, part = name.rpartition("/")
        if part == "gamma":
            is_damped = layer.endswith(("conv3_bn/_batch_norm", "ffn_conv2_bn/_batch_norm", "similarity"))
            return np.full(shape, 0.1 if is_damped else 5.0 if layer.endswith("mask_batch_norm") else 1.0)
        if part == "moving_variance":
            # A slot sums its pixels.
            return random.uniform(0.5, 1.5, shape) * (1e4 if "kmeans_memory_batch_norm" in layer else 1.0)
        if part == "layer_scale":
            return np.full(shape, 0.2)
        if part.endswith("kernel"):
            fan_in = np.prod(shape[:2] if part == "depthwise_kernel" else shape[:-1])
            return random.normal(size=shape) * np.sqrt(2.0 / fan_in) * (10.0 if "class_head" in layer else 1.0)
        return random.normal(size=shape) * (1.0 if part == "cluster_centers" else 0.1)

    return {name: weight(name, shape).astype(np.float32) for name, shape in shapes.items()}
