"""The weights that a training starts from: all of a checkpoint, or a part that is named; never an unknown one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import tensorflow as tf

from maxdl_tf.checkpoints.compare import Difference, Shape, compact_names, compare
from maxdl_tf.checkpoints.save_restore import (
    DAMAGE,
    KEY_SUFFIX,
    CheckpointMismatch,
    checkpoint_paths,
    is_of_model,
    name_of,
    reason_of,
    shapes_by_key,
    variables_by_key,
)
from maxdl_tf.errors import UserError

_CLASSIFIER = "model/classifier/"  # What a backbone was pretrained under; a checkpoint of one may have it.
_SEMANTIC_BRANCH = ("model/semantic_head/", "model/semantic_decoder/")
_DEPTH = 4  # A line of the report is for a stage: model/backbone/stages/stage5.


class InitialWeights(NamedTuple):
    """What a model starts from.

    Attributes:
      path: The checkpoint.
      loaded: The variables that came from it, by their object paths, such as `model/backbone/memory`.
      initial: The others, which keep the values that they had.
      is_backbone: Whether it is the checkpoint of a pretrained backbone.
    """

    path: str
    loaded: list[str]
    initial: list[str]
    is_backbone: bool

    def report(self) -> list[str]:
        """Lines for people, which name all that came from the checkpoint, or else all that did not."""
        if self.is_backbone:
            lines = [
                f"starting from the backbone {self.path}: {len(self.loaded)} variables come from it, the other "
                f"{len(self.initial)} keep their initial values; from it are"
            ]
            return lines + [f"  {line}" for line in compact_names(self.loaded, _DEPTH)]
        if self.initial:
            return [
                f"starting from {self.path}, which is of another number of classes: {len(self.loaded)} variables come "
                f"from it, {len(self.initial)} keep their initial values: {', '.join(self.initial)}"
            ]
        return [f"starting from {self.path}: all {len(self.loaded)} variables of the model come from it"]


class _Choice(NamedTuple):
    names: set[str]
    is_backbone: bool = False


def load_initial_weights(model: tf.Module, path: str, log: Callable[[str], None] = print) -> InitialWeights:
    """Loads what a training is to start from, in one of three ways.

    All of the model's variables come from the checkpoint. Or, if it is of another number of classes, all but the heads
    that depend on it. Or, if it is one of a pretrained backbone, just the model's pretrained part. Optimizers and step
    stay in the file.

    Args:
      model: Its variables exist, distributed or not. It has `pretrained_variables` and `class_dependent_variables`.
      path: A checkpoint (`.../ckpt-1000`), or a directory, of which the newest complete one is taken.
      log: Gets the report, and a line on each checkpoint that had to be passed over.

    Raises:
      CheckpointMismatch: It fits in none of these ways. Nothing has been changed then.
      UserError: There is no checkpoint, or it cannot be read.
    """
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
    raise UserError(f"none of the {len(paths)} checkpoints in initial_checkpoint {path} can be read; take another one")


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
        variables[name].assign(reader.get_tensor(name + KEY_SUFFIX))
    loaded = [name for name in variables if name in choice.names]
    initial = [name for name in variables if name not in choice.names]
    return InitialWeights(path, loaded, initial, choice.is_backbone)


def _choose(
    path: str, found: Mapping[str, Shape], wanted: Mapping[str, Shape], pretrained: set[str], class_dependent: set[str]
) -> _Choice:
    """The names of the variables to load, or CheckpointMismatch."""
    if not found:
        raise CheckpointMismatch(
            f"initial_checkpoint {path} has no variables of a model of this package, whose names start with model/; "
            "one of DeepLab2 must go through maxdl-import-checkpoint first"
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
            f"{difference.summary()}; take one of the same variant and widths"
        )
    advice = _advice(difference, class_dependent)
    raise CheckpointMismatch(f"initial_checkpoint {path} does not fit this model; {difference.summary()}; {advice}")


def _advice(difference: Difference, class_dependent: set[str]) -> str:
    if not set(difference.reshaped) - class_dependent:
        if all(name.startswith(_SEMANTIC_BRANCH) for name in difference.unexpected) and not difference.missing:
            return "it was trained with the semantic branch: set model.semantic_branch to true"
        if all(name.startswith(_SEMANTIC_BRANCH) for name in difference.missing) and not difference.unexpected:
            return "it was trained without the semantic branch: set model.semantic_branch to false"
    return "only the number of classes may differ; take the variant and widths of the config that it was trained with"


def _layer_of(name: str) -> str:
    return name.rpartition("/")[0]
