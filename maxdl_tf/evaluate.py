r"""Measures panoptic quality: of a checkpoint on the experiment's eval_dataset, or of predictions in files.

Prints PQ, SQ and RQ of all, things, stuff and each class as a table, with bootstrap intervals; --json writes them to a
file. The rule is that of COCO's official evaluation: crowds are not counted against the model.

With --predictions nothing is predicted: a JSON file and a folder of PNGs in the COCO panoptic format, written by
maxdl-predict or anybody else, are compared with --annotations. TensorFlow is not needed for that.

--report writes an HTML page: which errors cost how much, the best and the worst images, a sweep of the score
threshold. --mask_ap adds the average precision of things' masks. --submission writes what COCO's test server takes;
with --predictions alone, without --annotations, nothing else is done.

--pictures takes pictures of a checkpoint's first images, with truth beside prediction. --untrained tells what initial
weights are worth, to compare with. Of an experiment with `task: classification` the accuracy is measured.

Example:

    maxdl-eval --config_file configs/shapes/max_deeplab_tiny_81.textproto --checkpoint runs/shapes --json metrics.json
    maxdl-eval --predictions predictions --annotations annotations/panoptic_val2017.json --image_dir val2017 \
        --mask_ap --report report.html
"""

from __future__ import annotations

import contextlib
import glob
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from maxdl_tf import command_line, processes
from maxdl_tf.errors import UserError
from maxdl_tf.export_model import check_checkpoint_exists
from maxdl_tf.progress import Progress

if TYPE_CHECKING:
    import numpy as np

    from maxdl_tf.class_table import DatasetInfo
    from maxdl_tf.evaluation.collector import Collector
    from maxdl_tf.evaluation.dataset_evaluation import DatasetEvaluation
    from maxdl_tf.evaluation.panoptic_evaluator import EvaluatedImage
    from maxdl_tf.protos import experiment_pb2

FLAGS = flags.FlagValues()
_CONFIG_FILE = flags.DEFINE_string(
    "config_file", None, "Experiment textproto that the model was trained with.", flag_values=FLAGS
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "A checkpoint (runs/shapes/ckpt-1000), or a folder, which means its newest one.",
    flag_values=FLAGS,
)
_UNTRAINED = flags.DEFINE_boolean("untrained", False, "Evaluate initial weights instead.", flag_values=FLAGS)
_PREDICTIONS = flags.DEFINE_string(
    "predictions",
    None,
    "Score these instead of a checkpoint: a folder that maxdl-predict wrote, or a COCO panoptic JSON file with its "
    "folder of PNGs beside it.",
    flag_values=FLAGS,
)
_ANNOTATIONS = flags.DEFINE_string(
    "annotations", None, "Truth for --predictions: a JSON file such as panoptic_val2017.json.", flag_values=FLAGS
)
_PANOPTIC_DIR = flags.DEFINE_string(
    "panoptic_dir", None, "Folder of the truth's PNGs; if not given, --annotations without .json.", flag_values=FLAGS
)
_IMAGE_DIR = flags.DEFINE_string(
    "image_dir", None, "Folder of the images, for the pictures of a --report on --predictions.", flag_values=FLAGS
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes",
    None,
    "Processes that compare --predictions; if not given, one for each core.",
    lower_bound=1,
    flag_values=FLAGS,
)
_JSON = flags.DEFINE_string("json", None, "File to write the figures to.", flag_values=FLAGS)
_REPORT = flags.DEFINE_string("report", None, "HTML file to write a report to.", flag_values=FLAGS)
_MASK_AP = flags.DEFINE_boolean("mask_ap", False, "Measure the average precision of things, too.", flag_values=FLAGS)
_SUBMISSION = flags.DEFINE_string(
    "submission", None, "New folder for the predictions as COCO's test server takes them.", flag_values=FLAGS
)
_SUBMISSION_NAME = flags.DEFINE_string(
    "submission_name",
    "test-dev2017_maxdl",
    "Split and name of the method, in the names of its files.",
    flag_values=FLAGS,
)
_PICTURES = flags.DEFINE_string("pictures", None, "Folder for pictures: input, truth, prediction.", flag_values=FLAGS)
_PICTURE_COUNT = flags.DEFINE_integer(
    "picture_count",
    12,
    "How many; in a report, how many of the best and of the worst.",
    lower_bound=1,
    flag_values=FLAGS,
)
_OVERRIDE = flags.DEFINE_multi_string(
    "override",
    [],
    "Textproto fragment merged over --config_file, such as 'evaluation { max_images: 100 }'.",
    flag_values=FLAGS,
)
_STRATEGY = flags.DEFINE_enum(
    "strategy", "auto", ["auto", "one_device", "mirrored"], "Devices to use; auto: all GPUs.", flag_values=FLAGS
)

