"""Measures what a model costs: its size with --mode count, its training with --mode train. Prints one JSON object.

count: `parameters` and `multiply_adds` of the model as it is trained, and the same as `..._without_semantic`, without
the auxiliary semantic branch, as published figures and exports are. A parameter is a trainable value. The image has the
crop size of the experiment's eval_dataset; a multiply-add is a multiplication of a convolution, matrix product or
attention, with its addition. Nothing is run: neither the data nor memory for the weights has to be there.

train: `seconds_per_step` and its shares, `first_step_seconds`, `peak_memory_bytes` of the process and what was
estimated of that before, and the like, on one device and on batches that are made up, of the crop and batch size of the
experiment's train_dataset.

Examples:

    maxdl-benchmark --mode count --config_file configs/coco/max_deeplab_s_641_400k.textproto \\
        --override 'eval_dataset { crop_size: 1025 }'
    maxdl-benchmark --mode train --config_file configs/coco/max_deeplab_s_641_400k.textproto \\
        --override 'train_dataset { batch_size: 1 }'
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from absl import flags

from maxdl_tf import command_line
from maxdl_tf.errors import UserError

if TYPE_CHECKING:
    from maxdl_tf.protos import experiment_pb2

FLAGS = flags.FlagValues()
_MODE = flags.DEFINE_enum("mode", None, ["count", "train"], "What to measure.", required=True, flag_values=FLAGS)
_CONFIG_FILE = flags.DEFINE_string("config_file", None, "Experiment textproto.", required=True, flag_values=FLAGS)
_OVERRIDE = flags.DEFINE_multi_string(
    "override",
    [],
    "Textproto fragment merged over --config_file, such as 'model { num_slots: 64 }'.",
    flag_values=FLAGS,
)
_STEPS = flags.DEFINE_integer(
    "steps", 5, "Steps that --mode train times, after the first one.", lower_bound=1, flag_values=FLAGS
)


def main(argv: list[str]) -> None:
    del argv
    from maxdl_tf import config

    experiment = config.load_experiment(_CONFIG_FILE.value, _OVERRIDE.value, keep_unset_placeholders=True)
    measure = {"count": count, "train": train}[_MODE.value]
    print(json.dumps({"experiment": experiment.name, **measure(experiment)}, indent=2))


def count(experiment: experiment_pb2.Experiment) -> dict[str, Any]:
    """What --mode count prints."""
    from maxdl_tf import config

    with command_line.quiet_imports():
        from maxdl_tf import factory, tasks
        from maxdl_tf.models import complexity

    options = factory.inference_dataset(experiment)
    dataset_info = config.dataset_info_of(options)
    crop_size = factory.crop_size(options)

    def build_model():
        with command_line.user_errors(ValueError):
            return tasks.task_of(experiment).build_model(experiment, dataset_info)

    return {"crop_size": crop_size, **complexity.measure(build_model, crop_size)._asdict()}


def train(experiment: experiment_pb2.Experiment) -> dict[str, Any]:
    """What --mode train prints."""
    from maxdl_tf import config

    if not experiment.HasField("train_dataset") or not experiment.training.steps:
        raise UserError(f"experiment {experiment.name!r} trains nothing: set train_dataset and training.steps")
    started = time.monotonic()
    with command_line.quiet_imports():
        import orbit
        import tensorflow as tf

        from maxdl_tf import factory
        from maxdl_tf.data import synthetic
        from maxdl_tf.losses import assignment
        from maxdl_tf.training import distribution, step_benchmark
        from maxdl_tf.training.train_step import Trainer

    options = experiment.train_dataset
    dataset_info = config.dataset_info_of(options)
    strategy = distribution.create_strategy("one_device")
    with strategy.scope():
        model = factory.build_model(experiment, dataset_info, for_training=True)
        global_step = orbit.utils.create_global_step()
        optimizers = factory.build_optimizers(experiment, model)
    loss = factory.build_loss(experiment, dataset_info)
    parts = experiment.training.accumulate_steps
    batch = synthetic.synthetic_batch(
        dataset_info,
        crop_size=factory.crop_size(options),
        batch_size=options.batch_size // parts,
        max_things=options.max_things,
    )
    trainer = Trainer(
        strategy=strategy,
        model=model,
        loss=loss,
        optimizers=optimizers,
        batches=strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensors(batch).repeat()),
        global_step=global_step,
        batch_size=options.batch_size,
        steps_per_loop=1,
        accumulate_steps=parts,
        jit_compile=experiment.training.jit_compile,
    )
    build_seconds = time.monotonic() - started
    times = step_benchmark.measure_steps(trainer, model, loss, batch, steps=_STEPS.value, parts=parts)
    valid = loss.target_masks(batch.targets).valid
    similarity = tf.random.uniform([*valid.shape, factory.build_variant(experiment.model).num_slots])
    matching = step_benchmark.median_seconds(lambda: assignment.assign(similarity, valid), _STEPS.value)
    return {
        "crop_size": factory.crop_size(options),
        "batch_size": options.batch_size,
        "device": distribution.describe(strategy),
        "build_seconds": round(build_seconds, 2),
        **{name: _rounded(value) for name, value in times._asdict().items()},
        "images_per_second": _rounded(options.batch_size / times.seconds_per_step),
        "matching_seconds": _rounded(matching),
    }


def _rounded(value: Any) -> Any:
    """Floats to four digits, in dictionaries, too."""
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def run() -> None:
    command_line.run(main, FLAGS)


if __name__ == "__main__":
    run()
