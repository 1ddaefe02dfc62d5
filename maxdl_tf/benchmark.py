"""Measures what a model costs: with --mode count, its parameters and the multiply-adds of one image.

Prints one JSON object: `parameters` and `multiply_adds` of the model as it is trained, and the same as
`..._without_semantic`, without the auxiliary semantic branch, as published figures and exports are. A parameter is a
trainable value. The image has the crop size of the experiment's eval_dataset; a multiply-add is a multiplication of a
convolution, matrix product or attention, with its addition. Nothing is run: neither the data nor memory for the
weights has to be there.

Example:

    maxdl-benchmark --mode count --config_file configs/coco/max_deeplab_s_641_400k.textproto \\
        --override 'eval_dataset { crop_size: 1025 }'
"""

from __future__ import annotations

import json

from absl import flags

from maxdl_tf import command_line

FLAGS = flags.FlagValues()
_MODE = flags.DEFINE_enum("mode", None, ["count"], "What to measure.", required=True, flag_values=FLAGS)
_CONFIG_FILE = flags.DEFINE_string("config_file", None, "Experiment textproto.", required=True, flag_values=FLAGS)
_OVERRIDE = flags.DEFINE_multi_string(
    "override",
    [],
    "Textproto fragment merged over --config_file, such as 'model { num_slots: 64 }'.",
    flag_values=FLAGS,
)


def main(argv: list[str]) -> None:
    del argv
    from maxdl_tf import config

    experiment = config.load_experiment(_CONFIG_FILE.value, _OVERRIDE.value, keep_unset_placeholders=True)
    with command_line.quiet_imports():
        from maxdl_tf import factory, tasks
        from maxdl_tf.models import complexity

    options = factory.inference_dataset(experiment)
    dataset_info = config.dataset_info_of(options)
    crop_size = factory.crop_size(options)

    def build_model():
        with command_line.user_errors(ValueError):
            return tasks.task_of(experiment).build_model(experiment, dataset_info)

    count = complexity.measure(build_model, crop_size)
    print(json.dumps({"experiment": experiment.name, "crop_size": crop_size, **count._asdict()}, indent=2))


def run() -> None:
    command_line.run(main, FLAGS)


if __name__ == "__main__":
    run()
