"""Flags that several commands have."""

from __future__ import annotations

from typing import TextIO

from absl import flags

from maxdl_tf import processors


def define_experiment(
    flag_values: flags.FlagValues, override: str, *, required: bool = True
) -> tuple[flags.FlagHolder, flags.FlagHolder]:
    """Defines --config_file and --override.

    Args:
      flag_values: Flags of the command.
      override: Example of a fragment.
      required: Whether --config_file is required. Otherwise its default is the experiment beside the checkpoint.
    """
    config_file = flags.DEFINE_string(
        "config_file",
        None,
        "Path of the experiment's textproto, or name of a packaged one such as shapes/max_deeplab_tiny_81."
        + ("" if required else " Default: experiment.textproto in the folder of the checkpoint."),
        required=required,
        flag_values=flag_values,
    )
    return config_file, define_override(flag_values, override)


def define_override(flag_values: flags.FlagValues, example: str) -> flags.FlagHolder:
    """Defines --override alone, for commands that choose the experiment themselves."""
    return flags.DEFINE_multi_string(
        "override",
        [],
        f"Textproto fragment to merge over the experiment, such as '{example}'.",
        flag_values=flag_values,
    )


def define_checkpoint(flag_values: flags.FlagValues, *, required: bool) -> flags.FlagHolder:
    """Defines --checkpoint."""
    return flags.DEFINE_string(
        "checkpoint",
        None,
        "Path of a checkpoint (runs/shapes/ckpt-1000), or of a folder for its latest checkpoint.",
        required=required,
        flag_values=flag_values,
    )


def define_strategy(flag_values: flags.FlagValues, *more: str) -> flags.FlagHolder:
    """Defines --strategy with the strategies of one process and `more`."""
    return flags.DEFINE_enum(
        "strategy",
        "auto",
        ["auto", "one_device", "mirrored", *more],
        "How a batch is distributed over devices. auto: "
        + ("the TPU of --tpu, the hosts of TF_CONFIG, all GPUs, or the CPU." if more else "all GPUs, or the CPU."),
        flag_values=flag_values,
    )


def define_predictions(flag_values: flags.FlagValues, max_pixels: int) -> None:
    """Defines --input, --output, --max_pixels, --overlays and --overwrite, for commands that predict images.

    Args:
      flag_values: Flags of the command.
      max_pixels: Default of --max_pixels.
    """
    flags.DEFINE_multi_string(
        "input",
        None,
        "Path of an image or of a folder of images, or a glob. Positional arguments are inputs as well.",
        required=True,
        flag_values=flag_values,
    )
    flags.DEFINE_string("output", None, "Folder for the predictions.", required=True, flag_values=flag_values)
    flags.DEFINE_integer(
        "max_pixels",
        max_pixels,
        "Largest number of pixels of an image. Larger images are skipped before they are decoded.",
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_boolean("overlays", True, "Whether to draw overlays.", flag_values=flag_values)
    flags.DEFINE_boolean(
        "overwrite", False, "Whether to replace the predictions in the output folder.", flag_values=flag_values
    )


def define_compute(flag_values: flags.FlagValues, of_what: str) -> flags.FlagHolder:
    """Defines --compute.

    Args:
      flag_values: Flags of the command.
      of_what: What computes, for the help.
    """
    return flags.DEFINE_enum(
        "compute",
        "float32",
        ["float32", "bfloat16", "auto"],
        f"Type in which {of_what} computes convolutions, matrix products and attention. bfloat16 is faster on "
        "processors with instructions for it and slow on others, and labels change a little. auto: bfloat16 if this "
        "processor has such instructions.",
        flag_values=flag_values,
    )


def choose_compute(value: str, file: TextIO | None = None) -> str:
    """The type that --compute names, "float32" or "bfloat16". Prints to `file` what "auto" chooses and why."""
    if value != "auto":
        return value
    instruction = processors.bfloat16_instruction()
    print(
        f"computing in bfloat16: this processor has {instruction}"
        if instruction
        else "computing in float32: no bfloat16 instructions of this processor are known",
        file=file,
        flush=True,
    )
    return "bfloat16" if instruction else "float32"
