"""A training starts from all of a checkpoint, from all but the heads of other classes, or from a backbone; or not."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.checkpoints import save_restore
from maxdl_tf.checkpoints.deeplab2_import import variable_tree
from maxdl_tf.checkpoints.initial_weights import load_initial_weights
from maxdl_tf.checkpoints.keys import name_of, variables_by_key
from maxdl_tf.checkpoints.save_restore import CheckpointMismatch, Checkpoints, NonFiniteModelError, load_model_weights
from maxdl_tf.errors import UserError
from maxdl_tf.models.build import build_image_classifier, build_panoptic_model
from maxdl_tf.models.variants import VARIANTS
from tests.checkpoints.test_compare import expand
from tests.models.test_kmax_deeplab import KMAX_SMALL

# Like L, a part of the decoder belongs to the pretrained backbone.
VARIANT = replace(VARIANTS["tiny"].scaled(0.5, 0.5), decoder_stacks=1, pretrained_stacks=1, num_slots=6)
KMAX = replace(KMAX_SMALL, transformer_decoder_blocks=(1, 0, 1))
CROP = (33, 33)


def _model(classes=3, semantic=4, variant=VARIANT, **departures):
    variant = replace(variant, **departures)
    return build_panoptic_model(variant, num_classes=classes, num_semantic_channels=semantic, crop_size=CROP)


def _classifier(classes=5, variant=VARIANT):
    return build_image_classifier(variant, num_classes=classes, crop_size=CROP)


def _variables(model) -> dict[str, tf.Variable]:
    return {name_of(key): value for key, value in variables_by_key(tf.train.Checkpoint(model=model)).items()}


def _values(model) -> dict[str, np.ndarray]:
    return {name: variable.numpy() for name, variable in _variables(model).items()}


def _save(model, folder: Path) -> tuple[str, dict[str, np.ndarray]]:
    """A checkpoint of the model with random values, moving statistics too, and these values."""
    random = np.random.default_rng(0)
    for variable in _variables(model).values():
        variable.assign(random.normal(size=variable.shape))
    step = tf.Variable(7, dtype=tf.int64)
    return Checkpoints(str(folder), model=model, global_step=step, log=lambda line: None).save(), _values(model)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return _save(_model(), tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return _save(_classifier(), tmp_path_factory.mktemp("classifier"))


@functools.cache
def _shared_model():
    """One that tests may change."""
    return _model()


def assert_loaded(model, before, saved, names):
    """These variables have the saved values, all others those of before."""
    for name, value in _values(model).items():
        np.testing.assert_array_equal(value, saved[name] if name in names else before[name], err_msg=name)


def test_everything_fits(whole):
    path, saved = whole
    model, said = _shared_model(), []
    for place in (path, str(Path(path).parent)):
        before = _values(model)
        weights = load_initial_weights(model, place, said.append)
        assert (weights.path, set(weights.loaded), weights.initial) == (path, set(saved), [])
        assert_loaded(model, before, saved, set(saved))
    assert said[0] == f"starting from {path}: all {len(saved)} variables of the model are loaded"


HEADS = {f"model/{head}_head/logits/{part}" for head in ("class", "semantic") for part in ("kernel", "bias")}


@pytest.mark.parametrize(
    ("classes", "semantic", "heads"),
    [(5, 6, HEADS), (5, 4, {name for name in HEADS if "class_head" in name})],
)
def test_another_number_of_classes_leaves_their_heads_alone(whole, classes, semantic, heads):
    path, saved = whole
    model, said = _model(classes, semantic), []
    before = _values(model)
    weights = load_initial_weights(model, path, said.append)
    assert set(weights.initial) == heads and set(weights.loaded) == set(saved) - heads
    assert_loaded(model, before, saved, set(saved) - heads)
    assert len(said) == 1 and all(name in said[0] for name in heads)


def test_a_backbone_fills_the_pretrained_part(classifier):
    path, saved = classifier
    model, said = _shared_model(), []
    before = _values(model)
    weights = load_initial_weights(model, path, said.append)
    backbone = {name for name in saved if not name.startswith("model/classifier/")}
    assert set(weights.loaded) == backbone and set(weights.initial) == set(before) - backbone
    assert any("moving_mean" in name for name in backbone) and any(
        name.startswith("model/decoder/") for name in backbone
    )
    assert_loaded(model, before, saved, backbone)
    assert f"{len(backbone)} variables are loaded, the other {len(before) - len(backbone)}" in said[0]
    assert set().union(*(expand(line.strip()) for line in said[1:])) == backbone
    with pytest.raises(CheckpointMismatch):
        load_model_weights(model, path)


@pytest.fixture(scope="module")
def kmax():
    return _model(5, 6, KMAX)


def test_a_kmax_deeplab_of_other_classes(tmp_path, kmax):
    """The heads inside the transformers depend on the classes, too."""
    path, saved = _save(_model(variant=KMAX), tmp_path)
    before = _values(kmax)
    weights = load_initial_weights(kmax, path, lambda line: None)
    aux = {f"model/transformer_decoder/transformers/{i}/predictor/class_head/logits" for i in (0, 1)}
    layers = aux | {"model/predictor/class_head/logits", "model/semantic_head/logits"}
    assert set(weights.initial) == {f"{layer}/{part}" for layer in layers for part in ("kernel", "bias")}
    assert_loaded(kmax, before, saved, set(saved) - set(weights.initial))


def test_the_encoder_of_a_kmax_deeplab(tmp_path, kmax):
    path, saved = _save(_classifier(variant=KMAX), tmp_path)
    before = _values(kmax)
    weights = load_initial_weights(kmax, path, lambda line: None)
    assert weights.is_backbone
    encoder = {name for name in before if name.startswith("model/backbone/")}
    assert set(weights.loaded) == encoder == {name for name in saved if not name.startswith("model/classifier/")}
    assert_loaded(kmax, before, saved, encoder)


def test_one_classifier_starts_from_another(classifier):
    path, saved = classifier
    model = _classifier(8)
    before = _values(model)
    weights = load_initial_weights(model, path, lambda line: None)
    assert set(weights.initial) == {"model/classifier/kernel", "model/classifier/bias"}
    assert_loaded(model, before, saved, set(weights.loaded))


@pytest.mark.parametrize(
    ("departures", "complaint"),
    [
        ({"num_slots": 7}, r"model/backbone/memory \(1, 6, \d+\) instead of \(1, 7, \d+\); only the number of classes"),
        ({"semantic_branch": False}, r"unknown here: model/semantic_head.*set model.semantic_branch to true"),
        ({"decoder_stacks": 2}, "missing from it: model/decoder/"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_changed(whole, departures, complaint):
    model = _model(**departures)
    before = _values(model)
    with pytest.raises(CheckpointMismatch, match=complaint):
        load_initial_weights(model, whole[0])
    assert_loaded(model, before, {}, set())


def test_a_checkpoint_without_the_semantic_branch(tmp_path):
    path, _ = _save(_model(semantic_branch=False), tmp_path)
    with pytest.raises(CheckpointMismatch, match=r"missing from it: model/semantic_head.*semantic_branch to false"):
        load_initial_weights(_shared_model(), path)
    with pytest.raises(CheckpointMismatch, match=r"semantic_branch to false"):
        load_initial_weights(_model(classes=9), path)


def test_a_backbone_of_another_width(classifier):
    wider = _model(stages=VARIANTS["tiny"].stages)
    with pytest.raises(CheckpointMismatch, match=r"seems to be of a backbone.*instead of"):
        load_initial_weights(wider, classifier[0])


def test_a_part_of_a_backbone_is_none(tmp_path, classifier):
    variables = _variables(_classifier())
    tree = variable_tree({name[6:]: variables[name] for name in variables if "/stage5/" not in name})
    path, _ = _save(tree, tmp_path)
    with pytest.raises(CheckpointMismatch, match=r"seems to be of a backbone.*missing from it: model/.*/stage5/"):
        load_initial_weights(_shared_model(), path)


def test_no_checkpoint_and_a_foreign_one(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in initial_checkpoint"):
        load_initial_weights(_shared_model(), str(tmp_path))
    with pytest.raises(UserError, match="cannot read initial_checkpoint"):
        load_initial_weights(_shared_model(), str(tmp_path / "ckpt-1"))
    foreign = tf.train.Checkpoint(encoder=tf.Variable(1.0)).write(str(tmp_path / "ckpt-1"))
    with pytest.raises(CheckpointMismatch, match="maxdl-import-checkpoint"):
        load_initial_weights(_shared_model(), foreign)


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path):
    model = _classifier()
    path, saved = _save(model, tmp_path)
    for suffix in (".index", ".data-00000-of-00001"):
        content = Path(path + suffix).read_bytes()
        (tmp_path / f"ckpt-9{suffix}").write_bytes(content[: len(content) // 2])
    said = []
    weights = load_initial_weights(model, str(tmp_path), said.append)
    assert weights.path == path and "ckpt-9 is incomplete" in said[0]
    assert_loaded(model, {}, saved, set(saved))
    with pytest.raises(UserError, match="cannot read initial_checkpoint"):
        load_initial_weights(model, str(tmp_path / "ckpt-9"))


def test_weights_that_are_not_finite_are_refused(tmp_path, monkeypatch):
    model = _shared_model()
    variable = model.trainable_variables[0]
    monkeypatch.setattr(save_restore, "_is_finite", lambda variable: True)  # As earlier versions saved.
    variable.assign(tf.fill(variable.shape, np.inf))
    path = Checkpoints(str(tmp_path), model=model, global_step=tf.Variable(7, dtype=tf.int64)).save()
    with pytest.raises(
        NonFiniteModelError, match=rf"^initial_checkpoint {path}: variable model/.* is not finite; take"
    ):
        load_initial_weights(model, path)
    variable.assign(tf.zeros_like(variable))
