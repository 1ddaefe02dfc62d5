"""Exports a trained model for TensorFlow Serving, ONNX Runtime, OpenVINO or LiteRT, and for maxdl-predict.

By default the export is a SavedModel. Its signatures take encoded images of any sizes (serving_default), pixels
(image_tensor) or tf.Examples (tf_example). They return panoptic maps of the images' sizes and their segments.
panoptic_png takes encoded images too and returns maps as PNGs, so that answers are small.
maxdl_tf/export/serving_model.py lists names and shapes. The class table is assets/dataset_info.textproto and
assets/dataset_info.json. Batch norms are folded into the layers before them.

With --format onnx, openvino or litert, the export is the network alone and runs without TensorFlow. NumPy code beside
it makes label maps of its outputs; maxdl_tf/export/portable_model.py lists the files.

Another process loads the export, and its labels are compared with those of the checkpoint's model before the folder
appears under its name. A failed export leaves nothing. The command runs on the CPU, so it can run beside a training.

Example:

    maxdl-export --checkpoint runs/shapes --export_dir exports/shapes/1
    maxdl-export --checkpoint runs/shapes --export_dir exports/shapes_onnx --format onnx
"""

from __future__ import annotations

import functools

from absl import flags

from maxdl_tf import command_flags, command_line
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage
from maxdl_tf.files.intensity import IntensityRule

FLAGS = flags.FlagValues()
_CONFIG_FILE, _OVERRIDE = command_flags.define_experiment(FLAGS, "eval_dataset { crop_size: 641 }", required=False)
_CHECKPOINT = command_flags.define_checkpoint(FLAGS, required=True)
_EXPORT_DIR = flags.DEFINE_string("export_dir", None, "Path of the folder to create.", required=True, flag_values=FLAGS)
_FORMAT = flags.DEFINE_enum(
    "format",
    "saved_model",
    ["saved_model", "onnx", "openvino", "litert"],
    "Format of the export. All but saved_model run without TensorFlow and need the extra of their name, such as pip "
    "install 'maxdl_tf[onnx]'.",
    flag_values=FLAGS,
)
_FOLD = flags.DEFINE_boolean(
    "fold",
    True,
    "Whether to fold batch norms and what is the same for all images, which is faster. --nofold exports the network of "
    "training.",
    flag_values=FLAGS,
)
_WEIGHTS = flags.DEFINE_enum(
    "weights",
    "float32",
    ["float32", "float16", "bfloat16", "int8"],
    "Type of stored kernels. 16 bits halve the file and the memory of the weights. Each image converts kernels to "
    "float32, which takes some time, and labels change a little. Only with --fold. int8 is for --format "
    "onnx and litert, which then compute in 8 bits. onnx takes the ranges of activations from --calibration_images, "
    "litert from each image.",
    flag_values=FLAGS,
)
_COMPUTE = command_flags.define_compute(FLAGS, "the export")
_MAX_PIXELS = flags.DEFINE_integer(
    "max_pixels",
    50_000_000,
    "Largest number of pixels of an encoded image. Larger images are refused undecoded.",
    lower_bound=1,
    flag_values=FLAGS,
)
_SCORE_MAPS = flags.DEFINE_boolean(
    "score_maps", False, "Whether to also return the score of each pixel (score_map).", flag_values=FLAGS
)
_NETWORK_BATCH = flags.DEFINE_integer(
    "network_batch",
    1,
    "Largest number of images of a request that the network takes at once. More is for accelerators and multiplies the "
    "network's memory.",
    lower_bound=1,
    flag_values=FLAGS,
)
_VERIFY_IMAGES = flags.DEFINE_string(
    "verify_images",
    None,
    "Images on which to compare the export with the checkpoint: a file, a folder or a quoted glob. Default: four drawn "
    "images.",
    flag_values=FLAGS,
)
_CALIBRATION_IMAGES = flags.DEFINE_string(
    "calibration_images",
    None,
    "Images like those to predict: a file, a folder or a quoted glob. For --format onnx --weights int8.",
    flag_values=FLAGS,
)
_MIN_AGREEMENT = flags.DEFINE_float(
    "min_agreement",
    None,
    "Least share of each image's pixels with the checkpoint's label. Default: 1, or 0.98 with other --weights than "
    "float32, or 0.95 with --compute bfloat16.",
    lower_bound=0.0,
    upper_bound=1.0,
    flag_values=FLAGS,
)


