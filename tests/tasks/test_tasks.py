"""What tasks build from an experiment."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format

from maxdl_tf import class_table
from maxdl_tf.checkpoints.save_restore import Checkpoints, load_model_weights
from maxdl_tf.data.copy_paste import CopyPaste
from maxdl_tf.errors import UserError
from maxdl_tf.models.max_deeplab import MaXDeepLab
from maxdl_tf.protos import dataset_pb2, experiment_pb2, model_pb2
from maxdl_tf.tasks import base, task_of
from maxdl_tf.tasks.panoptic import PanopticTask
from tests.abstract_variables import abstract_variables
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


@pytest.mark.parametrize("variant", ["tiny", "lite"])
def test_a_frozen_backbone_does_not_change(variant):
    text = _EXPERIMENT.replace('"tiny"', f'"{variant}"')
    training = task(text % "float32 freeze: backbone optimizer { warmup_steps: 0 }", for_training=True)
    model = training.build_model()
    optimizers = training.build_optimizers(model)
    frozen = {id(variable) for variable in model.pretrained_variables}
    before = [variable.numpy() for variable in model.variables]
    model(tf.random.uniform([2, 33, 33, 3], maxval=255.0), training=True)
    optimizers.apply([tf.ones_like(variable) for variable in optimizers.variables])
    changed = {id(variable): bool((variable.numpy() != old).any()) for variable, old in zip(model.variables, before)}
    assert len(frozen) > 50 and not any(changed[variable] for variable in frozen)
    # Moving statistics of other batch norms included.
    kept = [v.name for v in model.variables if id(v) not in frozen and not changed[id(v)]]
    assert kept == []


@pytest.mark.parametrize(
    "variant",
    ["lite", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tiny", "kmax_tiny", "kmax_convnext_t"))],
)
def test_no_gradient_is_computed_in_a_frozen_backbone(variant):
    """In a MaX-DeepLab, it still flows back to the first transformer, through frozen blocks."""
    text = _EXPERIMENT.replace(
        '"tiny" width { multiplier: 0.5 stem_multiplier: 0.5 }', f'"{variant}" semantic_branch: false'
    )
    backward = {}
    for freeze in ("nothing", "backbone"):
        training = task(text % f"float32 freeze: {freeze}", for_training=True)
        with abstract_variables():
            model = training.build_model()

            def gradients(images, model=model):
                with tf.GradientTape() as tape:
                    outputs = model(images, training=True)
                    loss = tf.reduce_sum(outputs.mask_logits) + tf.reduce_sum(outputs.class_logits)
                return tape.gradient(loss, model.trainable_variables, unconnected_gradients="zero")

            traced = tf.function(gradients, autograph=False).get_concrete_function(tf.TensorSpec([2, 33, 33, 3]))
        before_transformers = re.compile("gradient_tape/.*/backbone/(stem|stage[1-4])/")
        # What TensorFlow runs: the rest of the graph is pruned.
        pending, behind = [tensor.op for tensor in traced.outputs], set()
        while pending:
            operation = pending.pop()
            if operation.name not in behind:
                behind.add(operation.name)
                pending.extend(tensor.op for tensor in operation.inputs)
        backward[freeze] = sum(bool(before_transformers.search(name)) for name in behind)
    assert backward["nothing"] > 100 and backward["backbone"] == 0


def variant_fields(message, path=()):
    for field in message.fields:
        if field.message_type:
            yield from variant_fields(field.message_type, (*path, field.name))
        else:
            yield ".".join((*path, field.name)), field


_VALUES = {
    "drop_path_keep": 0.25,
    "pretrained_stacks": 2,
    "recompute": model_pb2.ModelOptions.all,
    "transformer_strides": [4, 8],
    "semantic_low_level_channels": [8, 8],
    "multiplier": 2.0,
    "stem_multiplier": 2.0,
    "memory_to_pixel": model_pb2.AttentionOptions.kmeans,
    "output_stride": 2,
    "widths": [8, 8, 8, 8],
    "pixel_decoder.blocks": [1, 1, 1, 1],
    "transformer_decoder.blocks": [1, 1, 1],
}
_OF_KMAX = ("semantic_decoder", "pixel_decoder", "transformer_decoder")
_NOT_OF_THE_VARIANT = {"variant", "batch_norm_momentum", "sync_batch_norm"}


@pytest.mark.parametrize("path", [path for path, _ in variant_fields(model_pb2.ModelOptions.DESCRIPTOR)])
def test_every_model_option_changes_the_variant(path):
    if path in _NOT_OF_THE_VARIANT or path.startswith("postprocess"):
        pytest.skip("is no part of the variant")
    options = model_pb2.ModelOptions(variant="kmax_r50" if path.startswith(_OF_KMAX) else "l")
    expected = base.build_variant(options)
    *outer, name = path.split(".")
    owner = options
    for part in outer:
        owner = getattr(owner, part)
    field = owner.DESCRIPTOR.fields_by_name[name]
    new = not field.default_value if field.type == field.TYPE_BOOL else 64
    value = _VALUES.get(path, _VALUES.get(name, new))
    if isinstance(value, list):
        getattr(owner, name).extend(value)
    else:
        setattr(owner, name, value)
    assert base.build_variant(options) != expected


@pytest.mark.parametrize(
    "text, message",
    [
        ("variant: 's' transformer_decoder { drop_path_keep: 0.5 }", "no transformer_decoder { drop_path_keep }"),
        ("variant: 'kmax_r50' decoder { stacks: 1 }", "'kmax_r50' is a kMaX-DeepLab, which has no decoder { stacks }"),
        ("variant: 'kmax_r50' attention { memory_to_pixel: softmax }", "no attention { memory_to_pixel }"),
    ],
)
def test_an_option_of_the_other_family_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        base.build_variant(text_format.Parse(text, model_pb2.ModelOptions()))


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


def test_widths_that_do_not_fit_the_heads_are_an_error_of_the_user():
    narrow = (_EXPERIMENT % "float32").replace("width { multiplier: 0.5", "width { multiplier: 0.25")
    with pytest.raises(UserError, match=r"cannot be built: .* must be multiples of num_heads 8; change model.width"):
        task(narrow).build_model()
    short = 'model { variant: "kmax_tiny" pixel_decoder { widths: [8, 8] } } train_dataset { crop_size: 33 }'
    with pytest.raises(UserError, match=r"cannot be built: .* too few values, 2; give 4, .* of model's decoders"):
        task(short).build_model()


def test_the_crop_of_evaluation_must_fit_the_network(monkeypatch):
    """Not only that of training, with which the network is built."""
    monkeypatch.setattr(MaXDeepLab, "size_multiple", 32)
    task(_EXPERIMENT % "float32").build_model()
    other = task(_EXPERIMENT % "float32" + "eval_dataset { crop_size: [33, 49] }")
    with pytest.raises(UserError, match=r"images of 33 x 49: each side must be 32k\+1.* or crop_size"):
        other.build_model()


def test_more_slots_than_label_maps_can_number_are_refused():
    few = task(_EXPERIMENT % "float32")
    few.dataset_info = dataclasses.replace(fakes.DATASET_INFO, label_divisor=6)
    with pytest.raises(
        UserError, match=r"^6 slots do not fit below label_divisor 6 .* model.num_slots to at most 5, or convert"
    ):
        few.build_model()


def test_thresholds_are_the_numbers_of_the_config():
    thresholds = task(_EXPERIMENT % "float32").build_postprocessor().thresholds
    assert thresholds == {
        "class_threshold": 0.7,
        "pixel_threshold": 0.4,
        "thing_area_limit": 100,
        "stuff_area_limit": 1600,
    }
    options = "postprocess { kind: mask_wise stuff_class_threshold: 0.3 overlap_threshold: 0.9 }"
    mask_wise = task((_EXPERIMENT % "float32").replace("model {", f"model {{ {options}")).build_postprocessor()
    assert mask_wise.thresholds == {
        **thresholds,
        "stuff_class_threshold": 0.3,
        "overlap_threshold": 0.9,
        "class_exponent": 1.0,
        "mask_exponent": 1.0,
    }
    for text, area, connectivity in (("", 100, 2), ("min_area: 0 connectivity: 1", 0, 1)):
        options = f"postprocess {{ split_things {{ {text} }} }}"
        split = task((_EXPERIMENT % "float32").replace("model {", f"model {{ {options}")).build_postprocessor()
        assert split.thresholds == {**thresholds, "split_min_area": area, "split_connectivity": connectivity}


@pytest.mark.parametrize("kind", ["panoptic", "classification"])
def test_a_missing_class_table_names_its_field(kind):
    text = (_EXPERIMENT % "float32").replace("batch_size: 2", "dataset_info: 'no.textproto'") + f"task: {kind}"
    made = task_of(text_format.Parse(text, experiment_pb2.Experiment()))
    with pytest.raises(UserError, match=r"^train_dataset.dataset_info 'no.textproto' does not exist"):
        made.build_model()


def test_weights_of_other_classes_are_not_loaded(tmp_path):
    (tmp_path / "ckpt-1.index").touch()
    box, floor, wall = fakes.DATASET_INFO.classes
    swapped = (box, dataclasses.replace(floor, name=wall.name), dataclasses.replace(wall, name=floor.name))
    table = dataclasses.replace(fakes.DATASET_INFO, classes=swapped)
    (tmp_path / class_table.FILE_NAME).write_text(class_table.to_text(table))
    with pytest.raises(
        UserError, match="trained with the stuff class 'wall' where 'rectangles' has the stuff class 'floor'"
    ):
        task(_EXPERIMENT % "float32").load_weights(None, str(tmp_path))


def test_augmentation_pastes_only_if_asked():
    def build(text: str):
        return base.build_augmentation(text_format.Parse(text, dataset_pb2.AugmentationOptions()))

    assert build("").copy_paste is None and build("").color_magnitude == 1.0
    assert build("copy_paste {}").copy_paste == CopyPaste()
    weak = build("color_magnitude: 0.2 copy_paste { things: random stuff: none void: all scale: 0.25 }")
    assert weak.color_magnitude == 0.2 and weak.copy_paste == CopyPaste("random", "none", "all", 0.25)