_OF_CHECKPOINTS = ("config_file", "checkpoint", "untrained", "pictures", "override", "strategy")
_OF_PREDICTIONS = ("annotations", "panoptic_dir", "image_dir", "num_processes")


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

    kind, others = ("--predictions", _OF_CHECKPOINTS) if _PREDICTIONS.value else ("a checkpoint", _OF_PREDICTIONS)
    mixed = [f"--{name}" for name in others if FLAGS[name].value != FLAGS[name].default]
    if mixed:
        raise UserError(
            f"{mixed[0]} does not go with {kind}; give --config_file and --checkpoint to measure a checkpoint, or "
            "--predictions and --annotations to score files"
        )
    if _PREDICTIONS.value:
        if not _ANNOTATIONS.value and (not _SUBMISSION.value or _REPORT.value or _JSON.value or _MASK_AP.value):
            raise UserError("--annotations is missing, the truth to compare --predictions with")
    elif not _CONFIG_FILE.value:
        raise UserError("--config_file is missing; or give --predictions and --annotations to score files")
    elif _UNTRAINED.value == bool(_CHECKPOINT.value):
        raise UserError("give either --checkpoint or --untrained")
    for path in filter(None, (_JSON.value, _REPORT.value)):
        disk_space.check_writable(os.path.dirname(path) or ".")
    if _SUBMISSION.value:
        new_folder.check_new_folder(_SUBMISSION.value, "--submission")
        submission.results_name(_SUBMISSION_NAME.value)


def _evaluate_predictions() -> None:
    from maxdl_tf.evaluation import coco_pairs, dataset_evaluation, score_files, submission

    files = coco_pairs.find_predictions(_PREDICTIONS.value)
    if _ANNOTATIONS.value:
        pairs = coco_pairs.open_pairs(files, _ANNOTATIONS.value, _PANOPTIC_DIR.value)
        if _IMAGE_DIR.value and not os.path.isfile(os.path.join(_IMAGE_DIR.value, pairs.images[0].file_name)):
            raise UserError(f"--image_dir {_IMAGE_DIR.value} has no {pairs.images[0].file_name}; check the path")
        if pairs.extra:
            print(
                f"warning: {len(pairs.extra)} predictions are of images that the annotations do not have, such as "
                f"{pairs.extra[0]}; they are left out",
                file=sys.stderr,
            )
        with Progress("comparing", len(pairs.images)) as progress:
            comparisons = score_files.compare_all(
                pairs,
                with_masks=_MASK_AP.value,
                num_processes=_NUM_PROCESSES.value or processes.available_processes(),
                on_progress=progress.advance,
            )
        evaluation = dataset_evaluation.evaluate(comparisons, pairs.dataset_info, with_mask_ap=_MASK_AP.value)
        print(evaluation.as_table())
        if _JSON.value:
            evaluation.write_json(_JSON.value)
        if _REPORT.value:
            shown = evaluation.best(_PICTURE_COUNT.value) + evaluation.worst(_PICTURE_COUNT.value)
            pictures = score_files.draw(pairs, shown, _read_image if _IMAGE_DIR.value else None, _picture)
            _write_report(evaluation, {"predictions": str(files.json), "truth": _ANNOTATIONS.value}, pictures)
    if _SUBMISSION.value:
        with Progress("writing", None) as progress:
            count = submission.submit_files(files, _SUBMISSION.value, _SUBMISSION_NAME.value, progress.advance)
        _say_submission(count)


def _say_submission(count: int) -> None:
    from maxdl_tf.evaluation import submission

    archive = os.path.join(_SUBMISSION.value, f"{submission.results_name(_SUBMISSION_NAME.value)}.zip")
    print(f"{archive}: {count} images")


def _read_image(file_name: str) -> np.ndarray:
    from maxdl_tf.files import images

    return images.read_image(os.path.join(_IMAGE_DIR.value, file_name))


def _picture(
    image: np.ndarray | None, truth: np.ndarray, prediction: np.ndarray, dataset_info: DatasetInfo
) -> np.ndarray:
    """Label maps over the image, and the image beside them; without one, the label maps alone."""
    import numpy as np

    from maxdl_tf.drawing import label_maps

    below = np.full((*truth.shape, 3), 128, np.uint8) if image is None else image
    pictures = [label_maps.panoptic_picture(below, label_map, dataset_info) for label_map in (truth, prediction)]
    if image is None:
        return label_maps.side_by_side(pictures, ["truth", "prediction"])
    return label_maps.side_by_side([image, *pictures], ["image", "truth", "prediction"])


