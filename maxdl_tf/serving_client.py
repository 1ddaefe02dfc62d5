"""Segments photographs with a model that TensorFlow Serving serves, and writes what maxdl-predict writes.

Writes panoptic.json, panoptic/NAME.png and overlays/NAME.jpg into the output folder. JPEG and PNG files are sent
unchanged; other formats, and files with an EXIF rotation, are sent as PNG. docs/serving.md explains how to start a
server.

An image that the server refuses is reported and skipped; the command then exits with status 1. If the server or the
model is missing, the status is 2. gRPC needs an extra: pip install 'maxdl_tf[serving]'.

Example:

    maxdl-serving-client --server localhost:8500 --model_name shapes --input photos --output predictions \\
        --dataset_info exports/shapes/1/assets/dataset_info.textproto
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from absl import flags

from maxdl_tf import class_table, command_flags, command_line
from maxdl_tf.errors import UserError
from maxdl_tf.files.images import MAX_PIXELS
from maxdl_tf.progress import Progress

if TYPE_CHECKING:
    from maxdl_tf.inference.prediction import Prediction
    from maxdl_tf.inference.served_model import ServedModel
    from maxdl_tf.inference.writer import PredictionWriter

FLAGS = flags.FlagValues()
command_flags.define_predictions(FLAGS, MAX_PIXELS)
_SERVER = flags.DEFINE_string(
    "server",
    None,
    "Address of the server, host:port. TensorFlow Serving's port for gRPC is 8500.",
    required=True,
    flag_values=FLAGS,
)
_MODEL_NAME = flags.DEFINE_string(
    "model_name", None, "Name of the model on the server.", required=True, flag_values=FLAGS
)
_DATASET_INFO = flags.DEFINE_string(
    "dataset_info",
    None,
    "Path of the model's class table: assets/dataset_info.textproto in the folder of its export.",
    required=True,
    flag_values=FLAGS,
)
_SIGNATURE = flags.DEFINE_enum(
    "signature",
    None,
    ["panoptic_png", "serving_default", "image_tensor", "tf_example"],
    "Signature to call; the first two take files, the others pixels or tf.Examples with the files. Default: "
    "panoptic_png, whose answers are smallest, or serving_default where the model lacks it.",
    flag_values=FLAGS,
)
_REST = flags.DEFINE_boolean(
    "rest",
    False,
    "Whether to use REST, at port 8501 of TensorFlow Serving, instead of gRPC.",
    flag_values=FLAGS,
)
_TIMEOUT_S = flags.DEFINE_float(
    "timeout_s", 60.0, "Seconds to wait for the whole answer to an image.", lower_bound=0.001, flag_values=FLAGS
)


def main(argv: list[str]) -> int:
    from maxdl_tf.files import images
    from maxdl_tf.inference import writer as predictions

    paths = images.find_all_images([*FLAGS.input, *argv[1:]])
    names = predictions.output_names(paths)
    with predictions.locked_output(FLAGS.output, FLAGS.overwrite):
        return _predict_all(paths, names)


def _predict_all(paths: list[str], names: list[str]) -> int:
    """Predicts the images of these paths and output names; returns the exit status."""
    from maxdl_tf.inference import writer as predictions

    dataset_info = class_table.load(_DATASET_INFO.value)
    with command_line.quiet_imports():
        from maxdl_tf.inference import rest_server, served_model
    kind = rest_server.RestServer if _REST.value else served_model.GrpcServer
    with command_line.user_errors(served_model.RequestError):
        server = kind(_SERVER.value, _MODEL_NAME.value, _TIMEOUT_S.value)
        model = served_model.ServedModel(server, dataset_info, _SIGNATURE.value)

    started = time.monotonic()
    with command_line.user_errors(OSError):
        writer = predictions.PredictionWriter(FLAGS.output, dataset_info, overlays=FLAGS.overlays)
        failed = predict_files(model, dict(zip(names, paths)), writer, FLAGS.max_pixels)
    print(
        f"predicted {len(paths) - failed} of {len(paths)} images in {time.monotonic() - started:.1f} s  "
        f"annotations {os.path.join(FLAGS.output, predictions.ANNOTATION_FILE)}"
        + (f"  overlays {os.path.join(FLAGS.output, predictions.OVERLAY_FOLDER)}" if FLAGS.overlays else "")
        + (f"  {failed} failed" if failed else "")
    )
    return 1 if failed else 0


def predict_files(model: ServedModel, path_of_name: dict[str, str], writer: PredictionWriter, max_pixels: int) -> int:
    """Predicts image files, one at a time.

    Args:
      model: Served model.
      path_of_name: Paths of image files, by the names of their outputs.
      writer: Writer of the predictions.
      max_pixels: Largest number of pixels of an image; larger images fail.

    Returns:
      Number of failed images, which are reported on stderr.

    Raises:
      UserError: The server is gone.
      OSError: The files cannot be written.
    """
    from maxdl_tf.inference import writer as predictions

    failed = 0
    with Progress("predicting", total=len(path_of_name)) as progress:
        for image_id, (name, path) in zip(predictions.image_ids(list(path_of_name)), path_of_name.items()):
            try:
                prediction = _predict(model, path, max_pixels)
            except _ImageFailed as error:
                failed += 1
                progress.say(f"failed: {error}")
            else:
                writer.write(name, image_id, os.path.basename(path), prediction)
            progress.advance()
    writer.finish()
    return failed


class _ImageFailed(Exception):
    """One image failed; the message names it."""


def _predict(model: ServedModel, path: str, max_pixels: int) -> Prediction:
    """The prediction of the server for an image file."""
    from maxdl_tf.files import images
    from maxdl_tf.inference.served_model import RequestError

    try:
        image = images.read_image(path, max_pixels, limit_flag="--max_pixels", intensity=model.dataset_info.intensity)
    except UserError as error:  # Kept apart from a UserError of `predict`, which is not the fault of the image.
        raise _ImageFailed(error) from error
    try:
        return model.predict(path, image)
    except RequestError as error:
        raise _ImageFailed(f"{path}: {error}") from error


def run() -> None:
    command_line.run(main, FLAGS, max_positional=sys.maxsize)


if __name__ == "__main__":
    run()
