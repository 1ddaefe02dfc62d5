"""Measures the panoptic quality of a checkpoint on the experiment's eval_dataset.

Prints PQ, SQ and RQ of all, things, stuff and each class as a table, which is also written as JSON where --json names
a file. The rule is COCO's: crowds are not counted against the model. --pictures takes pictures of the first images,
with truth beside prediction. --untrained tells what initial weights are worth, to compare with. Of an experiment with
`task: classification` the accuracy is measured.

Example:

    maxdl-eval --config_file configs/shapes/tiny.textproto --checkpoint runs/shapes --json metrics.json
"""

from __future__ import annotations

import glob
import os
from typing import TYPE_CHECKING

from absl import flags

from maxdl_tf import command_line
from maxdl_tf.errors import UserError
from maxdl_tf.export_model import check_checkpoint_exists

if TYPE_CHECKING:
    import numpy as np

    from maxdl_tf.protos import experiment_pb2

FLAGS = flags.FlagValues()
_CONFIG_FILE = flags.DEFINE_string(
    "config_file", None, "Experiment textproto that the model was trained with.", required=True, flag_values=FLAGS
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "A checkpoint (runs/shapes/ckpt-1000), or a folder, which means its newest one.",
    flag_values=FLAGS,
)
_UNTRAINED = flags.DEFINE_boolean("untrained", False, "Evaluate initial weights instead.", flag_values=FLAGS)
_JSON = flags.DEFINE_string("json", None, "File to write the figures to.", flag_values=FLAGS)
_PICTURES = flags.DEFINE_string("pictures", None, "Folder for pictures: input, truth, prediction.", flag_values=FLAGS)
_PICTURE_COUNT = flags.DEFINE_integer("picture_count", 12, "How many.", lower_bound=1, flag_values=FLAGS)
_OVERRIDE = flags.DEFINE_multi_string(
    "override",
    [],
    "Textproto fragment merged over --config_file, such as 'evaluation { max_images: 100 }'.",
    flag_values=FLAGS,
)
_STRATEGY = flags.DEFINE_enum(
    "strategy", "auto", ["auto", "one_device", "mirrored"], "Devices to use; auto: all GPUs.", flag_values=FLAGS
)


def main(argv: list[str]) -> None:
    del argv
    from maxdl_tf import config
    from maxdl_tf.training import storage

    experiment = config.load_experiment(_CONFIG_FILE.value, _OVERRIDE.value)
    check_shards(experiment, "eval_dataset")
    if _UNTRAINED.value == bool(_CHECKPOINT.value):
        raise UserError("give either --checkpoint or --untrained")
    if _CHECKPOINT.value:
        check_checkpoint_exists(_CHECKPOINT.value)
    if _JSON.value:
        storage.check_writable(os.path.dirname(_JSON.value) or ".")
    if _PICTURES.value:
        storage.check_writable(_PICTURES.value)
    with command_line.quiet_imports():
        from maxdl_tf import factory, tasks
        from maxdl_tf.training import checkpoints, distribution, loop

    dataset_info = config.dataset_info_of(experiment.eval_dataset)
    task = tasks.task_of(experiment)
    strategy = distribution.create_strategy(_STRATEGY.value)
    with strategy.scope():
        model = task.build_model(experiment, dataset_info)
    step = 0
    if _CHECKPOINT.value:
        step = checkpoints.load_model_weights(model, _CHECKPOINT.value, say=print).step
    num_pictures = _PICTURE_COUNT.value if _PICTURES.value else 0
    evaluator = task.build_evaluator(experiment, dataset_info, strategy, model, write_picture, num_pictures)
    with factory.naming_bad_records(experiment, experiment.eval_dataset):
        result = loop.evaluate_with_progress(evaluator)
    print(result.as_table())
    if _JSON.value:
        loop.write_json(_JSON.value, {"step": step, **result.as_dict()})


def write_picture(image_id: str, picture: np.ndarray) -> None:
    from maxdl_tf.inference import images

    images.write_image(os.path.join(_PICTURES.value, f"{os.path.basename(image_id)}.png"), picture)


def check_shards(experiment: experiment_pb2.Experiment, name: str) -> None:
    """Raises UserError unless the experiment has this data set and each of its patterns finds files."""
    if not experiment.HasField(name):
        raise UserError(f"experiment {experiment.name!r} has no {name}, which this command needs; add it to the config")
    for pattern in getattr(experiment, name).file_pattern:
        if "://" not in pattern and not glob.glob(pattern):
            raise UserError(
                f"{name}.file_pattern {pattern!r} finds no file; convert the data with maxdl-convert, or mend the path"
            )


def run() -> None:
    command_line.run(main, FLAGS)


if __name__ == "__main__":
    run()
