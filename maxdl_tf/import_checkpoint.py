"""Imports a checkpoint of DeepLab2, for maxdl-eval, maxdl-export, maxdl-predict and fine-tuning.

--deeplab2_checkpoint is a folder (for its latest checkpoint), a prefix, an .index file, or a published .tar.gz. Each
variable of the model must be in it with the same shape, and it must have no other variables of a model. Otherwise the
import fails, lists the differences, and leaves nothing. --allow_missing semantic_decoder keeps the initial values of a
part that older checkpoints lack or have in another shape.

--backbone_only imports just the part of the model that is pretrained on ImageNet, for training.initial_checkpoint.

Examples:

    maxdl-import-checkpoint --deeplab2_checkpoint max_deeplab_s.tar.gz \\
        --config_file configs/coco/max_deeplab_s_641_100k.textproto --output checkpoints/max_deeplab_s
    maxdl-import-checkpoint --deeplab2_checkpoint imagenet/ckpt-100 --backbone_only \\
        --config_file configs/coco/max_deeplab_s_641_100k.textproto --output checkpoints/imagenet_s
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from absl import flags

from maxdl_tf import command_flags, command_line

FLAGS = flags.FlagValues()
_DEEPLAB2_CHECKPOINT = flags.DEFINE_string(
    "deeplab2_checkpoint",
    None,
    "Path of a folder, a prefix, an .index file or a tar archive.",
    required=True,
    flag_values=FLAGS,
)
_CONFIG_FILE, _OVERRIDE = command_flags.define_experiment(FLAGS, "model { semantic_branch: false }")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to create for ckpt-STEP.", required=True, flag_values=FLAGS)
_ALLOW_MISSING = flags.DEFINE_multi_string(
    "allow_missing",
    [],
    "Item of DeepLab2's checkpoints that may be missing or have another shape, such as semantic_decoder.",
    flag_values=FLAGS,
)
_BACKBONE_ONLY = flags.DEFINE_boolean(
    "backbone_only", False, "Whether to import only the part that is pretrained on ImageNet.", flag_values=FLAGS
)
_VERBOSE = flags.DEFINE_boolean(
    "verbose", False, "Whether to list all variables instead of the first few.", flag_values=FLAGS
)


def main(argv: list[str]) -> None:
    del argv
    from maxdl_tf import config
    from maxdl_tf.checkpoints import compare
    from maxdl_tf.checkpoints import source as checkpoint_source
    from maxdl_tf.files import new_folder

    experiment = config.load_experiment(_CONFIG_FILE.value, _OVERRIDE.value)
    new_folder.check_new_folder(_OUTPUT.value, "--output")
    with checkpoint_source.open_checkpoint(_DEEPLAB2_CHECKPOINT.value) as source:
        print(f"importing {source.label}", flush=True)
        with command_line.quiet_imports():
            import tensorflow as tf

            from maxdl_tf.checkpoints import deeplab2_import
            from maxdl_tf.tasks.panoptic import PanopticTask
        tf.config.set_visible_devices([], "GPU")
        model = PanopticTask(experiment).build_model()
        try:
            imported = deeplab2_import.import_weights(
                model, source, backbone_only=_BACKBONE_ONLY.value, allow_missing=_ALLOW_MISSING.value
            )
        except deeplab2_import.ImportMismatch as mismatch:
            if _VERBOSE.value:
                print_names(mismatch.difference.lists())
            raise
    with new_folder.appears_when_complete(_OUTPUT.value) as folder:
        name = os.path.basename(deeplab2_import.save_imported(imported, folder))
    weights = sum(variable.shape.num_elements() for variable in imported.variables.values())
    print(f"wrote {os.path.join(_OUTPUT.value, name)}  {len(imported.variables)} variables  {weights:,} weights")
    print_names({"imported": imported.loaded, "skipped, not part of the backbone": imported.left_out})
    if imported.initial:
        print(f"{len(imported.initial)} variables missing from it or of another shape, with initial values:")
        for line in compare.compact_names(imported.initial, depth=2):
            print(f"  {line}")
    if _BACKBONE_ONLY.value:
        print(f"to start from it: --override 'training {{ initial_checkpoint: \"{_OUTPUT.value}\" }}'")


def print_names(lists: Mapping[str, Sequence[str]]) -> None:
    """Prints the number of variables in each list and their names, with --verbose all of them."""
    for what, names in lists.items():
        if not names:
            continue
        print(f"{len(names)} variables {what}:")
        for name in names if _VERBOSE.value else names[:3]:
            print(f"  {name}")
        if len(names) > 3 and not _VERBOSE.value:
            print("  ... (--verbose lists all)")


def run() -> None:
    command_line.run(main, FLAGS)


if __name__ == "__main__":
    run()
