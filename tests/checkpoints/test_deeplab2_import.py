"""All of a model comes from DeepLab2's checkpoint, or an error names what differs and nothing is changed."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maxdl_tf.checkpoints.deeplab2_import import ImportMismatch, import_weights, save_imported
from maxdl_tf.checkpoints.deeplab2_names import published_name, variable_paths
from maxdl_tf.checkpoints.initial_weights import load_initial_weights
from maxdl_tf.checkpoints.save_restore import CheckpointMismatch, load_model_weights
from maxdl_tf.errors import UserError
from maxdl_tf.models.build import build_panoptic_model
from maxdl_tf.models.variants import VARIANTS
from tests.checkpoints.deeplab2_checkpoints import write_deeplab2_checkpoint
from tests.models.test_kmax_deeplab import KMAX_SMALL

SMALL = replace(VARIANTS["tiny"].scaled(0.5, 0.5), num_slots=6)
# Like L: a part of the decoder is pretrained, and the semantic branch needs no decoder of its own.
STACKED = replace(SMALL, decoder_stacks=1, pretrained_stacks=1)
MODELS = {
    "small": SMALL,
    "stacked": STACKED,
    "wide": replace(SMALL, memory_channels=72),
    "plain": replace(SMALL, semantic_branch=False),
    "kmax": KMAX_SMALL,
    "convnext": replace(KMAX_SMALL, encoder="convnext"),
}


@functools.cache
def _model(variant="small", classes=3):
    return build_panoptic_model(
        MODELS[variant], num_classes=classes, num_semantic_channels=classes + 1, crop_size=(33, 33)
    )


def _variables(model):
    return {published_name(path): variable for path, variable in variable_paths(model, "model").items()}


def _values(model) -> dict[str, np.ndarray]:
    return {name: variable.numpy() for name, variable in _variables(model).items()}


def _weights(model) -> dict[str, np.ndarray]:
    """Random ones, by published name."""
    random = np.random.default_rng(1)
    return {name: random.normal(size=v.shape).astype(np.float32) for name, v in _variables(model).items()}


def _pretrained(model) -> set[str]:
    ids = {id(variable) for variable in model.pretrained_variables}
    return {name for name, variable in _variables(model).items() if id(variable) in ids}


def _in_backbone(weights):
    """As Model Garden has it."""
    return {name.replace("encoder/", "backbone/_encoder/"): value for name, value in weights.items()}


def assert_values(model, expected):
    values = _values(model)
    assert values.keys() == expected.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def assert_refused(model, source, complaint, **options):
    before = _values(model)
    with pytest.raises(UserError, match=complaint) as raised:
        import_weights(model, source, **options)
    assert_values(model, before)
    return raised.value


@pytest.mark.parametrize("variant", ["small", "stacked", "kmax", "convnext"])
def test_a_whole_model(tmp_path, variant):
    model = _model(variant)
    weights = _weights(model)
    source = write_deeplab2_checkpoint(tmp_path, weights, step=77)
    imported = import_weights(model, source)
    assert (imported.step, sorted(imported.loaded), imported.initial, imported.left_out) == (
        77,
        sorted(weights),
        [],
        [],
    )
    assert_values(model, weights)

    prefix = save_imported(imported, str(tmp_path / "ours"))
    for variable in model.variables:
        variable.assign(variable * 0.0)
    assert load_model_weights(model, prefix).step == 77
    assert_values(model, weights)


def test_an_encoder_inside_a_backbone(tmp_path):
    model = _model()
    weights = _weights(model)
    import_weights(model, write_deeplab2_checkpoint(tmp_path, _in_backbone(weights)))
    assert_values(model, weights)


@pytest.mark.parametrize(("variant", "classes"), [("stacked", 3), ("wide", 3), ("small", 5)])
def test_another_model_is_told_by_its_first_variables(tmp_path, variant, classes):
    other = _model(variant, classes)
    source = write_deeplab2_checkpoint(tmp_path, _weights(other))
    complaint = {
        "stacked": r"missing from it: encoder/_decoder_stage1_extra/.*unknown here: encoder/_decoder_stage1/.*variant",
        "wide": r"of another shape: encoder/.* instead of .*name a config of its variant and widths",
        "small": r"4 variables are of another shape: semantic_last_layer/bias \(6,\) instead of \(4,\).*has 5 classes",
    }[variant]
    error = assert_refused(_model(), source, complaint)
    assert isinstance(error, ImportMismatch)
    ours, theirs = _variables(_model()), _variables(other)
    assert set(error.difference.missing) == set(ours) - set(theirs)
    assert set(error.difference.unexpected) == set(theirs) - set(ours)
    reshaped = {name for name in set(ours) & set(theirs) if ours[name].shape != theirs[name].shape}
    assert set(error.difference.reshaped) == reshaped


@pytest.mark.parametrize("backbone_only", [False, True])
@pytest.mark.parametrize(
    ("variant", "other", "families"), [("small", "kmax", ["kMaX", "MaX"]), ("kmax", "small", ["MaX", "kMaX"])]
)
def test_the_other_family_is_told_in_a_sentence(tmp_path, variant, other, families, backbone_only):
    source = write_deeplab2_checkpoint(tmp_path, _weights(_model(other)))
    complaint = (
        r"ckpt-123 is a checkpoint of a {0}-DeepLab, but the config's model is a {1}-DeepLab; name a config of a "
        r"{0}-DeepLab$"
    )
    assert_refused(_model(variant), source, complaint.format(*families), backbone_only=backbone_only)


def test_a_missing_item_must_be_allowed(tmp_path):
    model = _model()
    weights = _weights(model)
    without = {name: value for name, value in weights.items() if not name.startswith("semantic_decoder/")}
    source = write_deeplab2_checkpoint(tmp_path, without)
    absent = set(weights) - set(without)
    assert absent
    complaint = rf"{len(absent)} variables are missing from it: semantic_decoder/.*add --allow_missing semantic_decoder"
    assert_refused(model, source, complaint)
    assert_refused(model, source, complaint, allow_missing=["semantic_last_layer"])
    before = _values(model)
    imported = import_weights(model, source, allow_missing=["semantic_decoder"])
    assert set(imported.initial) == absent and set(imported.loaded) == set(without)
    assert_values(model, {name: without.get(name, before[name]) for name in weights})
    assert_refused(model, source, "--allow_missing decoder names no item of the model", allow_missing=["decoder"])
    assert_refused(model, source, "names no item of the model", allow_missing=["semantic_deco"])


def test_a_semantic_branch_that_is_not_wanted(tmp_path):
    source = write_deeplab2_checkpoint(tmp_path, _weights(_model()))
    complaint = r"unknown here: semantic_decoder/.*it has model \{ semantic_branch: true \}; name"
    assert_refused(_model("plain"), source, complaint)


def test_another_shape_must_be_allowed(tmp_path):
    """Published models for Cityscapes have 19 semantic channels, for class ids from 0; ours have 20."""
    model = _model()
    weights = _weights(model)
    last = {"semantic_last_layer/kernel", "semantic_last_layer/bias"}
    fewer = {name: value[..., 1:] if name in last else value for name, value in weights.items()}
    source = write_deeplab2_checkpoint(tmp_path, fewer)
    complaint = r"2 variables are of another shape: semantic_last_layer/bias \(3,\) instead of \(4,\)"
    assert_refused(model, source, complaint)
    assert_refused(model, source, complaint, allow_missing=["semantic_head_without_last_layer"])
    before = _values(model)
    imported = import_weights(model, source, allow_missing=["semantic_last_layer"])
    assert set(imported.initial) == last and set(imported.loaded) == set(weights) - last
    assert_values(model, {name: before[name] if name in last else value for name, value in weights.items()})


def test_a_variable_too_many(tmp_path):
    model = _model()
    weights = {**_weights(model), "encoder/_stage6/_block1/kernel": np.zeros(3, np.float32)}
    complaint = "1 variables are in it but unknown here: encoder/_stage6/_block1/kernel"
    assert_refused(model, write_deeplab2_checkpoint(tmp_path, weights), complaint)


@pytest.mark.parametrize("damage", ["half the index", "half the data", "a wrong byte", "empty index"])
def test_damage(tmp_path, damage):
    model = _model()
    source = write_deeplab2_checkpoint(tmp_path, _weights(model))
    path = Path(source.prefix + (".index" if "index" in damage else ".data-00000-of-00001"))
    content = bytearray(path.read_bytes())
    if damage == "a wrong byte":
        content[len(content) // 2] ^= 255
    path.write_bytes(content[: {"half": len(content) // 2, "empty": 0}.get(damage.split()[0], len(content))])
    with pytest.raises(UserError, match=r"ckpt-123 is damaged: .*; download or copy it again"):
        import_weights(model, source)


@pytest.mark.parametrize(
    ("variant", "layout", "part"),
    [
        ("stacked", dict, "encoder/_decoder_stage1/"),
        ("stacked", _in_backbone, "encoder/_decoder_stage1/"),
        ("kmax", dict, "encoder/_stage5/"),
        ("convnext", dict, "encoder/stages/3/layer_with_weights-0/layer_scale"),
    ],
)
def test_a_backbone(tmp_path, variant, layout, part):
    model = _model(variant)
    pretrained = _pretrained(model)
    weights = {name: value for name, value in _weights(model).items() if name in pretrained}
    assert any(name.startswith(part) for name in weights)
    assert variant == "convnext" or any(name.endswith("/moving_mean") for name in weights)
    head = {"classifier/dense/kernel": np.zeros((4, 10), np.float32), "logits/bias": np.zeros(10, np.float32)}
    source = write_deeplab2_checkpoint(tmp_path, {**layout(weights), **head}, step=9)

    assert_refused(model, source, "unknown here: classifier/dense/kernel, logits/bias; .*add --backbone_only")
    before = _values(model)
    imported = import_weights(model, source, backbone_only=True)
    assert set(imported.loaded) == pretrained and imported.left_out == sorted(head) and imported.initial == []
    assert_values(model, {**before, **weights})

    prefix = save_imported(imported, str(tmp_path / "ours"))
    for variable in model.variables:
        variable.assign(variable * 0.0 + 1.0)
    zeroed = _values(model)
    started = load_initial_weights(model, prefix, log=lambda line: None)
    assert started.is_backbone and {published_name(path) for path in started.loaded} == pretrained
    assert_values(model, {**zeroed, **weights})
    with pytest.raises(CheckpointMismatch):
        load_model_weights(model, prefix)


@pytest.mark.parametrize("variant", ["stacked", "kmax"])
def test_the_backbone_of_a_whole_model(tmp_path, variant):
    model = _model(variant)
    weights, pretrained, before = _weights(model), _pretrained(model), _values(model)
    imported = import_weights(model, write_deeplab2_checkpoint(tmp_path, weights), backbone_only=True)
    assert set(imported.loaded) == pretrained and set(imported.left_out) == set(weights) - pretrained
    assert_values(model, {name: (weights if name in pretrained else before)[name] for name in weights})


def test_a_backbone_must_be_whole_and_of_this_variant(tmp_path):
    model = _model("stacked")
    pretrained = _pretrained(model)
    weights = {name: value for name, value in _weights(model).items() if name in pretrained}
    gone = "encoder/_stem/_conv1_bn_act/_batch_norm/moving_mean"
    part = {name: value for name, value in weights.items() if name != gone}
    source = write_deeplab2_checkpoint(tmp_path / "part", part)
    assert_refused(model, source, f"1 variables are missing from it: {gone};", backbone_only=True)
    more = {**weights, "encoder/_stage1/_block1/_conv1_bn_act/_conv/kernel": np.zeros(3, np.float32)}
    source = write_deeplab2_checkpoint(tmp_path / "more", more)
    assert_refused(model, source, "unknown here: encoder/_stage1/_block1/", backbone_only=True)


def test_one_of_ours_needs_no_import(tmp_path):
    model = _model()
    source = write_deeplab2_checkpoint(tmp_path, {"model/backbone/memory": np.zeros(3, np.float32)})
    assert_refused(model, source, "it is a checkpoint of this package")
