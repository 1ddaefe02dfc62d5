"""Predicts the panoptic segmentation of photographs.

Reads image files, upright by their EXIF orientation, and leaves in the output folder:

    panoptic.json          COCO panoptic annotations with each segment's score; written last
    panoptic/NAME.png      segment ids as colors; 0 is void
    overlays/NAME.jpg      the image under the colors of its segments, with a legend
    features/NAME.png      with --visualize features: the image, pixel features and mask embeddings as colors
    instances.json         with --coco_instances: the things as a COCO results file, with RLE masks
    diagnosis.json         with --diagnose: what each threshold took from each image; the total is printed

An image that cannot be read or is too large is reported and left out; the others are predicted, and the exit status is
1. The status is 2 where nothing could begin.

One image is worked on at a time. The network sees it at its own input size, however large it is; only pixels, map and
overlay have the image's. They take some 35 bytes a pixel, and --max_pixels bounds them.

Example:

    maxdl-predict --model exports/shapes --input photos --output predictions
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from absl import flags

from maxdl_tf import command_line
from maxdl_tf.errors import UserError
from maxdl_tf.inference.images import MAX_PIXELS
from maxdl_tf.progress import Progress

if TYPE_CHECKING:
    from maxdl_tf.inference.diagnosis import Diagnosis
    from maxdl_tf.inference.prediction_writer import PredictionWriter
    from maxdl_tf.inference.predictor import Predictor

FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string(
    "model",
    None,
    "A SavedModel that maxdl-export wrote; or a checkpoint or a folder of checkpoints, and then --config_file too.",
    required=True,
    flag_values=FLAGS,
)
_INPUT = flags.DEFINE_multi_string(
    "input",
    None,
    "An image, a folder of images or a glob; further arguments are inputs, too.",
    required=True,
    flag_values=FLAGS,
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the predictions.", required=True, flag_values=FLAGS)
_CONFIG_FILE = flags.DEFINE_string(
    "config_file", None, "Experiment textproto that a checkpoint was trained with.", flag_values=FLAGS
)
_OVERRIDE = flags.DEFINE_multi_string(
    "override",
    [],
    "Textproto fragment merged over --config_file, such as 'eval_dataset { crop_size: 641 }'.",
    flag_values=FLAGS,
)
_OVERLAYS = flags.DEFINE_boolean("overlays", True, "Draw overlays.", flag_values=FLAGS)
_VISUALIZE = flags.DEFINE_multi_enum(
    "visualize",
    [],
    ["features"],
    "What else to draw. features: pixel features and mask embeddings as colors, as in the paper's figure of a model "
    "with model.mask_channels 3; of more channels, their principal components.",
    flag_values=FLAGS,
)
_MIN_SCORE = flags.DEFINE_float(
    "min_score",
    0.0,
    "Segments with a lower score become void. It is the last thing that is done: no other segment takes their pixels.",
    lower_bound=0.0,
    upper_bound=1.0,
    flag_values=FLAGS,
)
_COCO_INSTANCES = flags.DEFINE_boolean("coco_instances", False, "Write instances.json.", flag_values=FLAGS)
_DIAGNOSE = flags.DEFINE_boolean(
    "diagnose",
    False,
    "Say how many masks and pixels each threshold took. The network runs twice on each image.",
    flag_values=FLAGS,
)
_MAX_PIXELS = flags.DEFINE_integer(
    "max_pixels",
    MAX_PIXELS,
    "Leave images of more pixels out, before they are decoded.",
    lower_bound=1,
    flag_values=FLAGS,
)
_OVERWRITE = flags.DEFINE_boolean(
    "overwrite", False, "Replace the predictions that are in the output folder.", flag_values=FLAGS
)


def main(argv: list[str]) -> int:
    from maxdl_tf import config
    from maxdl_tf.inference import images, prediction_folder  # Still without TensorFlow.

    is_saved_model = _check_model(_MODEL.value, _CONFIG_FILE.value, _OVERRIDE.value)
    paths = images.find_all_images([*_INPUT.value, *argv[1:]])
    names = prediction_folder.output_names(paths)
    prediction_folder.check_output(_OUTPUT.value, _OVERWRITE.value)
    experiment = None if is_saved_model else config.load_experiment(_CONFIG_FILE.value, _OVERRIDE.value)
    with command_line.quiet_imports():
        from maxdl_tf.inference.prediction_writer import PredictionWriter
        from maxdl_tf.inference.predictor import Predictor

        if experiment:  # All of training comes with it, which a SavedModel does without.
            from maxdl_tf import factory
    if experiment:
        predictor, _ = factory.build_predictor(experiment, _MODEL.value)
    else:
        predictor = Predictor.from_saved_model(_MODEL.value)
    if _DIAGNOSE.value and predictor.postprocessor is None:
        raise UserError(
            f"--diagnose: SavedModel {_MODEL.value} does not say its thresholds; export it again, or give its "
            "checkpoint and --config_file"
        )
    draws_features = "features" in _VISUALIZE.value
    started = time.monotonic()
    with command_line.user_errors(OSError):
        writer = PredictionWriter(
            _OUTPUT.value,
            predictor.dataset_info,
            overlays=_OVERLAYS.value,
            features=draws_features,
            coco_instances=_COCO_INSTANCES.value,
        )
        failed = predict_files(
            predictor,
            dict(zip(names, paths)),
            writer,
            min_score=_MIN_SCORE.value,
            max_pixels=_MAX_PIXELS.value,
            features=draws_features,
            diagnose=_DIAGNOSE.value,
        )
    _print_summary(len(paths), failed, time.monotonic() - started)
    return 1 if failed else 0


def predict_files(
    predictor: Predictor,
    path_of_name: dict[str, str],
    writer: PredictionWriter,
    *,
    min_score: float,
    max_pixels: int,
    features: bool,
    diagnose: bool,
) -> int:
    """Predicts image files, one after the other.

    Args:
      predictor: Predicts.
      path_of_name: Image files by the name that their outputs shall have.
      writer: Writes.
      min_score: Segments with a lower score become void.
      max_pixels: Images with more pixels fail.
      features: Whether to draw features.
      diagnose: Whether to print and to write what each threshold took.

    Returns:
      The number of images that failed, each of which was told on stderr.

    Raises:
      OSError: The files cannot be written.
    """
    from maxdl_tf.inference import feature_picture, images, prediction_folder
    from maxdl_tf.inference.score_filter import drop_unsure_segments

    failed, diagnoses, info = 0, {}, predictor.dataset_info
    with Progress("predicting", total=len(path_of_name)) as progress:
        for image_id, (name, path) in zip(prediction_folder.image_ids(list(path_of_name)), path_of_name.items()):
            try:
                image = images.read_image(path, max_pixels)
                prediction = _predict(predictor, image, path)
            except UserError as error:
                failed += 1
                progress.say(f"failed: {error}")
                progress.advance()
                continue
            kept = drop_unsure_segments(prediction, min_score, info.void)
            writer.write(name, image_id, os.path.basename(path), image, kept)
            if features:
                void = kept.label_map == info.void
                writer.write_features(name, feature_picture.feature_picture(image, *predictor.features(image), void))
            if diagnose:
                diagnoses[image_id] = _diagnose(predictor, image, prediction, kept)
            progress.advance()
    writer.finish(_report(diagnoses, predictor, min_score) if diagnose else None)
    return failed


def _predict(predictor, image, path: str):
    import tensorflow as tf

    try:
        return predictor(image)
    except tf.errors.ResourceExhaustedError as error:
        raise UserError(f"{path}: {image.shape[1]}x{image.shape[0]} pixels do not fit into the memory") from error


def _check_model(model: str, config_file: str | None, overrides: list[str]) -> bool:
    """Whether `model` is a SavedModel; UserError if the flags do not fit together or nothing is there."""
    is_remote = "://" in model  # Looked at by TensorFlow, later.
    if os.path.exists(os.path.join(model, "saved_model.pb")) or (is_remote and not config_file):
        if config_file or overrides:
            raise UserError(
                f"--model {model} is a SavedModel, whose configuration is fixed; leave --config_file and --override "
                "away, or give a checkpoint"
            )
        return True
    if not is_remote and not os.path.exists(model) and not os.path.exists(model + ".index"):
        raise UserError(f"--model {model} is neither a SavedModel's folder nor a checkpoint; check the path")
    if not config_file:
        raise UserError(f"--model {model} is not a SavedModel; for a checkpoint give its --config_file too")
    return False


def _diagnose(predictor: Predictor, image, prediction, kept) -> Diagnosis:
    from maxdl_tf.inference import diagnosis

    outputs = predictor.network_outputs(image)
    return diagnosis.diagnose(outputs, predictor.postprocessor, image.shape[:2], prediction, kept)


def _report(diagnoses: dict[int | str, Diagnosis], predictor: Predictor, min_score: float) -> dict:
    """Prints the total; returns what is written of it and of each image."""
    from maxdl_tf.inference import diagnosis

    settings = {**predictor.postprocessor.thresholds, "min_score": min_score}
    total = diagnosis.total(list(diagnoses.values()))
    print(diagnosis.table(total, settings))
    images = [{"image_id": image_id, **diagnosis.as_dictionary(found)} for image_id, found in diagnoses.items()]
    return {"settings": settings, "total": diagnosis.as_dictionary(total), "images": images}


def _print_summary(num_images: int, failed: int, seconds: float) -> None:
    from maxdl_tf.inference import prediction_folder as folder

    written = {
        "annotations": folder.ANNOTATION_FILE,
        "overlays": _OVERLAYS.value and folder.OVERLAY_FOLDER,
        "features": "features" in _VISUALIZE.value and folder.FEATURE_FOLDER,
        "instances": _COCO_INSTANCES.value and folder.INSTANCE_FILE,
        "diagnosis": _DIAGNOSE.value and folder.DIAGNOSIS_FILE,
    }
    print(
        f"predicted {num_images - failed} of {num_images} images in {seconds:.1f} s"
        + "".join(f"  {what} {os.path.join(_OUTPUT.value, name)}" for what, name in written.items() if name)
        + (f"  {failed} failed" if failed else "")
    )


def run() -> None:
    command_line.run(main, FLAGS, max_positional=sys.maxsize)


if __name__ == "__main__":
    run()
