"""Exports a trained model as a SavedModel, for TensorFlow Serving and maxdl-predict.

The signature serving_default takes `image`, uint8 [height, width, 3], RGB, of any size, and gives at the
same size `panoptic` (class id * label divisor + instance, 0 instances for stuff), `instance_score` and
`semantic_score`. The class table is in assets/dataset_info.textproto. The export is loaded again and compared
with the checkpoint before it appears under its name; a failed one leaves nothing. It runs on the CPU, so that it
can be done beside a training.

Example:

    maxdl-export --config_file configs/shapes/tiny.textproto --checkpoint runs/shapes --export_dir exports/shapes/1
"""

from __future__ import annotations

import os

from absl import flags

from maxdl_tf import command_line
from maxdl_tf.errors import UserError

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
_EXPORT_DIR = flags.DEFINE_string("export_dir", None, "Folder to create.", required=True, flag_values=FLAGS)
_OVERRIDE = flags.DEFINE_multi_string(
    "override",
    [],
    "Textproto fragment merged over --config_file, such as 'eval_dataset { crop_size: 641 }'.",
    flag_values=FLAGS,
)


def main(argv: list[str]) -> None:
    del argv
    from maxdl_tf import config

    experiment = config.load_experiment(_CONFIG_FILE.value, _OVERRIDE.value)
    check_checkpoint_exists(_CHECKPOINT.value)
    with command_line.quiet_imports():
        import tensorflow as tf

        from maxdl_tf import factory
        from maxdl_tf.export import saved_model
        from maxdl_tf.inference import segmenter
        from maxdl_tf.training import checkpoints
    tf.config.set_visible_devices([], "GPU")
    saved_model.check_export_dir(_EXPORT_DIR.value)
    options = factory.inference_dataset(experiment)
    dataset_info = config.dataset_info_of(options)
    model = factory.build_model(experiment, dataset_info)
    restored = checkpoints.load_model_weights(model, _CHECKPOINT.value)
    print(restored.report())
    report = saved_model.export_saved_model(
        segmenter.without_semantic_branch(model),
        factory.build_postprocessor(experiment, dataset_info),
        crop_size=factory.crop_size(options),
        dataset_info=dataset_info,
        export_dir=_EXPORT_DIR.value,
        origin={"experiment": experiment.name, "checkpoint": restored.path, "step": restored.step},
        say=print,
    )
    print(
        f"exported {report.path}  {report.megabytes:.1f} MiB  {report.num_weights:,} weights  labels equal on "
        f"{report.compared_pixels} pixels ({report.compared_segments} segments)  in {report.seconds:.0f} s"
    )


def check_checkpoint_exists(checkpoint: str) -> None:
    """Raises UserError where there is neither a checkpoint nor a folder; what is in it is for later."""
    if "://" not in checkpoint and not os.path.exists(checkpoint + ".index") and not os.path.isdir(checkpoint):
        raise UserError(f"--checkpoint {checkpoint} does not exist; name a checkpoint as .../ckpt-1000, or its folder")


def run() -> None:
    command_line.run(main, FLAGS)


if __name__ == "__main__":
    run()
