"""The measurements of maxdl-benchmark: functions of an experiment that return metrics for JSON or a table."""

from __future__ import annotations

import functools
import math
import os
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from maxdl_tf.benchmarks import machine, prediction, training
from maxdl_tf.benchmarks.synthetic import synthetic_batch
from maxdl_tf.errors import UserError
from maxdl_tf.export.fold_batch_norm import fold_batch_norms
from maxdl_tf.inference.predictor import Predictor
from maxdl_tf.losses import assignment
from maxdl_tf.models import complexity
from maxdl_tf.protos import experiment_pb2, training_pb2
from maxdl_tf.tasks import checks, run, task_of
from maxdl_tf.tasks.panoptic import PanopticTask
from maxdl_tf.training import distribution


def count(experiment: experiment_pb2.Experiment) -> dict[str, Any]:
    """Counts parameters and multiply-adds.

    Raises:
      UserError: The experiment's model cannot be built.
    """
    task = task_of(experiment)

    def build_model():
        try:
            return task.build_model()
        except ValueError as error:
            raise UserError(str(error)) from error

    return {"crop_size": task.crop_size, **complexity.measure(build_model, task.crop_size)._asdict()}


def train(experiment: experiment_pb2.Experiment, *, steps: int) -> dict[str, Any]:
    """Measures training steps on synthetic batches and one device.

    Args:
      experiment: Experiment with the model and the crop and batch size of train_dataset.
      steps: Number of timed steps.

    Raises:
      UserError: The experiment is not one of panoptic training.
    """
    if not experiment.HasField("train_dataset") or not experiment.training.steps:
        raise UserError(f"experiment {experiment.name!r} does not train: set train_dataset and training.steps")
    started = time.monotonic()
    options = experiment.train_dataset
    task = PanopticTask(experiment, for_training=True)
    distribution.set_intra_op_threads(experiment.training.intra_op_threads)
    strategy = distribution.create_strategy("one_device")
    state = run.build_state(task, strategy)
    parts = experiment.training.accumulate_steps
    batch = synthetic_batch(
        task.dataset_info,
        crop_size=task.crop_size,
        batch_size=options.batch_size // parts,
        max_things=options.max_things,
    )
    batches = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensors(batch).repeat())
    trainer = run.build_trainer(task, state, batches)
    loss = task.build_loss(state.model)
    build_seconds = time.monotonic() - started
    times = training.measure_steps(trainer, state.model, loss, batch, steps=steps, parts=parts)
    valid = loss.target_masks(batch.targets).valid
    similarity = tf.random.uniform([*valid.shape, task.variant.num_slots])
    matching = training.median_seconds(lambda: assignment.assign(similarity, valid), steps)
    # Counted in float32, as casts are no work, and with the semantic branch, which is trained.
    multiply_adds = complexity.measure(PanopticTask(experiment).build_model, task.crop_size).multiply_adds
    is_frozen = experiment.training.freeze != training_pb2.TrainingOptions.nothing
    frozen = complexity.frozen_multiply_adds(task.build_model, task.crop_size) if is_frozen else 0
    work = (frozen + machine.FORWARD_PASSES_OF_A_STEP * (multiply_adds - frozen)) * options.batch_size
    return rounded(
        {
            "crop_size": task.crop_size,
            "batch_size": options.batch_size,
            "device": distribution.describe(strategy),
            "build_seconds": build_seconds,
            **times._asdict(),
            "images_per_second": options.batch_size / times.seconds_per_step,
            "matching_seconds": matching,
            "multiply_adds": multiply_adds,
            **_utilization(work, times.seconds_per_step, task.precision.removeprefix("mixed_")),
        }
    )


