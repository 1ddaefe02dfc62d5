"""The experiment of a checkpoint: the one that maxdl-train left beside it, unless another config is named.

Needs no TensorFlow, so that commands see errors at once.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

from maxdl_tf import class_table, config
from maxdl_tf.checkpoints.folder import folder_of
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage
from maxdl_tf.protos import experiment_pb2

_DATASETS = ("train_dataset", "eval_dataset")
_ONLY_IN_TRAINING = ("drop_path_keep", "batch_norm_momentum", "sync_batch_norm", "recompute")  # Of model.


def load(checkpoint: str, config_file: str | None = None, overrides: Sequence[str] = ()) -> experiment_pb2.Experiment:
    """Loads the experiment to use with a checkpoint.

    If a config is named and the checkpoint has an `experiment.textproto` beside it, differences between the two that
    change predictions are printed to stderr.

    Args:
      checkpoint: Path of a checkpoint, or of a folder of checkpoints.
      config_file: Path or name of the experiment. None: `experiment.textproto` in the folder of the checkpoint, with
        the class table beside it.
      overrides: Textproto fragments merged over the experiment.

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
        return _load_beside(path, overrides)
    experiment = config.load_experiment(config_file, overrides)
    changed = _changes_of_results(experiment, path) if storage.exists(path) else []
    if changed:
        print(
            f"warning: {path}, with which the checkpoint was trained, differs from this experiment: "
            f"{', '.join(changed)}; drop --config_file to use it",
            file=sys.stderr,
        )
    return experiment


def _beside(checkpoint: str) -> str:
    return os.path.join(folder_of(checkpoint), config.EXPERIMENT_FILE)


def _load_beside(path: str, overrides: Sequence[str]) -> experiment_pb2.Experiment:
    experiment, trained = (config.load_experiment(path, fragments) for fragments in (overrides, ()))
    table = os.path.join(os.path.dirname(path), class_table.FILE_NAME)
    if storage.exists(table):  # The one that the experiment names may have stayed on another machine.
        for name in _DATASETS:
            options = getattr(experiment, name)
            if experiment.HasField(name) and options.dataset_info == getattr(trained, name).dataset_info:
                options.dataset_info = table
    return experiment


def _changes_of_results(experiment: experiment_pb2.Experiment, path: str) -> list[str]:
    """Fields that change predictions, each with both values. `checks.check_classes` compares the class tables."""
    try:
        trained = _load_beside(path, ())
    except UserError:  # Of another version. It is not needed.
        return []
    shared = [name for name in _DATASETS if experiment.HasField(name) and trained.HasField(name)]
    compared = re.compile(
        rf"task|model\.(?!({'|'.join(_ONLY_IN_TRAINING)})$).*|({'|'.join(shared)})\.(crop_size|enlarge|tile|tile_overlap)"
    )
    return [
        f"{field} {values}"
        for field, values in config.differences(trained, experiment).items()
        if compared.fullmatch(field)
    ]
