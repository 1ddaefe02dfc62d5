r"""Measures panoptic quality of a checkpoint on the experiment's eval_dataset, or of predictions in files.

Prints PQ, SQ and RQ of all classes, things, stuff and each class in percent, with bootstrap intervals, and the loss of
a checkpoint. --json writes them to a file, qualities in 0..1. Crowds follow the rule of COCO's official evaluation.

--predictions measures files in the COCO panoptic format, a JSON file and a folder of PNGs, against --annotations. It
does not matter what wrote them, and TensorFlow is not needed.

--report writes an HTML page with the cost of each kind of error, the best and the worst images and a sweep of the score
threshold. --mask_ap adds the average precision of the masks of things. --submission writes the files that COCO's test
server takes; with --predictions, it works without --annotations.

--pictures writes pictures of the first images with truth and prediction of a checkpoint. --untrained measures initial
weights, for comparison. For an experiment with `task: classification`, the command measures accuracy.

Example:

    maxdl-eval --checkpoint runs/shapes --json metrics.json
    maxdl-eval --predictions predictions --annotations annotations/panoptic_val2017.json --image_dir val2017 \
        --mask_ap --report report.html
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from absl import flags

import maxdl_tf
from maxdl_tf import command_flags, command_line, processes
from maxdl_tf.errors import UserError
from maxdl_tf.progress import Progress

if TYPE_CHECKING:
    import numpy as np

    from maxdl_tf.class_table import DatasetInfo
    from maxdl_tf.evaluation.accuracy import AccuracyResult
    from maxdl_tf.evaluation.comparison import DatasetEvaluation
    from maxdl_tf.protos import experiment_pb2
    from maxdl_tf.tasks.panoptic import PanopticTask

FLAGS = flags.FlagValues()
_CONFIG_FILE, _OVERRIDE = command_flags.define_experiment(FLAGS, "evaluation { max_images: 100 }", required=False)
_CHECKPOINT = command_flags.define_checkpoint(FLAGS, required=False)
_STRATEGY = command_flags.define_strategy(FLAGS)
_UNTRAINED = flags.DEFINE_boolean("untrained", False, "Evaluate initial weights instead.", flag_values=FLAGS)
_PREDICTIONS = flags.DEFINE_string(
    "predictions",
    None,
    "Predictions to measure instead of a checkpoint: a folder that maxdl-predict wrote, or a COCO panoptic JSON file "
    "with its folder of PNGs beside it.",
    flag_values=FLAGS,
)
_ANNOTATIONS = flags.DEFINE_string(
    "annotations", None, "JSON file with the truth for --predictions, such as panoptic_val2017.json.", flag_values=FLAGS
)
_PANOPTIC_DIR = flags.DEFINE_string(
    "panoptic_dir", None, "Folder of the truth's PNGs. Default: --annotations without .json.", flag_values=FLAGS
)
_IMAGE_DIR = flags.DEFINE_string(
    "image_dir", None, "Folder of the images, for the pictures in a --report on --predictions.", flag_values=FLAGS
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes",
    None,
    "Number of processes that compare --predictions. Default: one for each core.",
    lower_bound=1,
    flag_values=FLAGS,
)
_JSON = flags.DEFINE_string("json", None, "JSON file to write the metrics to.", flag_values=FLAGS)
_REPORT = flags.DEFINE_string("report", None, "HTML file to write a report to.", flag_values=FLAGS)
_MASK_AP = flags.DEFINE_boolean(
    "mask_ap", False, "Whether to measure the average precision of the masks of things as well.", flag_values=FLAGS
)
_SUBMISSION = flags.DEFINE_string(
    "submission", None, "New folder to write the predictions to, as COCO's test server takes them.", flag_values=FLAGS
)
_SUBMISSION_NAME = flags.DEFINE_string(
    "submission_name",
    "test-dev2017_maxdl",
    "Split and name of the method, for the file names of the submission.",
    flag_values=FLAGS,
)
_PICTURES = flags.DEFINE_string(
    "pictures", None, "Folder to write pictures with image, truth and prediction to.", flag_values=FLAGS
)
_PICTURE_COUNT = flags.DEFINE_integer(
    "picture_count",
    12,
    "Number of --pictures, and of pictures of the best and of the worst images in a report.",
    lower_bound=1,
    flag_values=FLAGS,
)

_CHECKPOINT_FLAGS = ("config_file", "checkpoint", "untrained", "pictures", "override", "strategy")
_PREDICTION_FLAGS = ("annotations", "panoptic_dir", "image_dir", "num_processes")


def main(argv: list[str]) -> None:
    del argv
    _check_flags()
    if _PREDICTIONS.value:
        _evaluate_predictions()
    else:
        _evaluate_checkpoint()


def _check_flags() -> None:
    from maxdl_tf.evaluation import submission
    from maxdl_tf.files import disk_space, new_folder

    kind, others = ("--predictions", _CHECKPOINT_FLAGS) if _PREDICTIONS.value else ("a checkpoint", _PREDICTION_FLAGS)
    mixed = [f"--{name}" for name in others if FLAGS[name].value != FLAGS[name].default]
    if mixed:
        raise UserError(
            f"{mixed[0]} does not go with {kind}; give --checkpoint to measure a checkpoint, or "
            "--predictions and --annotations to measure files"
        )
    if _PREDICTIONS.value:
        if not _ANNOTATIONS.value and (not _SUBMISSION.value or _REPORT.value or _JSON.value or _MASK_AP.value):
            raise UserError("--annotations is missing; give the truth to compare --predictions with")
    elif _UNTRAINED.value == bool(_CHECKPOINT.value):
        raise UserError("give --checkpoint or --untrained, or --predictions and --annotations to measure files")
    elif _UNTRAINED.value and not _CONFIG_FILE.value:
        raise UserError("--config_file is missing; --untrained needs the experiment's textproto")
    for flag in (_JSON, _REPORT):
        if flag.value:
            disk_space.check_file(flag.value, f"--{flag.name}")
    if _SUBMISSION.value:
        new_folder.check_new_folder(_SUBMISSION.value, "--submission")
        submission.results_name(_SUBMISSION_NAME.value)


def _evaluate_predictions() -> None:
    from maxdl_tf.evaluation import coco_pairs, comparison

    files = coco_pairs.find_predictions(_PREDICTIONS.value)
    if _ANNOTATIONS.value:
        pairs = coco_pairs.open_pairs(files, _ANNOTATIONS.value, _PANOPTIC_DIR.value, _IMAGE_DIR.value)
        for line in pairs.warnings:
            print(f"warning: {line}", file=sys.stderr)
        with Progress("comparing", len(pairs.images)) as progress:
            comparisons = coco_pairs.compare_pairs(
                pairs,
                with_masks=_MASK_AP.value,
                num_processes=_NUM_PROCESSES.value or processes.available_processes(),
                on_progress=progress.advance,
            )
        evaluation = comparison.evaluate(comparisons, pairs.dataset_info, with_mask_ap=_MASK_AP.value)
        if _REPORT.value:
            evaluation = coco_pairs.draw_pairs(pairs, evaluation, _PICTURE_COUNT.value)
        facts = {
            "predictions": str(files.json),
            "PNGs of the predictions": str(files.pngs),
            "truth": _ANNOTATIONS.value,
            "PNGs of the truth": str(pairs.truth_pngs),
        }
        _write_results(evaluation, pairs.dataset_info, {}, facts)
    if _SUBMISSION.value:
        with Progress("writing", None) as progress:
            count = coco_pairs.submit_files(files, _SUBMISSION.value, _SUBMISSION_NAME.value, progress.advance)
        _print_submission(count)


def _evaluate_checkpoint() -> None:
    from maxdl_tf import config
    from maxdl_tf.files import disk_space
    from maxdl_tf.tasks import checkpoint_experiment, checks

    if _CHECKPOINT.value:
        checks.check_checkpoint_exists(_CHECKPOINT.value)
        experiment = checkpoint_experiment.load(_CHECKPOINT.value, _CONFIG_FILE.value, _OVERRIDE.value)
    else:
        experiment = config.load_experiment(_CONFIG_FILE.value, _OVERRIDE.value)
    checks.check_shards(experiment, "eval_dataset")
    is_panoptic = experiment.task == experiment.panoptic
    if not is_panoptic and (_REPORT.value or _MASK_AP.value or _SUBMISSION.value):
        raise UserError(
            f"experiment {experiment.name!r} has task: classification; --report, --mask_ap and --submission need task: "
            "panoptic"
        )
    if _PICTURES.value:
        disk_space.check_writable(_PICTURES.value)
    with command_line.quiet_imports():
        from maxdl_tf import tasks
        from maxdl_tf.evaluation import comparison, submission
        from maxdl_tf.training import distribution, loop

    task = tasks.task_of(experiment)
    strategy = distribution.create_strategy(_STRATEGY.value)
    with strategy.scope():
        model = task.build_model()
    step = 0
    if _CHECKPOINT.value:
        step = task.load_weights(model, _CHECKPOINT.value, log=print).step
    with contextlib.ExitStack() as stack:
        writer = None
        if _SUBMISSION.value:
            writer = stack.enter_context(submission.open_submission(_SUBMISSION.value, _SUBMISSION_NAME.value))
        measure = functools.partial(
            comparison.evaluate_images,
            dataset_info=task.evaluated_info,
            thresholds=task.build_postprocessor().thresholds if is_panoptic else None,
            with_mask_ap=_MASK_AP.value,
            num_pictures=_PICTURE_COUNT.value if _REPORT.value else 0,
            submission=writer,
        )
        evaluator = task.build_evaluation(
            strategy,
            model,
            show_picture=_write_picture,
            num_pictures=_PICTURE_COUNT.value if _PICTURES.value else 0,
            measure=measure if is_panoptic else None,
        )
        stack.enter_context(task.naming_bad_records(experiment.eval_dataset))
        result = loop.evaluate_with_progress(evaluator)
    weights = f"{_CHECKPOINT.value}, step {step}" if _CHECKPOINT.value else "initial weights"
    facts = {"checkpoint": weights, **_facts(experiment, task)} if _REPORT.value else {}
    _write_results(result, task.dataset_info, {"step": step}, facts)
    if _SUBMISSION.value:
        _print_submission(result.quality.num_images)


def _facts(experiment: experiment_pb2.Experiment, task: PanopticTask) -> dict[str, str]:
    """What is measured, for the head of the report."""
    dataset, most = experiment.eval_dataset, experiment.evaluation.max_images
    thresholds = task.build_postprocessor().thresholds
    return {
        "experiment": f"{experiment.name} ({_CONFIG_FILE.value or 'from the folder of the checkpoint'})",
        **({"overrides": "  ".join(_OVERRIDE.value)} if _OVERRIDE.value else {}),
        "data": ", ".join(dataset.file_pattern) + (f", the first {most:,} images" if most else ""),
        "input of the network": f"{task.crop_size[0]} x {task.crop_size[1]} pixels",
        **({"tiles": f"{dataset.tile} pixels, overlap {dataset.tile_overlap}"} if dataset.tile else {}),
        "post-processing": ", ".join(f"{name} {value:g}" for name, value in thresholds.items()),
    }


def _write_results(
    result: DatasetEvaluation | AccuracyResult,
    dataset_info: DatasetInfo,
    step: Mapping[str, int],
    facts: Mapping[str, str],
) -> None:
    """Prints the metrics and writes them to --json, after the step, and to --report, after facts."""
    from maxdl_tf.evaluation import report
    from maxdl_tf.files import storage

    print(result.as_table())
    if _JSON.value:
        storage.write_json(_JSON.value, {**step, **result.as_dict()})
    if _REPORT.value:
        facts = {**facts, "measured": f"{datetime.date.today()}, maxdl_tf {maxdl_tf.__version__}"}
        report.write_report(_REPORT.value, result, dataset_info, facts=facts, num_pictures=_PICTURE_COUNT.value)
        print(f"wrote the report {_REPORT.value}")


def _print_submission(num_images: int) -> None:
    from maxdl_tf.evaluation import submission

    archive = os.path.join(_SUBMISSION.value, f"{submission.results_name(_SUBMISSION_NAME.value)}.zip")
    print(f"{archive}: {num_images} images")


def _write_picture(image_id: str, picture: np.ndarray) -> None:
    from maxdl_tf.files import images

    images.write_image(os.path.join(_PICTURES.value, f"{os.path.basename(image_id)}.png"), picture)


def run() -> None:
    command_line.run(main, FLAGS)


if __name__ == "__main__":
    run()