def predict(
    experiment: experiment_pb2.Experiment | None,
    model: str | None,
    paths: Sequence[str],
    *,
    rounds: int,
    compute: str = "float32",
) -> dict[str, Any]:
    """Measures the prediction of image files.

    Args:
      experiment: Experiment of the model. None: `model` is an export, and its multiply-adds are unknown.
      model: Path of an export or a checkpoint. None: random weights.
      paths: Image files. None given: drawn ones of about the crop's size.
      rounds: Number of timed predictions of each image.
      compute: "float32", or "bfloat16" for the folded network in that type. Of a SavedModel, it is fixed.
    """
    size = count(experiment) if experiment else {}
    with tempfile.TemporaryDirectory() as folder:
        if checks.find_export(model):
            predictor = Predictor.from_export(model, compute)
            compute = predictor.export_info.get("compute", compute)
            crop_size, weights = _crop_size(model, predictor), _num_weights(model)
            size |= {"weights": weights} if weights else {}
            paths = paths or prediction.draw_images(folder, crop_size)
            times = prediction.measure_export(predictor, paths, folder=folder, rounds=rounds)
        else:
            task = PanopticTask(experiment)
            crop_size = task.crop_size
            folding = [functools.partial(fold_batch_norms, compute=compute)] * (compute != "float32")
            predictor, network = task.build_predictor(model, *folding)
            paths = paths or prediction.draw_images(folder, crop_size)
            times = prediction.measure_model(predictor, network, crop_size, paths, folder=folder, rounds=rounds)
    seconds = times.part_seconds["forward" if "forward" in times.part_seconds else "network"]
    return rounded(
        {
            "model": model or "random weights",
            "device": prediction.device(),
            **size,
            "crop_size": crop_size,
            "images": len(paths),
            "compute": compute,
            **times._asdict(),
            **_utilization(size.get("multiply_adds_without_semantic"), seconds, compute),
        }
    )


def as_table(metrics: dict[str, Any]) -> str:
    """Metrics as a human-readable table: the parts of the time, if it was measured, then the rest."""
    metrics = dict(metrics)
    lines = []
    whole = metrics.pop("end_to_end_seconds", None) or metrics.pop("seconds_per_step", None)
    if whole:
        parts = metrics.pop("part_seconds", None) or {
            name: share * whole for name, share in metrics.pop("shares").items()
        }
        lines = [f"{'part':<14}{'ms':>10}{'share':>9}"]
        lines += [f"{name:<14}{1e3 * s:>10.1f}{s / whole:>9.1%}" for name, s in parts.items()]
        lines += [f"{'whole':<14}{1e3 * whole:>10.1f}{1:>9.1%}", ""]
    for name, value in metrics.items():
        if isinstance(value, dict):
            lines += [f"{f'{name}_{inner}':<42}{number}" for inner, number in value.items()]
        elif name.endswith("_bytes") and value is not None:
            lines.append(f"{name.removesuffix('_bytes'):<42}{value / 2**30:.2f} GiB")
        elif value is not None:
            lines.append(f"{name:<42}{value:,}" if isinstance(value, int) else f"{name:<42}{value}")
    return "\n".join(lines)


def rounded(value: Any) -> Any:
    """Rounds floats to four digits, also in dictionaries."""
    if isinstance(value, dict):
        return {name: rounded(entry) for name, entry in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _utilization(multiply_adds: int | None, seconds: float, dtype: str) -> dict[str, Any]:
    """Measures the machine; compares a model with it whose multiply-adds took this time in this type."""
    speeds = {name: machine.measure_speed(name) for name in dict.fromkeys(("float32", dtype))}
    result: dict[str, Any] = {f"gflops_{name}": speed._asdict() for name, speed in speeds.items()}
    if multiply_adds:
        result["gflops_model"] = machine.model_gflops(multiply_adds, seconds)
        result["utilization"] = machine.utilization(result["gflops_model"], speeds[dtype])
    return result


def _crop_size(path: str, predictor: Predictor) -> list[int]:
    if "crop_size" not in predictor.export_info:
        raise UserError(f"--model {path} does not record its crop size; export it again")
    return predictor.export_info["crop_size"]


def _num_weights(path: str) -> int | None:
    """Number of weights of a SavedModel; None for other formats."""
    if checks.export_format(path) != "saved_model":
        return None
    variables = tf.train.list_variables(os.path.join(path, "variables", "variables"))
    return sum(math.prod(shape) for name, shape in variables if name.endswith("/VARIABLE_VALUE"))
