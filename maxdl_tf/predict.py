"""Predicts the panoptic segmentation of photographs.

Reads image files, upright by their EXIF orientation, and leaves in the output folder:

    panoptic.json          COCO panoptic annotations with each segment's score; written last
    panoptic/NAME.png      segment ids as colors; 0 is void
    overlays/NAME.jpg      the image under the colors of its segments, with a legend
    features/NAME.png      with --visualize features: the image, pixel features and mask embeddings as colors

An image that cannot be read or is too large for the memory is reported and left out; the others are
predicted, and the exit status is 1. The status is 2 where nothing could begin.

Example:

    maxdl-predict --model exports/shapes --input photos --output predictions
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence

from absl import flags

from maxdl_tf import command_line
from maxdl_tf.errors import UserError
from maxdl_tf.progress import Progress

FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string(
    "model",
    None,
    "A SavedModel that maxdl-export wrote; or a checkpoint or a folder of checkpoints, and then --config_file too.",
    required=True,
    flag_values=FLAGS,
)
_INPUT = flags.DEFINE_string(
    "input", None, "An image, a folder of images or a quoted glob.", required=True, flag_values=FLAGS
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
_OVERWRITE = flags.DEFINE_boolean(
    "overwrite", False, "Replace the predictions that are in the output folder.", flag_values=FLAGS
)

ANNOTATION_FILE = "panoptic.json"
PANOPTIC_FOLDER = "panoptic"
OVERLAY_FOLDER = "overlays"
FEATURE_FOLDER = "features"
_FOLDERS = (PANOPTIC_FOLDER, OVERLAY_FOLDER, FEATURE_FOLDER)
_GENERATOR = "predicted by maxdl-predict"


def main(argv: list[str]) -> int:
    del argv
    from maxdl_tf.inference import images  # Pillow; still without TensorFlow.

    is_saved_model = _check_model(_MODEL.value, _CONFIG_FILE.value, _OVERRIDE.value)
    paths = images.find_images(_INPUT.value)
    names = output_names(paths)
    _check_output(_OUTPUT.value, _OVERWRITE.value)
    with command_line.quiet_imports():
        from maxdl_tf.inference.predictor import Predictor
    if is_saved_model:
        predictor = Predictor.from_saved_model(_MODEL.value)
    else:
        predictor = _predictor_of_checkpoint(_MODEL.value, _CONFIG_FILE.value, _OVERRIDE.value)
    draws_features = "features" in _VISUALIZE.value
    folders = [PANOPTIC_FOLDER] + [OVERLAY_FOLDER] * _OVERLAYS.value + [FEATURE_FOLDER] * draws_features
    _prepare_output(_OUTPUT.value, folders)

    started = time.monotonic()
    failed = predict_files(
        predictor,
        dict(zip(names, paths)),
        _OUTPUT.value,
        overlays=_OVERLAYS.value,
        features=draws_features,
    )
    seconds = time.monotonic() - started
    done = len(paths) - failed
    print(
        f"predicted {done} of {len(paths)} images in {seconds:.1f} s  "
        f"annotations {os.path.join(_OUTPUT.value, ANNOTATION_FILE)}"
        + (f"  overlays {os.path.join(_OUTPUT.value, OVERLAY_FOLDER)}" if _OVERLAYS.value else "")
        + (f"  features {os.path.join(_OUTPUT.value, FEATURE_FOLDER)}" if draws_features else "")
        + (f"  {failed} failed" if failed else "")
    )
    return 1 if failed else 0


def predict_files(
    predictor, path_of_name: dict[str, str], output: str, *, overlays: bool = True, features: bool = False
) -> int:
    """Predicts image files into a folder, as the module's docstring says.

    Args:
      predictor: A `Predictor`.
      path_of_name: Image files by the name that their outputs shall have.
      output: The folder; it exists.
      overlays: Whether to draw overlays.
      features: Whether to draw features.

    Returns:
      The number of images that failed, each of which was told on stderr.

    Raises:
      UserError: The folder cannot be written to.
    """
    from maxdl_tf.inference import feature_picture, images, segments, visualize

    info = predictor.dataset_info
    coco = {
        "info": {"description": f"{_GENERATOR}; classes of {info.name}"},
        "images": [],
        "annotations": [],
        "categories": segments.coco_categories(info),
    }
    failed = 0
    with Progress("predicting", total=len(path_of_name)) as progress:
        for image_id, (name, path) in zip(image_ids(list(path_of_name)), path_of_name.items()):
            try:
                image = images.read_image(path)
                prediction = _predict(predictor, image, path)
            except UserError as error:
                failed += 1
                progress.say(f"failed: {error}")
                progress.advance()
                continue
            with command_line.user_errors(OSError):
                png = f"{name}.png"
                pixels = segments.coco_picture(prediction.label_map, info)
                images.write_image(os.path.join(output, PANOPTIC_FOLDER, png), pixels)
                if overlays:
                    picture = visualize.panoptic_picture(image, prediction.label_map, info)
                    picture = visualize.with_legend(picture, prediction.label_map, info)
                    images.write_image(os.path.join(output, OVERLAY_FOLDER, f"{name}.jpg"), picture)
                if features:
                    void = prediction.label_map == info.void
                    picture = feature_picture.feature_picture(image, *predictor.features(image), void)
                    images.write_image(os.path.join(output, FEATURE_FOLDER, f"{name}.png"), picture)
            height, width = prediction.label_map.shape
            coco["images"].append(
                {"id": image_id, "file_name": os.path.basename(path), "height": height, "width": width}
            )
            segments_info = segments.coco_segments_info(prediction.segments, info)
            coco["annotations"].append({"image_id": image_id, "file_name": png, "segments_info": segments_info})
            progress.advance()
    with command_line.user_errors(OSError):
        _write_json(os.path.join(output, ANNOTATION_FILE), coco)
    return failed


def output_names(paths: list[str]) -> list[str]:
    """The name of each image's outputs: its file's name without suffix.

    Raises:
      UserError: Two images would have the same outputs.
    """
    path_of_name: dict[str, str] = {}
    for path in paths:
        name = os.path.splitext(os.path.basename(path))[0]
        other = path_of_name.setdefault(name, path)
        if other != path:
            raise UserError(f"{other} and {path} would both be written to {name}.png; give each an --output of its own")
    return list(path_of_name)


def image_ids(names: Sequence[str]) -> list[int] | list[str]:
    """COCO's image ids: the numbers that the names are ("000000000139"), or the names if one is no number."""
    if all(name.isascii() and name.isdigit() for name in names):
        numbers = [int(name) for name in names]
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(names)


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