def main(argv: list[str]) -> None:
    del argv
    from maxdl_tf.tasks import checkpoint_experiment, checks

    _check_format()
    for flag in (_WEIGHTS, _COMPUTE):
        if flag.value != "float32" and not _FOLD.value:
            raise UserError(f"--{flag.name} {flag.value} needs folded batch norms; drop --nofold")
    compute = command_flags.choose_compute(_COMPUTE.value)
    weights = _WEIGHTS.value
    if compute == "bfloat16":
        if _WEIGHTS.present and weights != "bfloat16":
            raise UserError(
                f"--weights {weights} does not go with --compute bfloat16, which stores kernels as it uses them; drop "
                "--weights"
            )
        weights = "bfloat16"
    checks.check_checkpoint_exists(_CHECKPOINT.value)
    experiment = checkpoint_experiment.load(_CHECKPOINT.value, _CONFIG_FILE.value, _OVERRIDE.value)
    with command_line.quiet_imports():
        import tensorflow as tf

        from maxdl_tf.export import portable_model, saved_model
        from maxdl_tf.export.fold_batch_norm import fold_batch_norms
        from maxdl_tf.export.serving_model import ServingOptions
        from maxdl_tf.tasks.panoptic import PanopticTask
    tf.config.set_visible_devices([], "GPU")
    is_saved_model = _FORMAT.value == "saved_model"
    if is_saved_model:
        saved_model.check_export_dir(_EXPORT_DIR.value)
    else:
        portable_model.check_format(_FORMAT.value, _EXPORT_DIR.value)
    task = PanopticTask(experiment)
    images, calibration = (
        read_images(flag.value, task.dataset_info.intensity) if flag.value else None
        for flag in (_VERIFY_IMAGES, _CALIBRATION_IMAGES)
    )
    model = task.build_model()
    restored = task.load_weights(model, _CHECKPOINT.value)
    print(restored.report())
    model = model.without_semantic_branch()
    if is_saved_model:
        options = ServingOptions(_MAX_PIXELS.value, _SCORE_MAPS.value, _NETWORK_BATCH.value)
        export = functools.partial(saved_model.export_saved_model, options=options)
        folded = fold_batch_norms(model, weights, compute) if _FOLD.value else None
    else:
        export = functools.partial(
            portable_model.export_portable_model,
            file_format=_FORMAT.value,
            weights=weights,
            calibration_images=calibration,
        )
        folded = fold_batch_norms(model)
    report = export(
        model,
        task.build_postprocessor(model),
        inference_model=folded,
        crop_size=task.crop_size,
        dataset_info=task.dataset_info,
        export_dir=_EXPORT_DIR.value,
        tiles=(task.dataset.tile, task.dataset.tile_overlap),
        origin={
            "experiment": experiment.name,
            "checkpoint": restored.path,
            "step": restored.step,
            "folded": _FOLD.value,
            "weights": weights,
            **({"compute": compute} if is_saved_model else {}),
        },
        images=images,
        min_agreement=min_agreement(_MIN_AGREEMENT.value, weights, compute),
        log=print,
    )
    print(
        f"exported {report.path}  {report.megabytes:.1f} MiB  {report.num_weights:,} weights  "
        f"{report.agreement.summary()} of {report.num_images} images  in {report.seconds:.0f} s"
    )


def _check_format() -> None:
    """Raises UserError if a flag is for another format."""
    eight_bits = ["float32", "int8"]
    weights = {"saved_model": ["float32", "float16", "bfloat16"], "onnx": eight_bits, "litert": eight_bits}
    allowed = weights.get(_FORMAT.value, ["float32"])
    if _WEIGHTS.value not in allowed:
        raise UserError(f"--weights {_WEIGHTS.value}: --format {_FORMAT.value} takes {', '.join(allowed)}")
    is_calibrated = (_FORMAT.value, _WEIGHTS.value) == ("onnx", "int8")
    if is_calibrated and not _CALIBRATION_IMAGES.value:
        raise UserError(
            "--format onnx --weights int8 needs --calibration_images: give some images like those to predict"
        )
    if _CALIBRATION_IMAGES.present and not is_calibrated:
        raise UserError("--calibration_images is for --format onnx --weights int8; drop it")
    for flag in (_FOLD, _COMPUTE, _MAX_PIXELS, _SCORE_MAPS, _NETWORK_BATCH):
        if flag.present and _FORMAT.value != "saved_model":
            raise UserError(f"--{flag.name} is for --format saved_model; drop it with --format {_FORMAT.value}")


def min_agreement(wanted: float | None, weights: str, compute: str) -> float:
    """The least share of pixels that must agree; `wanted` is the flag, or None for its default."""
    if wanted is not None:
        return wanted
    if compute == "bfloat16":
        return 0.95
    return 1.0 if weights == "float32" else 0.98


def read_images(pattern: str, intensity: IntensityRule | None = None) -> dict[str, bytes]:
    """The contents of image files by path, as upright JPEG or PNG; UserError if none matches or one is damaged."""
    from maxdl_tf.files import images

    contents = {}
    with command_line.user_errors(OSError):
        for path in images.find_images(pattern):
            contents[path] = images.as_upright_file(storage.read_file(path), path, intensity=intensity)
    return contents


def run() -> None:
    command_line.run(main, FLAGS)


if __name__ == "__main__":
    run()
