"""The experiment of a checkpoint: the one that maxdl-train left beside it, unless another config is named.

Needs no TensorFlow, so that commands see errors at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from maxdl_tf import class_table, config
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage
from maxdl_tf.protos import experiment_pb2

_DATASETS = ("train_dataset", "eval_dataset")
_ONLY_IN_TRAINING = ("drop_path_keep", "batch_norm_momentum", "sync_batch_norm", "recompute")  # Of model.


def load(
    checkpoint: str,
    config_file: str | None = None,
    overrides: Sequence[str] = (),
    *,
    keep_unset_placeholders: bool = False,
) -> experiment_pb2.Experiment:
    """Loads the experiment to use with a checkpoint.

    If a config is named and the checkpoint has an `experiment.textproto` beside it, differences between the two that
    change predictions are printed to stderr.

    Args:
      checkpoint: Path of a checkpoint, or of a folder of checkpoints.
      config_file: Path or name of the experiment. None: `experiment.textproto` in the folder of the checkpoint, with
        the class table beside it.
      overrides: Textproto fragments merged over the experiment.
      keep_unset_placeholders: As for `config.load_experiment`.

    Raises:
      UserError: There is no experiment, or it has an error.
    """
    path = _beside(checkpoint)
    if config_file is None:
        if not storage.exists(path):
            raise UserError(
                f"{path} does not exist; check that the folder is that of an export or a training, or name the "
                "experiment that the model was trained with: --config_file or, in Python, experiment"
            )
        return _load_beside(path, overrides, keep_unset_placeholders)
    experiment = config.load_experiment(config_file, overrides, keep_unset_placeholders=keep_unset_placeholders)
    changed = _changes_of_results(experiment, path) if storage.exists(path) else []
    if changed:
        print(
            f"warning: {path}, with which the checkpoint was trained, differs from this experiment: "
            f"{', '.join(changed)}; drop --config_file to use it",
            file=sys.stderr,
        )
    return experiment


def _beside(checkpoint: str) -> str:
    folder = checkpoint if storage.is_folder(checkpoint) else os.path.dirname(checkpoint)
    return os.path.join(folder, config.EXPERIMENT_FILE)


def _load_beside(path: str, overrides: Sequence[str], keep_unset_placeholders: bool) -> experiment_pb2.Experiment:
    experiment, trained = (
        config.load_experiment(path, fragments, keep_unset_placeholders=keep_unset_placeholders)
        for fragments in (overrides, ())
    )
    table = os.path.join(os.path.dirname(path), class_table.FILE_NAME)
    if storage.exists(table):  # The one that the experiment names may have stayed on another machine.
        for name in _DATASETS:
            options = getattr(experiment, name)
            if experiment.HasField(name) and options.dataset_info == getattr(trained, name).dataset_info:
                options.dataset_info = table
    return experiment


def _changes_of_results(experiment: experiment_pb2.Experiment, path: str) -> list[str]:
    """Fields that change predictions, as "FIELD VALUE instead of VALUE", against the experiment at `path`."""
    try:
        trained = _load_beside(path, (), keep_unset_placeholders=True)
    except UserError:  # Of another version. It is not needed.
        return []
    found = [*_differing_fields(experiment, trained, "task"), *_differing_fields(experiment, trained, "model")]
    for name in _DATASETS:
        if experiment.HasField(name) and trained.HasField(name):
            here, there = getattr(experiment, name), getattr(trained, name)
            found += _differing_fields(here, there, "crop_size", f"{name}.")
            with contextlib.suppress(UserError):  # Reported where the table is needed.
                tables = [class_table.of_dataset(options) for options in (here, there)]
                if len({(table.classes, table.label_divisor, table.ignore_label) for table in tables}) > 1:
                    found.append(f"the classes of {name}.dataset_info")
    return found


def _differing_fields(here: Message, there: Message, name: str, prefix: str = "") -> list[str]:
    field = here.DESCRIPTOR.fields_by_name[name]
    if field.message_type:
        inner = [inner for inner in field.message_type.fields_by_name if inner not in _ONLY_IN_TRAINING]
        pairs = (_differing_fields(getattr(here, name), getattr(there, name), i, f"{prefix}{name}.") for i in inner)
        return [line for lines in pairs for line in lines]
    got, wanted = (_shown(message, field) for message in (here, there))
    return [f"{prefix}{name} {got} instead of {wanted}"] if got != wanted else []


def _shown(message: Message, field: FieldDescriptor) -> str:
    """The value of a field. An unset one without a default is the variant's."""
    value = getattr(message, field.name)
    if not field.has_presence:
        return " x ".join(map(str, value)) or "unset"
    if not message.HasField(field.name) and not field.has_default_value:
        return "unset"
    if field.enum_type:
        return field.enum_type.values_by_number[value].name
    return f"{value:.7g}" if isinstance(value, float) else str(value)
