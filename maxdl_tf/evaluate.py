"""Measures the panoptic quality of a checkpoint on the experiment's eval_dataset.

Prints PQ, SQ and RQ of all, things, stuff and each class as a table, which is also written as JSON where --json names
a file. The rule is COCO's: crowds are not counted against the model.

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
    import tensorflow as tf

    from maxdl_tf.models.max_deeplab import MaXDeepLab
    from maxdl_tf.protos import experiment_pb2
    from maxdl_tf.structs import DatasetInfo
    from maxdl_tf.training.eval_step import Evaluator

FLAGS = flags.FlagValues()
_CONFIG_FILE = flags.DEFINE_string(
    "config_file", None, "Experiment textproto that the model was trained with.", required=True, flag_values=FLAGS
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "A checkpoint (runs/shapes/ckpt-1000), or a folder, which means its newest one.",
    required=True,
    flag_values=FLAGS,
)
_JSON = flags.DEFINE_string("json", None, "File to write the figures to.", flag_values=FLAGS)
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
    check_checkpoint_exists(_CHECKPOINT.value)
    if _JSON.value:
        storage.check_writable(os.path.dirname(_JSON.value) or ".")
    with command_line.quiet_imports():
        from maxdl_tf import factory
        from maxdl_tf.training import checkpoints, distribution, loop

    dataset_info = config.dataset_info_of(experiment.eval_dataset)
    strategy = distribution.create_strategy(_STRATEGY.value)
    with strategy.scope():
        model = factory.build_model(experiment, dataset_info)
    restored = checkpoints.load_model_weights(model, _CHECKPOINT.value, say=print)
    evaluator = build_evaluator(experiment, dataset_info, strategy, model)
    result = loop.evaluate_with_progress(evaluator)
    print(result.as_table())
    if _JSON.value:
        loop.write_json(_JSON.value, {"step": restored.step, **result.as_dict()})


def build_evaluator(
    experiment: experiment_pb2.Experiment,
    dataset_info: DatasetInfo,
    strategy: tf.distribute.Strategy,
    model: MaXDeepLab,
    summary_images: int = 0,
) -> Evaluator:
    """The evaluator of a model on the experiment's eval_dataset; draws `summary_images` of them for TensorBoard."""
    from maxdl_tf import factory
    from maxdl_tf.inference import visualize
    from maxdl_tf.training.eval_step import Evaluator

    def draw(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
        pictures = [image, *(visualize.panoptic_picture(image, m, dataset_info) for m in (truth, prediction))]
        return visualize.side_by_side(pictures, ["input", "truth", "prediction"])

    return Evaluator(
        strategy=strategy,
        model=model,
        postprocess=factory.build_postprocessor(experiment, dataset_info),
        batches=factory.build_evaluation_batches(experiment, dataset_info),
        new_metric=lambda: factory.build_metric(dataset_info),
        draw=draw,
        summary_images=summary_images,
    )


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
