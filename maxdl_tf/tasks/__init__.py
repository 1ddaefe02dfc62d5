"""Tasks: what an experiment trains and evaluates, and the wiring of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maxdl_tf.protos import experiment_pb2
    from maxdl_tf.tasks.base import Task


def task_of(experiment: experiment_pb2.Experiment, *, for_training: bool = False) -> Task:
    """Returns the task of an experiment; see `Task` for the arguments."""
    # Imported here because maxdl_tf.tasks.checks runs before TensorFlow is imported.
    from maxdl_tf.tasks.classification import ClassificationTask
    from maxdl_tf.tasks.panoptic import PanopticTask

    tasks = {task.kind: task for task in (PanopticTask, ClassificationTask)}
    return tasks[experiment.task](experiment, for_training=for_training)