def _predictor_of_checkpoint(checkpoint: str, config_file: str, overrides: list[str]):
    from maxdl_tf import config

    experiment = config.load_experiment(config_file, overrides)
    with command_line.quiet_imports():
        from maxdl_tf import factory
        from maxdl_tf.inference import segmenter
        from maxdl_tf.inference.predictor import Predictor
        from maxdl_tf.training import checkpoints
    options = factory.inference_dataset(experiment)
    dataset_info = config.dataset_info_of(options)
    model = factory.build_model(experiment, dataset_info)
    checkpoints.load_model_weights(model, checkpoint)
    return Predictor.from_model(
        segmenter.without_semantic_branch(model),
        factory.build_postprocessor(experiment, dataset_info),
        crop_size=factory.crop_size(options),
        dataset_info=dataset_info,
    )


def _check_output(output: str, overwrite: bool) -> None:
    """UserError if the output folder holds what must not be lost, or cannot be written to."""
    existing = os.path.abspath(output)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--output {output}: {existing} is not a folder that can be written to; name another one")
    if not os.path.isdir(output):
        return
    present = {name for name in os.listdir(output) if not name.startswith(".")}
    foreign = present - {ANNOTATION_FILE, *_FOLDERS}
    annotations = os.path.join(output, ANNOTATION_FILE)
    if os.path.exists(annotations):
        with command_line.user_errors(OSError), open(annotations, encoding="utf-8", errors="replace") as file:
            if _GENERATOR not in file.read(200):
                foreign.add(ANNOTATION_FILE)
    if foreign:
        raise UserError(
            f"--output {output} holds other things than predictions, such as {min(foreign)}; name a new or empty folder"
        )
    if present and not overwrite:
        raise UserError(f"--output {output} holds predictions already; name another folder or add --overwrite")


def _prepare_output(output: str, folders: Sequence[str]) -> None:
    """Makes the folders, without earlier predictions, so that none of them is mixed with the new ones."""
    with command_line.user_errors(OSError):
        if os.path.exists(os.path.join(output, ANNOTATION_FILE)):
            os.unlink(os.path.join(output, ANNOTATION_FILE))
        for folder in _FOLDERS:
            if os.path.isdir(os.path.join(output, folder)):
                shutil.rmtree(os.path.join(output, folder))
        for folder in folders:
            os.makedirs(os.path.join(output, folder))


def _write_json(path: str, content: dict) -> None:
    temporary = f"{path}.partial"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False)
    os.replace(temporary, path)


def run() -> None:
    command_line.run(main, FLAGS)


if __name__ == "__main__":
    run()
