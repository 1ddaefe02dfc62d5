"""Imports weights from a checkpoint in DeepLab2's layout: all of the model, or an error that names what differs.

Variables have their published names here, such as `encoder/_stem/_conv1_bn_act/_conv/kernel`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from maxdl_tf.checkpoints.compare import Difference, Shape, compare
from maxdl_tf.checkpoints.deeplab2_advice import advice, family, items
from maxdl_tf.checkpoints.deeplab2_names import published_name, variable_paths
from maxdl_tf.checkpoints.keys import KEY_SUFFIX, is_of_model, name_of, shapes_by_key
from maxdl_tf.checkpoints.save_restore import DAMAGE, Checkpoints, reason_of
from maxdl_tf.checkpoints.source import CheckpointSource
from maxdl_tf.errors import UserError
from maxdl_tf.models.network import PanopticNetwork

_ENCODER = "encoder/"
# Path of the encoder in checkpoints of TensorFlow's Model Garden.
_ENCODER_IN_BACKBONE = "backbone/_encoder/"
# Variables of the training, not of the model.
_IGNORED = re.compile(r"(global_step$|save_counter$|optimizer/|backbone_optimizer/)|.*/\.OPTIMIZER_SLOT/")


class ImportMismatch(UserError):
    """The checkpoint belongs to another model.

    Attributes:
      difference: All variables that differ.
    """

    def __init__(self, message: str, difference: Difference):
        super().__init__(message)
        self.difference = difference


class Imported(NamedTuple):
    """Result of an import.

    Attributes:
      step: Global step of the checkpoint; 0 if it has none.
      loaded: Names of the loaded variables.
      initial: Names of variables that were allowed to differ and keep their initial values.
      left_out: Names of variables of the checkpoint that are skipped, because only the backbone is imported.
      variables: The loaded and the initial variables, by their paths in a checkpoint of this package.
    """

    step: int
    loaded: list[str]
    initial: list[str]
    left_out: list[str]
    variables: dict[str, tf.Variable]


def import_weights(
    model: PanopticNetwork,
    source: CheckpointSource,
    *,
    backbone_only: bool = False,
    allow_missing: Collection[str] = (),
) -> Imported:
    """Loads the weights of a checkpoint in DeepLab2's layout into a model.

    Args:
      model: Model whose variables exist.
      source: The checkpoint.
      backbone_only: Whether to load only the model's `pretrained_variables` and skip the rest of the checkpoint.
      allow_missing: Published items, such as `semantic_decoder`, whose variables may be missing from the checkpoint or
        have another shape in it. These keep their initial values.

    Raises:
      ImportMismatch: A variable is missing, has another shape, or belongs to another model. Nothing was changed.
      UserError: The checkpoint is of the other family, `allow_missing` names nothing of the model, or the checkpoint is
        damaged.
    """
    by_path = variable_paths(model, "model")
    paths = {published_name(path): path for path in by_path}
    variables = {name: by_path[path] for name, path in paths.items()}
    pretrained_ids = {id(variable) for variable in model.pretrained_variables}
    pretrained = {name for name, variable in variables.items() if id(variable) in pretrained_ids}
    wanted = {name: tuple(variables[name].shape) for name in sorted(pretrained if backbone_only else variables)}
    for item in allow_missing:
        if not any(_is_below(name, item) for name in wanted):
            raise UserError(
                f"--allow_missing {item} names no item of the model; choose from {', '.join(items(wanted))}"
            )
    try:
        reader = tf.train.load_checkpoint(source.prefix)
        keys = _keys_by_name(reader)
        families = family(keys), family(variables)
        if families[0] not in (None, families[1]):
            raise UserError(
                f"{source.label} is a checkpoint of a {families[0]}, but the config's model is a {families[1]}; name a "
                f"config of a {families[0]}"
            )
        left_out = [name for name in keys if backbone_only and name not in wanted and _may_stay(name, variables)]
        found = {name: shape for name, (_, shape) in keys.items() if name not in left_out}
        difference = compare(found, wanted)
        differing = (*difference.missing, *difference.reshaped)
        initial = sorted(name for name in differing if any(_is_below(name, item) for item in allow_missing))
        difference = difference._replace(
            missing=[name for name in difference.missing if name not in initial],
            reshaped=[name for name in difference.reshaped if name not in initial],
        )
        if not difference.is_none:
            if any(is_of_model(key) for key in shapes_by_key(reader)):
                next_step = "it is a checkpoint of this package, which all commands take without an import"
            else:
                next_step = advice(difference, found, wanted, pretrained)
            raise ImportMismatch(f"{source.label} does not fit; {difference.summary()}; {next_step}", difference)
        loaded = [name for name in wanted if name not in initial]
        for name in loaded:
            variables[name].assign(reader.get_tensor(keys[name][0]))
        step = _step(reader)
    except DAMAGE as error:
        raise UserError(f"{source.label} is damaged: {reason_of(error)}; download or copy it again") from error
    return Imported(step, loaded, initial, sorted(left_out), {paths[name]: variables[name] for name in wanted})


def save_imported(imported: Imported, directory: str) -> str:
    """Writes the variables, and no others, as a checkpoint of this package, `ckpt-STEP`; returns its prefix."""
    tree = variable_tree({path.removeprefix("model/"): variable for path, variable in imported.variables.items()})
    step = tf.Variable(imported.step, dtype=tf.int64, trainable=False)
    return Checkpoints(directory, model=tree, global_step=step, keep=1).save()


def variable_tree(variables: Mapping[str, tf.Variable]) -> tf.Module:
    """An object for `tf.train.Checkpoint` that has each variable at its slash-separated path."""
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


def _keys_by_name(reader: Any) -> dict[str, tuple[str, Shape]]:
    """{published name: (key in the file, shape)} of all variables that may belong to the model."""
    found = {name_of(key): (key, shape) for key, shape in shapes_by_key(reader).items() if key.endswith(KEY_SUFFIX)}
    if not any(name.startswith(_ENCODER) for name in found):
        found = {_moved(name): entry for name, entry in found.items()}
    return {name: entry for name, entry in found.items() if not _IGNORED.match(name)}


def _moved(name: str) -> str:
    return _ENCODER + name.removeprefix(_ENCODER_IN_BACKBONE) if name.startswith(_ENCODER_IN_BACKBONE) else name


def _may_stay(name: str, model_names: Collection[str]) -> bool:
    """Whether a variable outside of the backbone may be skipped: it is known, or not part of the encoder."""
    return name in model_names or not name.startswith((_ENCODER, _ENCODER_IN_BACKBONE))


def _step(reader: Any) -> int:
    key = "global_step" + KEY_SUFFIX
    return int(reader.get_tensor(key)) if shapes_by_key(reader).get(key) == () else 0


def _is_below(name: str, item: str) -> bool:
    return f"{name}/".startswith(f"{item.rstrip('/')}/")
