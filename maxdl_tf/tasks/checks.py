"""Checks of experiments and paths that take no time, before TensorFlow is imported and a model is built."""

from __future__ import annotations

import json
import os
import sys
from typing import NamedTuple

from maxdl_tf import class_table
from maxdl_tf.checkpoints.folder import folder_of
from maxdl_tf.checkpoints.source import check_no_pattern
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data import shards
from maxdl_tf.errors import UserError
from maxdl_tf.files import disk_space, storage, textproto
from maxdl_tf.protos import experiment_pb2, training_pb2

_SAVED_MODEL = "saved_model.pb"
_EXPORT_INFO = "export_info.json"  # Beside the model only if it is not a SavedModel, which has it in a folder.


def check_run(
    experiment: experiment_pb2.Experiment,
    model_dir: str,
    *,
    trains: bool,
    evaluates: bool,
    data_service: str | None = None,
) -> None:
    """Raises UserError if the experiment cannot run here.

    Args:
      experiment: The experiment.
      model_dir: Folder of the checkpoints. It is created if the experiment is trained; otherwise it must exist.
      trains: Whether it is trained.
      evaluates: Whether it is evaluated.
      data_service: Address of the dispatcher of a tf.data service.
    """
    if trains and experiment.training.optimizer.kind == training_pb2.OptimizerOptions.radam_lookahead:
        from maxdl_tf.training.optimizers import require_addons

        require_addons()
    tables = []
    for name in ["train_dataset"] * trains + ["eval_dataset"] * evaluates:
        check_shards(experiment, name)
        tables.append(class_table.of_dataset(getattr(experiment, name), name))
        _check_intensity(experiment, name, tables[-1])
    if len({(table.classes, table.label_divisor, table.ignore_label, table.intensity) for table in tables}) > 1:
        raise UserError("train_dataset and eval_dataset have different class tables; they must be equal")
    check_classes(model_dir, tables[0])
    if trains and data_service:
        _check_data_service(experiment, data_service)
    if trains:
        _check_schedule(experiment)
        _check_initial_checkpoint(experiment.training.initial_checkpoint, model_dir, tables[0])
    if not trains and not storage.is_remote(model_dir) and not os.path.isdir(model_dir):
        raise UserError(f"--model_dir {model_dir} does not exist; train first, or fix the path")
    check_no_pattern(model_dir)
    disk_space.check_writable(model_dir)


def _check_intensity(experiment: experiment_pb2.Experiment, name: str, info: DatasetInfo) -> None:
    """Raises UserError if the pixels of the shards were made by another rule than the one of the class table."""
    options = getattr(experiment, name)
    path = os.path.join(os.path.dirname(options.file_pattern[0]), class_table.FILE_NAME)
    rule = class_table.load(path).intensity if os.path.isfile(path) else None
    if rule and rule != info.intensity:
        raise UserError(
            f"{name}.dataset_info {options.dataset_info}: intensity {info.intensity}, but {path}: {rule}, by which "
            "the shards were made; take that rule, or convert the images again"
        )


def _check_schedule(experiment: experiment_pb2.Experiment) -> None:
    steps, warmup_steps = experiment.training.steps, experiment.training.optimizer.warmup_steps
    if not steps:
        raise UserError(f"experiment {experiment.name!r} has no training.steps; set the number of steps")
    if warmup_steps > steps:
        raise UserError(
            f"training.optimizer.warmup_steps {warmup_steps} is more than training.steps {steps}, so the learning rate "
            "would never reach its peak; add --override 'training { optimizer { warmup_steps: "
            f"{steps // 10} }} }}'"
        )


def _check_initial_checkpoint(path: str, model_dir: str, info: DatasetInfo) -> None:
    """Raises UserError if a training that starts now would not find its initial checkpoint."""
    if not path or has_checkpoints(model_dir):
        return
    textproto.check_placeholders(path, "training.initial_checkpoint")
    if not (has_checkpoints(path) if storage.is_folder(path) else storage.exists(path + ".index")):
        raise UserError(
            f"training.initial_checkpoint {path}: there is no checkpoint; name one as .../ckpt-1000, or the folder of "
            "files like ckpt-1000.index"
        )
    check_classes(path, info, only_starts=True)


def _check_data_service(experiment: experiment_pb2.Experiment, address: str) -> None:
    if not address.startswith("grpc://"):
        raise UserError(f"--data_service {address}: wanted grpc://host:port")
    if experiment.train_dataset.cache:
        raise UserError(
            "train_dataset.cache does not work with --data_service, whose workers read different files in each epoch; "
            "add --override 'train_dataset { cache: false }'"
        )


