"""Predicts the panoptic segmentation of photographs.

Reads image files, upright by their EXIF orientation, and writes into the output folder:

    panoptic.json          COCO panoptic annotations with each segment's score; written last
    panoptic/NAME.png      segment ids as colors; 0 is void
    overlays/NAME.jpg      the image under the colors of its segments, with a legend
    features/NAME.png      with --visualize features: the image, pixel features and mask embeddings as colors
    instances.json         with --coco_instances: the things as a COCO results file, with RLE masks
    diagnosis.json         with --diagnose: masks and pixels that each threshold removed; the total is printed

An image that cannot be read or is too large is reported and skipped; the command then exits with status 1. Errors that
prevent a start exit with status 2.

With --runner, many workers on Apache Beam write the same files. Model, input and output may be remote paths that
tf.io.gfile reaches, such as gs://.

A process predicts one image at a time. The network sees the image at its own input size; only pixels, map and overlay
have the size of the image. They take about 35 bytes per pixel, which --max_pixels limits. With --tile, the network sees
overlapping parts of the image, and things that neighboring tiles share are joined.

Example:

    maxdl-predict --model exports/shapes/1 --input photos --output predictions
"""

from __future__ import annotations

import functools
import os
import sys
import time
from typing import TYPE_CHECKING

from absl import flags

from maxdl_tf import beam_pipeline, command_flags, command_line
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage
from maxdl_tf.files.images import MAX_PIXELS
from maxdl_tf.progress import Progress

if TYPE_CHECKING:
    from maxdl_tf.evaluation.diagnosis import Diagnosis
    from maxdl_tf.inference.predict_files import FileOptions, ImageTask
    from maxdl_tf.inference.predictor import Predictor
    from maxdl_tf.inference.tiles import TiledPredictor
    from maxdl_tf.inference.writer import PredictionWriter
    from maxdl_tf.protos import experiment_pb2

FLAGS = flags.FlagValues()
command_flags.define_predictions(FLAGS, MAX_PIXELS)
_MODEL = flags.DEFINE_string(
    "model",
    None,
    "Path of a folder that maxdl-export wrote, in any format, or of the folder of its versions, whose highest is used; "
    "or of a checkpoint or a folder of checkpoints.",
    required=True,
    flag_values=FLAGS,
)
_CONFIG_FILE, _OVERRIDE = command_flags.define_experiment(FLAGS, "eval_dataset { crop_size: 641 }", required=False)
_VISUALIZE = flags.DEFINE_multi_enum(
    "visualize",
    [],
    ["features"],
    "Additional pictures. features: pixel features and mask embeddings as colors, as in the paper's figure of a model "
    "with model.mask_channels 3; more channels are reduced to their principal components.",
    flag_values=FLAGS,
)
_MIN_SCORE = flags.DEFINE_float(
    "min_score",
    0.0,
    "Least score of a segment. Others become void in the last step: no other segment takes their pixels.",
    lower_bound=0.0,
    upper_bound=1.0,
    flag_values=FLAGS,
)
_COCO_INSTANCES = flags.DEFINE_boolean("coco_instances", False, "Whether to write instances.json.", flag_values=FLAGS)
_DIAGNOSE = flags.DEFINE_boolean(
    "diagnose",
    False,
    "Whether to report how many masks and pixels each threshold removed.",
    flag_values=FLAGS,
)
_TILE = flags.DEFINE_integer(
    "tile",
    None,
    "Side of the tiles in which an image is predicted, in pixels of the image. 0: the image as a whole. Default: "
    "eval_dataset.tile of the model's experiment. A tile is resized to the network's input, so the side sets the scale "
    "at which it sees objects.",
    lower_bound=0,
    flag_values=FLAGS,
)
_TILE_OVERLAP = flags.DEFINE_integer(
    "tile_overlap",
    None,
    "Number of pixels that neighboring tiles share; best as large as the largest things. Default: "
    "eval_dataset.tile_overlap of the model's experiment.",
    lower_bound=0,
    flag_values=FLAGS,
)
_COMPUTE = command_flags.define_compute(FLAGS, "a checkpoint's model, or an export of format openvino,")
beam_pipeline.define_flags(FLAGS, instead_of="this process")


