"""Measures a model: its size, its training, its predictions. Prints a JSON object, or a table.

count: `parameters` (trainable values) and `multiply_adds` of one image of eval_dataset's crop size. Both also without
the auxiliary semantic branch, as in published numbers and exports. A multiply-add is a multiplication of a convolution,
matrix product or attention with its addition. Nothing runs; neither data nor memory for the weights is needed.

train: time and memory of a training step on one device, on synthetic batches of train_dataset's crop and batch size:
`seconds_per_step`, its `shares`, `first_step_seconds`, and `peak_memory_bytes` of the process with its estimate.

predict: time of an image from the file to the panoptic PNG, and of each part (decode, preprocess, forward, postprocess,
encode; for an export, preprocess and forward together); peak memory of the process. --model is a checkpoint, or an
export of any format, which needs --config_file only for the multiply-adds. Without --model, the weights of
--config_file's model are random, and post-processing may have less to do. Without --images, images of about the crop's
size are drawn. With --compute bfloat16, the batch norms of a checkpoint's model are folded, as in exports.

All times are medians: one step that another process interrupts does not move them.

train and predict also measure the machine in the same run: `gflops_float32` has the GFLOP/s of a 3x3 convolution and of
a matrix product, and so does `gflops_bfloat16` or `gflops_float16` if the run computes in it. `utilization` is the
share of the faster of the two that the model reaches: 2 * multiply-adds / time / GFLOP/s. A training step counts as
three forward passes, also with `recompute`; frozen layers before the first trained one count once. Compare machines by
utilization, not by seconds.

Examples:

    maxdl-benchmark --mode count --config_file configs/coco/max_deeplab_s_641_400k.textproto \\
        --override 'eval_dataset { crop_size: 1025 }'
    maxdl-benchmark --mode train --config_file configs/coco/max_deeplab_s_641_400k.textproto \\
        --override 'train_dataset { batch_size: 1 }'
    maxdl-benchmark --mode predict --model exports/shapes/1 --images photos --table
"""

from __future__ import annotations

import json
import sys

from absl import flags

from maxdl_tf import command_flags, command_line
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage

FLAGS = flags.FlagValues()
_MODE = flags.DEFINE_enum(
    "mode", None, ["count", "train", "predict"], "Measurement to make.", required=True, flag_values=FLAGS
)
_CONFIG_FILE, _OVERRIDE = command_flags.define_experiment(FLAGS, "model { num_slots: 64 }", required=False)
_STEPS = flags.DEFINE_integer(
    "steps",
    5,
    "Number of timed steps of --mode train, and of timed predictions of each image of --mode predict.",
    lower_bound=1,
    flag_values=FLAGS,
)
_MODEL = flags.DEFINE_string("model", None, "Path of a checkpoint or an export for --mode predict.", flag_values=FLAGS)
_IMAGES = flags.DEFINE_multi_string(
    "images", [], "Path of an image or of a folder of images, or a glob, for --mode predict.", flag_values=FLAGS
)
_COMPUTE = command_flags.define_compute(FLAGS, "a model of --mode predict that is no SavedModel")
_TABLE = flags.DEFINE_boolean("table", False, "Whether to print a table instead of JSON.", flag_values=FLAGS)


def main(argv: list[str]) -> None:
    del argv
    from maxdl_tf import config
    from maxdl_tf.files import images
    from maxdl_tf.tasks import checkpoint_experiment

    mode = _MODE.value
    export = _check_flags()
    paths = images.find_all_images(_IMAGES.value)
    experiment, metrics = None, {}
    if _MODEL.value and not export:
        experiment = checkpoint_experiment.load(_MODEL.value, _CONFIG_FILE.value, _OVERRIDE.value)
    elif _CONFIG_FILE.value:
        experiment = config.load_experiment(_CONFIG_FILE.value, _OVERRIDE.value)
    if experiment:
        metrics["experiment"] = experiment.name
    with command_line.quiet_imports():
        from maxdl_tf.benchmarks import measure
    if mode == "count":
        metrics |= measure.count(experiment)
    elif mode == "train":
        metrics |= measure.train(experiment, steps=_STEPS.value)
    else:
        compute = command_flags.choose_compute(_COMPUTE.value, file=sys.stderr)
        metrics |= measure.predict(experiment, export or _MODEL.value, paths, rounds=_STEPS.value, compute=compute)
    print(measure.as_table(metrics) if _TABLE.value else json.dumps(metrics, indent=2))


def _check_flags() -> str | None:
    """The export that --model names, if any; UserError if a flag is missing, or given to a mode without it."""
    from maxdl_tf.tasks import checks

    mode, model = _MODE.value, _MODEL.value
    if mode != "predict":
        given = [flag.name for flag in (_MODEL, _IMAGES, _COMPUTE) if flag.value != flag.default]
        if given:
            raise UserError(f"--{given[0]} is for --mode predict; drop it with --mode {mode}")
        if not _CONFIG_FILE.value:
            raise UserError(f"--config_file is missing; --mode {mode} needs the experiment's textproto")
        return None
    export = checks.find_export(model)
    if export:
        checks.check_compute(model, export, _COMPUTE.value)
    if not model and not _CONFIG_FILE.value:
        raise UserError("--mode predict needs the --config_file of a model, or an export or a checkpoint as --model")
    if model and not export and not storage.is_folder(model) and not storage.exists(model + ".index"):
        raise UserError(f"--model {model} is neither the folder of an export nor a checkpoint; check the path")
    return export


def run() -> None:
    command_line.run(main, FLAGS)


if __name__ == "__main__":
    run()
