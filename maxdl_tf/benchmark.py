"""Measures what a model costs: its size, its training, its predictions. Prints one JSON object, or a table.

count: `parameters` and `multiply_adds` of the model as it is trained, and the same as `..._without_semantic`, without
the auxiliary semantic branch, as published figures and exports are. A parameter is a trainable value. The image has the
crop size of the experiment's eval_dataset; a multiply-add is a multiplication of a convolution, matrix product or
attention, with its addition. Nothing is run: neither the data nor memory for the weights has to be there.

train: `seconds_per_step` and its shares, `first_step_seconds`, `peak_memory_bytes` of the process and what was
estimated of that before, and the like, on one device and on batches that are made up, of the crop and batch size of the
experiment's train_dataset.

predict: how long an image takes from the file to the panoptic PNG, and how long each part of that by itself (decode,
preprocess, forward, postprocess, encode; of a SavedModel the second and third together); parameters, multiply-adds and
the peak of memory, all of the process included. --model is a checkpoint of --config_file's model, or a SavedModel; for
a SavedModel the multiply-adds are given if --config_file is. Without --model the weights are random, and
post-processing may have less to do than otherwise. Images are --images, or drawn ones of about the crop's size.

Examples:

    maxdl-benchmark --mode count --config_file configs/coco/max_deeplab_s_641_400k.textproto \\
        --override 'eval_dataset { crop_size: 1025 }'
    maxdl-benchmark --mode train --config_file configs/coco/max_deeplab_s_641_400k.textproto \\
        --override 'train_dataset { batch_size: 1 }'
    maxdl-benchmark --mode predict --model exports/shapes/1 --images photos --table
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from typing import TYPE_CHECKING, Any

from absl import flags

from maxdl_tf import command_line
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage

if TYPE_CHECKING:
    from maxdl_tf.protos import experiment_pb2

FLAGS = flags.FlagValues()
_MODE = flags.DEFINE_enum(
    "mode", None, ["count", "train", "predict"], "What to measure.", required=True, flag_values=FLAGS
)
_CONFIG_FILE = flags.DEFINE_string(
    "config_file", None, "Experiment textproto; only --mode predict of a SavedModel can do without.", flag_values=FLAGS
)
_OVERRIDE = flags.DEFINE_multi_string(
    "override",
    [],
    "Textproto fragment merged over --config_file, such as 'model { num_slots: 64 }'.",
    flag_values=FLAGS,
)
_STEPS = flags.DEFINE_integer(
    "steps",
    5,
    "Steps that --mode train times, or how often --mode predict times each image, after the first one.",
    lower_bound=1,
    flag_values=FLAGS,
)
_MODEL = flags.DEFINE_string("model", None, "Checkpoint or SavedModel for --mode predict.", flag_values=FLAGS)
_IMAGES = flags.DEFINE_multi_string(
    "images", [], "An image, a folder of images or a quoted glob for --mode predict.", flag_values=FLAGS
)
_TABLE = flags.DEFINE_boolean("table", False, "Print a table of --mode predict, not JSON.", flag_values=FLAGS)


def main(argv: list[str]) -> None:
    del argv
    _check_flags()
    if _MODE.value == "predict":
        figures = predict()
    else:
        experiment = _experiment()
        figures = {"experiment": experiment.name, **{"count": count, "train": train}[_MODE.value](experiment)}
    if _TABLE.value:
        from maxdl_tf.inference import predict_benchmark

        print(predict_benchmark.table(figures))
    else:
        print(json.dumps(figures, indent=2))


def count(experiment: experiment_pb2.Experiment) -> dict[str, Any]:
    """What --mode count prints."""

    with command_line.quiet_imports():
        from maxdl_tf import tasks
        from maxdl_tf.models import complexity

    task = tasks.task_of(experiment)

    def build_model():
        with command_line.user_errors(ValueError):
            return task.build_model()

    return {"crop_size": task.crop_size, **complexity.measure(build_model, task.crop_size)._asdict()}


def train(experiment: experiment_pb2.Experiment) -> dict[str, Any]:
    """What --mode train prints."""

    if not experiment.HasField("train_dataset") or not experiment.training.steps:
        raise UserError(f"experiment {experiment.name!r} trains nothing: set train_dataset and training.steps")
    started = time.monotonic()
    with command_line.quiet_imports():
        import tensorflow as tf

        from maxdl_tf.data import synthetic
        from maxdl_tf.losses import assignment
        from maxdl_tf.tasks import run
        from maxdl_tf.tasks.panoptic import PanopticTask
        from maxdl_tf.training import distribution, step_benchmark

    options = experiment.train_dataset
    task = PanopticTask(experiment, for_training=True)
    strategy = distribution.create_strategy("one_device")
    state = run.build_state(task, strategy)
    parts = experiment.training.accumulate_steps
    batch = synthetic.synthetic_batch(
        task.dataset_info,
        crop_size=task.crop_size,
        batch_size=options.batch_size // parts,
        max_things=options.max_things,
    )
    batches = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensors(batch).repeat())
    trainer = run.build_trainer(task, state, batches)
    loss = task.build_loss()
    build_seconds = time.monotonic() - started
    times = step_benchmark.measure_steps(trainer, state.model, loss, batch, steps=_STEPS.value, parts=parts)
    valid = loss.target_masks(batch.targets).valid
    similarity = tf.random.uniform([*valid.shape, task.variant.num_slots])
    matching = step_benchmark.median_seconds(lambda: assignment.assign(similarity, valid), _STEPS.value)
    return {
        "crop_size": task.crop_size,
        "batch_size": options.batch_size,
        "device": distribution.describe(strategy),
        "build_seconds": round(build_seconds, 2),
        **{name: _rounded(value) for name, value in times._asdict().items()},
        "images_per_second": _rounded(options.batch_size / times.seconds_per_step),
        "matching_seconds": _rounded(matching),
    }


def predict() -> dict[str, Any]:
    """What --mode predict prints."""
    from maxdl_tf.files import images

    paths = images.find_all_images(_IMAGES.value)
    experiment = _experiment() if _CONFIG_FILE.value else None
    with command_line.quiet_imports():
        from maxdl_tf.inference import predict_benchmark
        from maxdl_tf.tasks.panoptic import PanopticTask
    size = count(experiment) if experiment else {}
    with tempfile.TemporaryDirectory() as folder:
        if _is_saved_model(_MODEL.value):
            predictor, crop_size, size["weights"] = _loaded(_MODEL.value)
            paths = paths or predict_benchmark.draw_images(folder, crop_size)
            times = predict_benchmark.measure_saved_model(predictor, paths, folder=folder, rounds=_STEPS.value)
        else:
            task = PanopticTask(experiment)
            crop_size = task.crop_size
            predictor, model = task.build_predictor(_MODEL.value)
            paths = paths or predict_benchmark.draw_images(folder, crop_size)
            times = predict_benchmark.measure_model(
                predictor, model, crop_size, paths, folder=folder, rounds=_STEPS.value
            )
    return {
        **({"experiment": experiment.name} if experiment else {}),
        "model": _MODEL.value or "random weights",
        "device": predict_benchmark.device(),
        **size,
        "crop_size": crop_size,
        "images": len(paths),
        **{name: _rounded(value) for name, value in times._asdict().items()},
    }


def _is_saved_model(path: str | None) -> bool:
    return bool(path) and os.path.exists(os.path.join(path, "saved_model.pb"))


def _loaded(saved_model: str):
    """(predictor, crop size, number of weights) of a SavedModel."""
    import tensorflow as tf

    from maxdl_tf.inference.predictor import Predictor

    predictor = Predictor.from_saved_model(saved_model)
    if "crop_size" not in predictor.export_info:
        raise UserError(f"--model {saved_model} does not say its crop size; export it again")
    variables = tf.train.list_variables(os.path.join(saved_model, "variables", "variables"))
    weights = sum(math.prod(shape) for name, shape in variables if name.endswith("/VARIABLE_VALUE"))
    return predictor, predictor.export_info["crop_size"], weights


def _experiment() -> experiment_pb2.Experiment:
    from maxdl_tf import config

    return config.load_experiment(_CONFIG_FILE.value, _OVERRIDE.value, keep_unset_placeholders=True)


def _check_flags() -> None:
    """UserError if a flag is missing, or given to a mode that does not read it."""
    mode, model = _MODE.value, _MODEL.value
    if mode != "predict":
        given = [flag.name for flag in (_MODEL, _IMAGES, _TABLE) if flag.value]
        if given:
            raise UserError(f"--{given[0]} is for --mode predict; leave it away with --mode {mode}")
        if not _CONFIG_FILE.value:
            raise UserError(f"--config_file is missing; --mode {mode} needs the experiment's textproto")
    elif not _is_saved_model(model):
        if not _CONFIG_FILE.value:
            raise UserError("--mode predict needs a SavedModel as --model, or the --config_file of the model")
        if model and not storage.is_remote(model) and not os.path.isdir(model) and not os.path.exists(model + ".index"):
            raise UserError(f"--model {model} is neither a SavedModel's folder nor a checkpoint; check the path")


def _rounded(value: Any) -> Any:
    """Floats to four digits, in dictionaries, too."""
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def run() -> None:
    command_line.run(main, FLAGS)


if __name__ == "__main__":
    run()