def main(argv: list[str]) -> int:
    from maxdl_tf.files import images
    from maxdl_tf.inference import writer as predictions  # Needs no TensorFlow.
    from maxdl_tf.tasks import checkpoint_experiment

    _check_tiles()
    export = _find_export(_MODEL.value, _CONFIG_FILE.value, _OVERRIDE.value)
    _check_format(export)
    _check_runner(export)
    paths = images.find_all_images([*FLAGS.input, *argv[1:]])
    names = predictions.output_names(paths)
    experiment = None
    if not export:
        experiment = checkpoint_experiment.load(_MODEL.value, _CONFIG_FILE.value, _OVERRIDE.value)
    with predictions.locked_output(FLAGS.output, FLAGS.overwrite):
        return _predict(export, experiment, paths, names)


def _predict(
    export: str | None, experiment: experiment_pb2.Experiment | None, paths: list[str], names: list[str]
) -> int:
    """Predicts the images of these paths and output names; returns the exit status."""
    from maxdl_tf.inference import writer as predictions

    with command_line.quiet_imports():
        from maxdl_tf.inference.predict_files import ImageTask
        from maxdl_tf.inference.predictor import Predictor
    compute = command_flags.choose_compute(_COMPUTE.value)
    if experiment:
        predictor = _checkpoint_predictor(experiment, compute)
    else:
        with command_line.quiet_imports():  # Of TensorFlow, for a SavedModel.
            predictor = Predictor.from_export(export, compute)
    if _DIAGNOSE.value and predictor.postprocessor is None:
        raise UserError(
            f"--diagnose: SavedModel {_MODEL.value} does not state its thresholds; export it again, or give its "
            "checkpoint"
        )
    predictor = _options().in_tiles(predictor)
    tasks = [ImageTask(*task) for task in zip(paths, names, predictions.image_ids(names))]
    started = time.monotonic()
    with command_line.user_errors(OSError):
        writer = predictions.PredictionWriter(
            FLAGS.output,
            predictor.dataset_info,
            overlays=FLAGS.overlays,
            features="features" in _VISUALIZE.value,
            coco_instances=_COCO_INSTANCES.value,
        )
        if FLAGS.runner:
            failed = _predict_on_beam(export, compute, tasks, writer)
        else:
            failed = _predict_here(predictor, tasks, writer)
    _print_summary(len(paths), failed, time.monotonic() - started)
    return 1 if failed else 0


def _checkpoint_predictor(experiment: experiment_pb2.Experiment, compute: str) -> Predictor:
    with command_line.quiet_imports():  # Of all of training, which an export does not need.
        from maxdl_tf.export.fold_batch_norm import fold_batch_norms
        from maxdl_tf.tasks.panoptic import PanopticTask
    task = PanopticTask(experiment)
    if compute == "float32":
        return task.build_predictor(_MODEL.value)[0]
    return task.build_predictor(_MODEL.value, functools.partial(fold_batch_norms, compute=compute))[0]


def _predict_here(predictor: Predictor | TiledPredictor, tasks: list[ImageTask], writer: PredictionWriter) -> int:
    """Predicts one image at a time. Returns the number of failed images, which are reported on stderr."""
    from maxdl_tf.inference.predict_files import predict_file
    from maxdl_tf.inference.tiles import TiledPredictor

    failed, diagnoses = 0, {}
    with Progress("predicting", total=len(tasks)) as progress:
        if isinstance(predictor, TiledPredictor):
            predictor.on_tile = lambda done, total: progress.advance(0, note=f"tile {done:,} of {total:,}")
        for task in tasks:
            try:
                predicted = predict_file(predictor, task, writer.pictures, _options())
            except UserError as error:
                failed += 1
                progress.say(f"failed: {error}")
            else:
                writer.add(predicted.record)
                if predicted.diagnosis:
                    diagnoses[task.image_id] = predicted.diagnosis
            progress.advance(note="")
    writer.finish(_report(diagnoses, predictor, _MIN_SCORE.value) if _DIAGNOSE.value else None)
    return failed


def _predict_on_beam(export: str, compute: str, tasks: list[ImageTask], writer: PredictionWriter) -> int:
    """Predicts with many workers. Returns the number of failed images, which are reported on stderr."""
    from maxdl_tf.inference import predict_files

    print(f"predicting {len(tasks)} images on Beam's {FLAGS.runner}", flush=True)
    work = predict_files.ChunkPredictor(export, writer.pictures, _options(), compute)
    failed = 0
    for record in predict_files.predict_on_beam(work, tasks, FLAGS.output, FLAGS.runner, FLAGS.beam_options):
        if isinstance(record, UserError):
            failed += 1
            print(f"failed: {record}", file=sys.stderr)
        else:
            writer.add(record)
    writer.finish()
    return failed


