"""What tasks build from an experiment."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format

from maxdl_tf.checkpoints.save_restore import Checkpoints, load_model_weights
from maxdl_tf.errors import UserError
from maxdl_tf.protos import experiment_pb2
from maxdl_tf.tasks import base, task_of
from maxdl_tf.tasks.panoptic import PanopticTask
from tests.training import fakes

_EXPERIMENT = """
    model { variant: "tiny" width { multiplier: 0.5 stem_multiplier: 0.5 } num_slots: 6 }
    train_dataset { crop_size: 33 batch_size: 2 }
    training { steps: 10 precision: %s }
"""


def compute_dtypes(model) -> set[str]:
    return {layer.compute_dtype for layer in model.submodules if hasattr(layer, "compute_dtype")}


def task(text: str, *, for_training: bool = False) -> base.Task:
    """The task of an experiment, with the class table of the fakes."""
    made = task_of(text_format.Parse(text, experiment_pb2.Experiment()), for_training=for_training)
    made.dataset_info = fakes.DATASET_INFO
    return made


def test_an_experiment_of_mixed_precision_is_a_float32_model_outside_of_training(tmp_path):
    training = task(_EXPERIMENT % "mixed_float16", for_training=True)
    trained = training.build_model()
    assert "float16" in compute_dtypes(trained)
    optimizers = training.build_optimizers(trained)
    assert optimizers.loss_scale is not None
    for variable in trained.variables:
        variable.assign(tf.random.normal(variable.shape))
    step = tf.Variable(3, dtype=tf.int64)
    Checkpoints(str(tmp_path), model=trained, global_step=step, optimizers=optimizers.by_name).save()

    # As maxdl-eval, maxdl-export and maxdl-predict do.
    model = task(_EXPERIMENT % "mixed_float16").build_model()
    assert compute_dtypes(model) == {"float32"}
    assert load_model_weights(model, str(tmp_path)).model_variables == len(trained.variables)
    for ours, expected in zip(model.get_weights(), trained.get_weights()):
        np.testing.assert_array_equal(ours, expected)


def test_a_classifier_trains_in_mixed_precision_too():
    experiment = _EXPERIMENT % "mixed_bfloat16" + "task: classification"
    training = task(experiment, for_training=True)
    trained = training.build_model()
    assert "bfloat16" in compute_dtypes(trained)
    assert training.build_optimizers(trained).loss_scale is None
    assert compute_dtypes(task(experiment).build_model()) == {"float32"}


def test_a_task_refuses_the_experiment_of_another():
    experiment = text_format.Parse('name: "it" task: classification', experiment_pb2.Experiment())
    with pytest.raises(UserError, match="'it' has task: classification, but this needs task: panoptic"):
        PanopticTask(experiment)


def test_training_and_inference_take_the_data_set_that_they_are_about():
    text = _EXPERIMENT % "float32" + "eval_dataset { crop_size: 49 crop_size: 65 }"
    assert task(text, for_training=True).crop_size == (33, 33)
    assert task(text).crop_size == (49, 65)
    only_trained = _EXPERIMENT % "float32"
    assert task(only_trained).crop_size == (33, 33)
    with pytest.raises(UserError, match="neither train_dataset nor eval_dataset"):
        task("model { variant: 'tiny' }")