def check_shards(experiment: experiment_pb2.Experiment, name: str) -> None:
    """Raises UserError unless the experiment has this data set, and its patterns match whole sets of shards.

    Args:
      experiment: The experiment.
      name: "train_dataset" or "eval_dataset".
    """
    if not experiment.HasField(name):
        raise UserError(f"experiment {experiment.name!r} has no {name}, which this command needs; add it to the config")
    patterns = getattr(experiment, name).file_pattern
    for pattern in patterns:
        textproto.check_placeholders(pattern, f"{name}.file_pattern")
    local = [pattern for pattern in patterns if not storage.is_remote(pattern)]
    if local:
        shards.find_shards(local, f"{name}.file_pattern")


def check_classes(checkpoint: str, info: DatasetInfo, *, only_starts: bool = False) -> None:
    """Compares the class table that training left beside its checkpoints with the one in use.

    Differences that do no harm, such as a new name, are reported on stderr.

    Args:
      checkpoint: Path of a checkpoint, or of a folder of checkpoints.
      info: The class table in use.
      only_starts: Whether a training with new classes starts from the checkpoint, which is not an error.

    Raises:
      UserError: A class has another place in the table, or is a thing in one and stuff in the other.
    """
    folder = folder_of(checkpoint)
    path = os.path.join(folder, class_table.FILE_NAME)
    if not has_checkpoints(folder) or not storage.exists(path):
        return
    earlier = class_table.load(path)
    if earlier.intensity != info.intensity and not only_starts:
        print(
            f"warning: {path}: the checkpoint was trained with intensity {earlier.intensity}, but {info.name!r} has "
            f"{info.intensity}; images of more than 8 bits look different",
            file=sys.stderr,
        )
    before, now = _kinds(earlier), _kinds(info)
    differing = [pair for pair in zip(before, now) if pair[0] != pair[1]]
    if not differing or (only_starts and len(before) != len(now)):
        return
    difference = f"{path}: the checkpoint was trained with {differing[0][0]} where {info.name!r} has {differing[0][1]}"
    if not only_starts and {kind.name for kind in before} & {kind.name for _, kind in differing}:
        raise UserError(f"{difference}; use the class table of the training, or another checkpoint")
    print(f"warning: {difference}", file=sys.stderr)


class _Kind(NamedTuple):
    """A class as the outputs of a model know it."""

    name: str
    is_thing: bool

    def __str__(self) -> str:
        return f"the {'thing' if self.is_thing else 'stuff class'} {self.name!r}"


def _kinds(info: DatasetInfo) -> list[_Kind]:
    """The classes in the order of the class logits."""
    return [_Kind(info.by_id[class_id].name, info.by_id[class_id].is_thing) for class_id in info.class_order]


def has_checkpoints(folder: str) -> bool:
    """Whether a folder has the index of a checkpoint."""
    return any(name.endswith(".index") for name in storage.list_folder(folder))


def check_checkpoint_exists(checkpoint: str) -> None:
    """Raises UserError if a path is neither a checkpoint nor a folder. Its contents are not checked."""
    if (
        not storage.is_remote(checkpoint)
        and not os.path.exists(checkpoint + ".index")
        and not os.path.isdir(checkpoint)
    ):
        raise UserError(f"--checkpoint {checkpoint} does not exist; name a checkpoint as .../ckpt-1000, or its folder")
    check_no_pattern(checkpoint)


def find_export(path: str | None) -> str | None:
    """The folder of an export: `path`, or the highest version in it, as TensorFlow Serving chooses.

    None if there is none, or if the folder has checkpoints.
    """
    if not path or not storage.is_folder(path):
        return None
    names = storage.list_folder(path)
    if _SAVED_MODEL in names or _EXPORT_INFO in names:
        return path
    versions = [
        name
        for name in names
        if name.isdecimal()
        and any(storage.exists(os.path.join(path, name, file)) for file in (_SAVED_MODEL, _EXPORT_INFO))
    ]
    if not versions or any(name.endswith(".index") for name in names):
        return None
    return os.path.join(path, max(versions, key=int))


def export_format(export: str) -> str:
    """Format of the export in a folder, as --format of maxdl-export names it.

    Raises:
      UserError: The export is damaged.
    """
    if storage.exists(os.path.join(export, _SAVED_MODEL)):
        return "saved_model"
    try:
        return json.loads(storage.read_text(os.path.join(export, _EXPORT_INFO)))["format"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{export}: {_EXPORT_INFO} is damaged ({error!r}); export it again") from error


def check_compute(model: str, export: str, compute: str) -> None:
    """Raises UserError if `compute`, the value of --compute, is not how an export computes; `model` names it."""
    chosen = export_format(export)
    if compute != "float32" and chosen != "openvino":
        kind = "a SavedModel" if chosen == "saved_model" else f"of format {chosen}"
        raise UserError(
            f"--compute {compute}: --model {model} is {kind}, whose computation is fixed; drop it, or give a checkpoint"
        )
