"""Demonstrates all of MaX-DeepLab on a small machine, in about ten minutes.

Draws a data set and converts it to TFRecord, trains a small model, measures its panoptic quality, exports a SavedModel,
and predicts images that it has not seen. Each step is a command of the package. It is printed before it runs and can be
typed by hand.

Example:

    python -m maxdl_tf.demo --output_dir demo_output
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from maxdl_tf import command_flags, command_line, configs
from maxdl_tf.errors import UserError
from maxdl_tf.files import folder_lock, storage

FLAGS = flags.FlagValues()
_OUTPUT_DIR = flags.DEFINE_string("output_dir", "demo_output", "Folder for all output.", flag_values=FLAGS)
_TRAIN_IMAGES = flags.DEFINE_integer(
    "train_images", 8000, "Number of training images.", lower_bound=1, flag_values=FLAGS
)
_VAL_IMAGES = flags.DEFINE_integer("val_images", 100, "Number of validation images.", lower_bound=1, flag_values=FLAGS)
_OVERRIDE = command_flags.define_override(FLAGS, "training { steps: 100 }")

_CONFIG_FILE = Path(configs.__file__).parent / "shapes" / "max_deeplab_tiny_81.textproto"
_MARK = ".maxdl_demo"  # Only a folder with this file is emptied.
_CONTENTS = {
    *("shapes", "images", "model", "saved_model", "metrics.json", "pictures", "predictions"),
    *(_MARK, folder_lock.FILE),
    "untrained.json",  # Of earlier versions.
}
_COMMANDS = {
    "maxdl-convert": "maxdl_tf.data_gen.convert",
    "maxdl-train": "maxdl_tf.trainer",
    "maxdl-eval": "maxdl_tf.evaluate",
    "maxdl-export": "maxdl_tf.export_model",
    "maxdl-predict": "maxdl_tf.predict",
}


def main(argv: list[str]) -> None:
    del argv
    output = Path(_OUTPUT_DIR.value)
    with folder_lock.FolderLock(str(output), f"--output_dir {output}"):
        _remove_earlier_demo(output)
        (output / _MARK).touch()
        _demonstrate(output)


def _remove_earlier_demo(output: Path) -> None:
    """Empties a folder of a demo; UserError if it holds something else."""
    names = {path.name for path in output.iterdir()} - {folder_lock.FILE}
    foreign = names - _CONTENTS
    if foreign or (names and _MARK not in names):
        raise UserError(
            f"--output_dir {output} holds something other than a demo, such as {min(foreign or names)}; choose another "
            "folder"
        )
    for path in map(str, (output / name for name in names)):
        (storage.remove_folder if storage.is_folder(path) else storage.remove_file)(path)


def _demonstrate(output: Path) -> None:
    started = time.monotonic()
    shapes, images = output / "shapes", output / "images"
    model_dir, saved_model = output / "model", output / "saved_model"
    metrics, pictures, predictions = output / "metrics.json", output / "pictures", output / "predictions"
    os.environ["SHAPES_TFRECORDS"] = str(shapes)
    experiment = ["--config_file", os.path.relpath(_CONFIG_FILE), *(f"--override={text}" for text in _OVERRIDE.value)]

    size = ["--height=81", "--width=81", "--max_things=3", "--min_size=0.3"]
    draw = ["maxdl-convert", "shapes", "--output_dir", shapes, *size]
    _run("drawing a data set", *draw, "--split=train", f"--count={_TRAIN_IMAGES.value}")
    _run(
        "drawing the images to measure on",
        *(*draw, "--split=val", f"--count={_VAL_IMAGES.value}", "--image_dir", images),
    )
    _run("training", "maxdl-train", *experiment, "--mode=train", "--model_dir", model_dir)
    _run(
        "measuring the model",
        *("maxdl-eval", *experiment, "--checkpoint", model_dir, "--json", metrics, "--pictures", pictures),
    )
    _run("exporting", "maxdl-export", *experiment, "--checkpoint", model_dir, "--export_dir", saved_model)
    _run(
        "predicting with the SavedModel",
        *("maxdl-predict", "--model", saved_model, "--input", images, "--output", predictions),
    )

    minutes = (time.monotonic() - started) / 60
    print(f"\n{minutes:.1f} minutes; truth beside prediction in {pictures}")
    pq = 100 * json.loads(metrics.read_text())["all"]["pq"]
    print(f"demo: PQ {pq:.1f}  overlays {predictions}  saved_model {saved_model}  metrics {metrics}")


def _run(title: str, command: str, *arguments) -> None:
    """Runs a command of the package with this Python. A failure ends the demo."""
    arguments = [str(argument) for argument in arguments]
    print(f"\n==> {title}\n$ {shlex.join([command, *arguments])}", flush=True)
    status = subprocess.run([sys.executable, "-m", _COMMANDS[command], *arguments], check=False).returncode
    if status:
        print(f"demo: {command} ended with status {status}", file=sys.stderr)
        sys.exit(status)


def run() -> None:
    command_line.run(main, FLAGS)


if __name__ == "__main__":
    run()
