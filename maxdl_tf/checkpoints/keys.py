"""Keys of variables in the files of a checkpoint."""

from __future__ import annotations

from collections import deque
from typing import Any

import tensorflow as tf

from maxdl_tf.keras_api import keras

KEY_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
BOOKKEEPING = ("_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter" + KEY_SUFFIX)
_SLOT = "/.OPTIMIZER_SLOT/"


def variables_by_key(root: tf.train.Checkpoint) -> dict[str, tf.Variable]:
    """All variables that `root` saves, including optimizer slots, by their keys in a checkpoint's files."""
    view = tf.train.TrackableView(root)
    paths = {id(root): ""}
    objects, queue = [], deque([root])
    while queue:
        parent = queue.popleft()
        objects.append(parent)
        for name, child in view.children(parent).items():
            if id(child) not in paths:
                paths[id(child)] = f"{paths[id(parent)]}/{name.replace('.', '..').replace('/', '.S')}".lstrip("/")
                queue.append(child)
    variables = [value for value in objects if isinstance(value, tf.Variable)]
    by_key = {paths[id(variable)] + KEY_SUFFIX: variable for variable in variables}
    # Only optimizers have slots. Reading any attribute of a distributed variable would contact the other workers.
    for optimizer in (value for value in objects if isinstance(value, keras.optimizers.legacy.Optimizer)):
        for slot in optimizer.get_slot_names():
            for variable in variables:
                if _has_slot(optimizer, variable, slot):
                    key = f"{paths[id(variable)]}{_SLOT}{paths[id(optimizer)]}/{slot}{KEY_SUFFIX}"
                    by_key[key] = optimizer.get_slot(variable, slot)
    return by_key


def shapes_by_key(reader: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of all variables in a checkpoint, including slots, from a reader of `tf.train.load_checkpoint`."""
    shapes = reader.get_variable_to_shape_map()
    return {key: tuple(shape) for key, shape in shapes.items() if key not in BOOKKEEPING}


def name_of(key: str) -> str:
    """The object path of a key in a checkpoint's files."""
    return key.removesuffix(KEY_SUFFIX)


def is_of_model(key: str) -> bool:
    """Whether a key in a checkpoint of `Checkpoints` belongs to the model."""
    return key.startswith("model/") and _SLOT not in key


def _has_slot(optimizer: Any, variable: tf.Variable, slot: str) -> bool:
    # get_slot() raises if there is no such slot.
    try:
        return optimizer.get_slot(variable, slot) is not None
    except KeyError:
        return False
