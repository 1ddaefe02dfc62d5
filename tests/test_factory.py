"""What experiments become."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from google.protobuf import text_format

from maxdl_tf import classification_factory, factory
from maxdl_tf.checkpoints.save_restore import Checkpoints, load_model_weights
from maxdl_tf.protos import experiment_pb2
from tests.training import fakes

_EXPERIMENT = """
    model { variant: "tiny" width { multiplier: 0.5 stem_multiplier: 0.5 } num_slots: 6 }
    train_dataset { crop_size: 33 batch_size: 2 }
    training { steps: 10 precision: %s }
"""


def compute_dtypes(model) -> set[str]:
    return {layer.compute_dtype for layer in model.submodules if hasattr(layer, "compute_dtype")}


def test_an_experiment_of_mixed_precision_is_a_float32_model_outside_of_training(tmp_path):
    experiment = text_format.Parse(_EXPERIMENT % "mixed_float16", experiment_pb2.Experiment())
    trained = factory.build_model(experiment, fakes.DATASET_INFO, for_training=True)
    assert "float16" in compute_dtypes(trained)
    optimizers = factory.build_optimizers(experiment, trained)
    assert optimizers.loss_scale is not None
    for variable in trained.variables:
        variable.assign(tf.random.normal(variable.shape))
    step = tf.Variable(3, dtype=tf.int64)
    Checkpoints(str(tmp_path), model=trained, global_step=step, optimizers=optimizers.by_name).save()

    # As maxdl-eval, maxdl-export and maxdl-predict do.
    model = factory.build_model(experiment, fakes.DATASET_INFO)
    assert compute_dtypes(model) == {"float32"}
    assert load_model_weights(model, str(tmp_path)).model_variables == len(trained.variables)
    for ours, expected in zip(model.get_weights(), trained.get_weights()):
        np.testing.assert_array_equal(ours, expected)


def test_a_classifier_trains_in_mixed_precision_too():
    experiment = text_format.Parse(_EXPERIMENT % "mixed_bfloat16", experiment_pb2.Experiment())
    trained = classification_factory.build_model(experiment, fakes.DATASET_INFO, for_training=True)
    assert "bfloat16" in compute_dtypes(trained)
    assert factory.build_optimizers(experiment, trained).loss_scale is None
    assert compute_dtypes(classification_factory.build_model(experiment, fakes.DATASET_INFO)) == {"float32"}
