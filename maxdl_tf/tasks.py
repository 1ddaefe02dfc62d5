"""What an experiment's task decides: which model, by which loss, on which batches, and how it is measured."""

from __future__ import annotations

from types import ModuleType

from maxdl_tf import classification_factory, factory
from maxdl_tf.protos import experiment_pb2

_FACTORIES = {
    experiment_pb2.Experiment.panoptic: factory,
    experiment_pb2.Experiment.classification: classification_factory,
}


def task_of(experiment: experiment_pb2.Experiment) -> ModuleType:
    """The module whose build_model, build_loss, build_train_batches and build_evaluator are those of the task."""
    return _FACTORIES[experiment.task]
