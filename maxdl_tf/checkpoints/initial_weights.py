"""Initial weights of a training, from a checkpoint: all of them, or a part that is reported by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from maxdl_tf.checkpoints.compare import Difference, Shape, compact_names, compare
from maxdl_tf.checkpoints.folder import checkpoint_paths
from maxdl_tf.checkpoints.keys import KEY_SUFFIX, is_of_model, name_of, shapes_by_key, variables_by_key
from maxdl_tf.checkpoints.save_restore import DAMAGE, CheckpointMismatch, NonFiniteModelError, reason_of
from maxdl_tf.checkpoints.source import check_no_pattern
from maxdl_tf.errors import UserError

_CLASSIFIER = ("model/classifier/", "model/classifier_conv/")  # Head of the classification that pretrained a backbone.
_SEMANTIC_BRANCH = ("model/semantic_head/", "model/semantic_decoder/")
_DEPTH = 4  # The report has a line for each stage: model/backbone/stages/stage5.


class InitialWeights(NamedTuple):
    """Variables of a model that a checkpoint initialized, and those that it did not.

    Attributes:
      path: Path of the checkpoint.
      loaded: Object paths of the loaded variables, such as `model/backbone/memory`.
      initial: Object paths of the variables that keep their initial values.
      is_backbone: Whether the checkpoint is of a pretrained backbone.
    """

    path: str
    loaded: list[str]
    initial: list[str]
    is_backbone: bool

    def report(self) -> list[str]:
        """Human-readable lines that name the loaded variables, or those that were not loaded."""
        if self.is_backbone:
            lines = [
                f"starting from the backbone {self.path}: {len(self.loaded)} variables are loaded, the other "
                f"{len(self.initial)} keep their initial values; loaded are"
            ]
            return lines + [f"  {line}" for line in compact_names(self.loaded, _DEPTH)]
        if self.initial:
            return [
                f"starting from {self.path}, which has another number of classes: {len(self.loaded)} variables are "
                f"loaded, {len(self.initial)} keep their initial values: {', '.join(self.initial)}"
            ]
        return [f"starting from {self.path}: all {len(self.loaded)} variables of the model are loaded"]


class _Choice(NamedTuple):
    names: set[str]
    is_backbone: bool = False


def load_initial_weights(model: tf.Module, path: str, log: Callable[[str], None] = print) -> InitialWeights:
    """Loads the initial weights of a training in one of three ways.

    - All variables of the model.
    - If the checkpoint has another number of classes: all but the layers that depend on it.
    - If the checkpoint is of a pretrained backbone: the pretrained part of the model.

    Optimizers and the step count are not loaded.

    Args:
      model: Model with `pretrained_variables` and `class_dependent_variables`; its variables exist.
      path: A checkpoint (`.../ckpt-1000`), or a directory whose newest complete checkpoint is used.
      log: Receives the report, and a line about each skipped checkpoint.

    Raises:
      CheckpointMismatch: The checkpoint fits in none of these ways. Nothing was changed.
      NonFiniteModelError: A variable is NaN or infinite.
      UserError: There is no checkpoint, or it cannot be read.
    """
    check_no_pattern(path)
    is_directory = tf.io.gfile.isdir(path)
    paths = checkpoint_paths(path) if is_directory else [path]
    if not paths:
        raise UserError(f"no checkpoint in initial_checkpoint {path}; wanted files like ckpt-1000.index")
    for candidate in paths:
        try:
            weights = _load(model, candidate)
        except DAMAGE as error:
            if not is_directory:
                raise UserError(f"cannot read initial_checkpoint {path}: {reason_of(error)}; check the path") from error
            log(f"checkpoint {candidate} is incomplete ({reason_of(error)}); trying the one before it")
            continue
        for line in weights.report():
            log(line)
        return weights
    raise UserError(
        f"none of the {len(paths)} checkpoints in initial_checkpoint {path} can be read; choose another one"
    )


def _load(model: tf.Module, path: str) -> InitialWeights:
    reader = tf.train.load_checkpoint(path)
    found = {name_of(key): shape for key, shape in shapes_by_key(reader).items() if is_of_model(key)}
    variables = {name_of(key): value for key, value in variables_by_key(tf.train.Checkpoint(model=model)).items()}
    name_by_id = {id(variable): name for name, variable in variables.items()}
    choice = _choose(
        path,
        found,
        {name: tuple(variable.shape) for name, variable in variables.items()},
        pretrained={name_by_id[id(variable)] for variable in model.pretrained_variables},
        class_dependent={name_by_id[id(variable)] for variable in model.class_dependent_variables},
    )
    for name in choice.names:
        value = reader.get_tensor(name + KEY_SUFFIX)
        if not np.isfinite(value).all():
            raise NonFiniteModelError(f"initial_checkpoint {path}: variable {name} is not finite; take an earlier one")
        variables[name].assign(value)
    loaded = [name for name in variables if name in choice.names]
    initial = [name for name in variables if name not in choice.names]
    return InitialWeights(path, loaded, initial, choice.is_backbone)


def _choose(
    path: str, found: Mapping[str, Shape], wanted: Mapping[str, Shape], pretrained: set[str], class_dependent: set[str]
) -> _Choice:
    """Chooses the variables to load, or raises CheckpointMismatch."""
    if not found:
        raise CheckpointMismatch(
            f"initial_checkpoint {path} has no variables of a model of this package, whose names start with model/; "
            "a checkpoint of DeepLab2 must be imported with maxdl-import-checkpoint first"
        )
    difference = compare(found, wanted)
    if not (difference.missing or difference.unexpected or set(difference.reshaped) - class_dependent):
        heads = {_layer_of(name) for name in difference.reshaped}
        return _Choice({name for name in wanted if _layer_of(name) not in heads})
    if pretrained and not any(name in found for name in wanted if name not in pretrained):
        backbone = {name: shape for name, shape in found.items() if not name.startswith(_CLASSIFIER)}
        difference = compare(backbone, {name: wanted[name] for name in wanted if name in pretrained})
        if difference.is_none:
            return _Choice(pretrained, is_backbone=True)
        raise CheckpointMismatch(
            f"initial_checkpoint {path} seems to be of a backbone, but does not fit the pretrained part of this model; "
            f"{difference.summary()}; choose one with the same variant and widths"
        )
    advice = _advice(difference, class_dependent)
    raise CheckpointMismatch(f"initial_checkpoint {path} does not fit this model; {difference.summary()}; {advice}")


def _advice(difference: Difference, class_dependent: set[str]) -> str:
    if not set(difference.reshaped) - class_dependent:
        if all(name.startswith(_SEMANTIC_BRANCH) for name in difference.unexpected) and not difference.missing:
            return "it was trained with the semantic branch: set model.semantic_branch to true"
        if all(name.startswith(_SEMANTIC_BRANCH) for name in difference.missing) and not difference.unexpected:
            return "it was trained without the semantic branch: set model.semantic_branch to false"
    return "only the number of classes may differ; use the variant and widths of the config that it was trained with"


def _layer_of(name: str) -> str:
    return name.rpartition("/")[0]
