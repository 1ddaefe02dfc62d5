"""Checks of experiments and paths that take no time, before TensorFlow is imported and a model is built."""

from __future__ import annotations

import os

from maxdl_tf import class_table
from maxdl_tf.checkpoints.source import check_no_pattern
from maxdl_tf.data import shards
from maxdl_tf.errors import UserError
from maxdl_tf.files import disk_space, storage
from maxdl_tf.protos import experiment_pb2, training_pb2

_SAVED_MODEL = "saved_model.pb"


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
        tables.append(class_table.of_dataset(getattr(experiment, name)))
    if len({(table.classes, table.label_divisor, table.ignore_label) for table in tables}) > 1:
        raise UserError("train_dataset and eval_dataset have different class tables; they must be equal")
    if trains and data_service:
        _check_data_service(experiment, data_service)
    if trains and not experiment.training.steps:
        raise UserError(f"experiment {experiment.name!r} has no training.steps; set the number of steps")
    if not trains and not storage.is_remote(model_dir) and not os.path.isdir(model_dir):
        raise UserError(f"--model_dir {model_dir} does not exist; train first, or fix the path")
    check_no_pattern(model_dir)
    disk_space.check_writable(model_dir)


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
    local = [pattern for pattern in getattr(experiment, name).file_pattern if not storage.is_remote(pattern)]
    if local:
        shards.find_shards(local, f"{name}.file_pattern")


def check_checkpoint_exists(checkpoint: str) -> None:
    """Raises UserError if a path is neither a checkpoint nor a folder. Its contents are not checked."""
    if (
        not storage.is_remote(checkpoint)
        and not os.path.exists(checkpoint + ".index")
        and not os.path.isdir(checkpoint)
    ):
        raise UserError(f"--checkpoint {checkpoint} does not exist; name a checkpoint as .../ckpt-1000, or its folder")
    check_no_pattern(checkpoint)


def find_saved_model(path: str | None) -> str | None:
    """The folder of a SavedModel: `path`, or the highest version in it, as TensorFlow Serving chooses.

    None if there is none, or if the folder has checkpoints.
    """
    if not path or not storage.is_folder(path):
        return None
    names = storage.list_folder(path)
    if _SAVED_MODEL in names:
        return path
    versions = [name for name in names if name.isdecimal() and storage.exists(os.path.join(path, name, _SAVED_MODEL))]
    if not versions or any(name.endswith(".index") for name in names):
        return None
    return os.path.join(path, max(versions, key=int))