def _options() -> FileOptions:
    from maxdl_tf.inference.predict_files import FileOptions

    return FileOptions(
        min_score=_MIN_SCORE.value,
        max_pixels=FLAGS.max_pixels,
        features="features" in _VISUALIZE.value,
        diagnose=_DIAGNOSE.value,
        tile=_TILE.value,
        tile_overlap=_TILE_OVERLAP.value,
    )


def _check_tiles() -> None:
    """Raises UserError if the tiles are impossible, or another flag needs the network's view of the whole image."""
    if not _TILE.value:
        return
    if (_TILE_OVERLAP.value or 0) >= _TILE.value:
        raise UserError(f"--tile_overlap {_TILE_OVERLAP.value} must be less than --tile {_TILE.value}")
    flag = "--diagnose" if _DIAGNOSE.value else "--visualize" if _VISUALIZE.value else None
    if flag:
        raise UserError(f"{flag} shows one run of the network, and --tile makes many; drop one of them")


def _check_format(export: str | None) -> None:
    """Raises UserError if a flag needs more outputs of the network than the export has."""
    from maxdl_tf.tasks import checks

    flag = "--diagnose" if _DIAGNOSE.value else "--visualize" if _VISUALIZE.value else None
    if flag and export and checks.export_format(export) != "saved_model":
        raise UserError(f"{flag} needs a SavedModel or a checkpoint; {_MODEL.value} has another format")


def _check_runner(export: str | None) -> None:
    beam_pipeline.check_flags(FLAGS)
    if not FLAGS.runner:
        return
    if not export:
        raise UserError(f"--runner needs an export, which its workers load; export {_MODEL.value} with maxdl-export")
    if _DIAGNOSE.value:
        raise UserError("--diagnose does not work with --runner; drop one of them")
    beam_pipeline.import_beam()


def _find_export(model: str, config_file: str | None, overrides: list[str]) -> str | None:
    """The export that `model` names, or None if it is a checkpoint.

    UserError if the path does not exist or the flags do not go together.
    """
    from maxdl_tf.tasks import checks

    with command_line.quiet_imports(), command_line.user_errors(OSError):  # A remote path needs TensorFlow.
        export = checks.find_export(model)
        is_checkpoint = not export and (storage.is_folder(model) or storage.exists(model + ".index"))
    if export and (config_file or overrides):
        raise UserError(
            f"--model {model} is an export, whose configuration is fixed; drop --config_file and --override, or "
            "give a checkpoint"
        )
    if export:
        checks.check_compute(model, export, _COMPUTE.value)
    if not export and not is_checkpoint:
        raise UserError(f"--model {model} is neither the folder of an export nor a checkpoint; check the path")
    return export


def _report(diagnoses: dict[int | str, Diagnosis], predictor: Predictor, min_score: float) -> dict:
    """Prints the total; returns the content of diagnosis.json."""
    from maxdl_tf.evaluation import diagnosis

    settings = {**predictor.postprocessor.thresholds, "min_score": min_score}
    total = diagnosis.total(list(diagnoses.values()))
    print(diagnosis.as_table(total, settings))
    images = [
        {"image_id": image_id, **diagnosis.as_dictionary(found, settings)} for image_id, found in diagnoses.items()
    ]
    return {"settings": settings, "total": diagnosis.as_dictionary(total, settings), "images": images}


def _print_summary(num_images: int, failed: int, seconds: float) -> None:
    from maxdl_tf.inference import writer as folder

    written = {
        "annotations": folder.ANNOTATION_FILE,
        "overlays": FLAGS.overlays and folder.OVERLAY_FOLDER,
        "features": "features" in _VISUALIZE.value and folder.FEATURE_FOLDER,
        "instances": _COCO_INSTANCES.value and folder.INSTANCE_FILE,
        "diagnosis": _DIAGNOSE.value and folder.DIAGNOSIS_FILE,
    }
    print(
        f"predicted {num_images - failed} of {num_images} images in {seconds:.1f} s"
        + "".join(f"  {what} {os.path.join(FLAGS.output, name)}" for what, name in written.items() if name)
        + (f"  {failed} failed" if failed else "")
    )


def run() -> None:
    command_line.run(main, FLAGS, max_positional=sys.maxsize)


if __name__ == "__main__":
    run()