def _evaluate_checkpoint() -> None:
    from maxdl_tf import config
    from maxdl_tf.files import disk_space

    experiment = config.load_experiment(_CONFIG_FILE.value, _OVERRIDE.value)
    check_shards(experiment, "eval_dataset")
    is_panoptic = experiment.task == experiment.panoptic
    is_observed = bool(_REPORT.value or _MASK_AP.value or _SUBMISSION.value)
    if is_observed and not is_panoptic:
        raise UserError("--report, --mask_ap and --submission are for panoptic experiments; this one classifies images")
    if _CHECKPOINT.value:
        check_checkpoint_exists(_CHECKPOINT.value)
    if _PICTURES.value:
        disk_space.check_writable(_PICTURES.value)
    with command_line.quiet_imports():
        from maxdl_tf import class_table, factory, tasks
        from maxdl_tf.checkpoints import save_restore
        from maxdl_tf.training import distribution, loop

    dataset_info = class_table.of_dataset(experiment.eval_dataset)
    task = tasks.task_of(experiment)
    strategy = distribution.create_strategy(_STRATEGY.value)
    with strategy.scope():
        model = task.build_model(experiment, dataset_info)
    step = 0
    if _CHECKPOINT.value:
        step = save_restore.load_model_weights(model, _CHECKPOINT.value, say=print).step
    num_pictures = _PICTURE_COUNT.value if _PICTURES.value else 0
    with _open_collector(dataset_info) if is_observed else contextlib.nullcontext() as collector:
        observe = {"observe": _observer(collector, dataset_info)} if is_observed else {}
        evaluator = task.build_evaluator(
            experiment, dataset_info, strategy, model, write_picture, num_pictures, **observe
        )
        with factory.naming_bad_records(experiment, experiment.eval_dataset):
            result = loop.evaluate_with_progress(evaluator)
    table, figures = result.as_table(), result.as_dict()
    if is_observed:
        from maxdl_tf.evaluation import dataset_evaluation

        evaluation = dataset_evaluation.evaluate(collector.comparisons, dataset_info, with_mask_ap=_MASK_AP.value)
        table, figures = evaluation.as_table(), evaluation.as_dict()
        if _REPORT.value:
            weights = f"{_CHECKPOINT.value}, step {step}" if _CHECKPOINT.value else "initial weights"
            _write_report(evaluation, {"experiment": experiment.name, "checkpoint": weights}, collector.pictures)
    elif is_panoptic:
        from maxdl_tf.evaluation.bootstrap import intervals_line, quality_intervals

        figures["intervals"] = quality_intervals(result.image_counts, dataset_info)
        table = f"{table}\n{intervals_line(figures['intervals'])}"
    print(table)
    if _JSON.value:
        loop.write_json(_JSON.value, {"step": step, **figures})
    if _SUBMISSION.value:
        _say_submission(len(collector.comparisons))


@contextlib.contextmanager
def _open_collector(dataset_info: DatasetInfo) -> Iterator[Collector]:
    """What takes the images of a checkpoint's evaluation; a submission is complete when it is left."""
    from maxdl_tf.evaluation import collector, submission

    with contextlib.ExitStack() as stack:
        writer = None
        if _SUBMISSION.value:
            writer = stack.enter_context(submission.open_submission(_SUBMISSION.value, _SUBMISSION_NAME.value))
        yield collector.Collector(
            dataset_info,
            with_masks=_MASK_AP.value,
            submission=writer,
            num_pictures=_PICTURE_COUNT.value if _REPORT.value else 0,
        )


def _observer(collector: Collector, dataset_info: DatasetInfo) -> Callable[[EvaluatedImage], None]:
    def observe(found: EvaluatedImage) -> None:
        collector.add(
            found.image_id,
            found.truth,
            found.prediction,
            found.scores,
            picture=lambda: _picture(*found.example(), dataset_info),
        )

    return observe


def _write_report(evaluation: DatasetEvaluation, facts: Mapping[str, str], pictures: Mapping[Any, np.ndarray]) -> None:
    from maxdl_tf.evaluation import report

    report.write_report(_REPORT.value, evaluation, facts=facts, pictures=pictures, num_pictures=_PICTURE_COUNT.value)
    print(f"{_REPORT.value}: the report")


def write_picture(image_id: str, picture: np.ndarray) -> None:
    from maxdl_tf.files import images

    images.write_image(os.path.join(_PICTURES.value, f"{os.path.basename(image_id)}.png"), picture)


def check_shards(experiment: experiment_pb2.Experiment, name: str) -> None:
    """Raises UserError unless the experiment has this data set and each of its patterns finds files."""
    if not experiment.HasField(name):
        raise UserError(f"experiment {experiment.name!r} has no {name}, which this command needs; add it to the config")
    for pattern in getattr(experiment, name).file_pattern:
        if "://" not in pattern and not glob.glob(pattern):
            raise UserError(
                f"{name}.file_pattern {pattern!r} finds no file; convert the data with maxdl-convert, or mend the path"
            )


def run() -> None:
    command_line.run(main, FLAGS)


if __name__ == "__main__":
    run()
