"""The model from outside, on a variant small enough for tests."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.checkpoints.deeplab2_names import published_name, variable_paths
from maxdl_tf.keras_api import keras
from maxdl_tf.models import complexity
from maxdl_tf.models.build import build_panoptic_model
from maxdl_tf.models.variants import VARIANTS

SMALL = replace(
    VARIANTS["tiny"].scaled(width=0.5, stem_width=0.5),
    num_slots=6,
    memory_channels=16,
    memory_head_channels=16,
    transformer_width=8,
    ffn_channels=16,
)


def _build(variant, **arguments):
    arguments = {"num_classes": 3, "num_semantic_channels": 4, "crop_size": (65, 65), **arguments}
    return build_panoptic_model(variant, **arguments)


def _images(height, width, batch=2):
    return np.random.default_rng(1).uniform(0, 255, [batch, height, width, 3]).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    model = _build(SMALL)
    model(_images(65, 65, batch=4), training=True)
    return model


def test_outputs_at_initialization(model):
    outputs = model(_images(65, 65), training=False)
    assert [tuple(output.shape) for output in outputs[:5]] == [
        (2, 17, 17, 32),
        (2, 17, 17, 6),
        (2, 6, 4),
        (2, 17, 17, 4),
        (2, 6, 32),
    ]
    np.testing.assert_allclose(np.linalg.norm(outputs.pixel_feature, axis=-1), 1.0, atol=1e-4)
    void = tf.nn.softmax(outputs.class_logits)[..., -1]
    assert (abs(void - 0.9) < 0.05).numpy().all(), "most slots start as void"
    assert np.abs(outputs.mask_logits).max() < 2.0, "masks begin soft"


def test_images_of_any_size(model):
    """Smaller and larger than the crop, not square; alone as in a batch; with sizes known or unknown when traced."""
    traced = tf.function(model, input_signature=[tf.TensorSpec([None, None, None, 3])])
    for size in ((49, 81), (97, 65)):
        images = _images(*size)
        outputs = model(images, training=False)
        for one, other in zip(traced(images), outputs):
            np.testing.assert_allclose(one, other, atol=2e-4)
        for one, other in zip(model(images[:1], training=False), outputs):
            np.testing.assert_allclose(one, other[:1], atol=2e-4)


def test_side_that_is_not_16k_plus_1(model):
    with pytest.raises(ValueError, match=r"64 x 65.*16k\+1.*64 to 65"):
        model(_images(64, 65), training=False)


def test_an_image_without_batch_dimension(model):
    with pytest.raises(ValueError, match=r"\(65, 65, 3\): wanted \[batch, height, width, 3\]"):
        model(_images(65, 65)[0], training=False)


def test_swapping_slots_swaps_masks(model):
    images = _images(65, 65)
    memory, order = model.backbone.memory, [4, 2, 0, 5, 1, 3]
    for variable in model.trainable_variables:  # Residual branches start at zero and would hide the memory.
        if "gamma" in variable.name:
            variable.assign_add(0.2 * tf.ones_like(variable))
    before, start = model(images, training=False), memory.numpy()
    memory.assign(start[:, order])
    after = model(images, training=False)
    memory.assign(start)
    np.testing.assert_allclose(after.mask_logits, before.mask_logits.numpy()[..., order], atol=1e-3)
    np.testing.assert_allclose(after.class_logits, before.class_logits.numpy()[:, order], atol=1e-3)
    np.testing.assert_allclose(after.pixel_feature, before.pixel_feature, atol=1e-3)


def test_every_variable_learns(model):
    with tf.GradientTape() as tape:
        outputs = model(_images(65, 65), training=True)
        loss = tf.add_n(
            [tf.reduce_sum(output * tf.random.stateless_normal(output.shape, [1, 2])) for output in outputs[:5]]
        )
    gradients = tape.gradient(loss, model.trainable_variables)
    for variable, gradient in zip(model.trainable_variables, gradients):
        assert isinstance(gradient, tf.Tensor), variable.name
        assert np.isfinite(gradient).all(), variable.name
    paths = {variable.ref(): path for path, variable in variable_paths(model, "model").items()}
    slow = {paths[variable.ref()] for variable in model.backbone_variables}
    assert slow == {
        path
        for path in (paths[variable.ref()] for variable in model.trainable_variables)
        if path.startswith("model/backbone/") and "transformers" not in path and not path.endswith("memory")
    }


def _has(model, part):
    return any(part in published_name(path) for path in variable_paths(model, "model"))


@pytest.mark.parametrize(
    ("changes", "there", "gone"),
    [
        ({"pixel_to_pixel": False}, "_stage5/_block1/_conv2_bn_act", "_attention/_height_axis"),
        (
            {"transformer_stages": (3, 5), "decoder_transformer_strides": (8, 16), "transformer_width": 32},
            "_decoder_stage1_extra/_block1_transformer",
            "_decoder_stage2_extra/_block1_transformer",
        ),
        ({"pixel_to_memory": False}, "_memory_attention", "_pixel_attention"),
        ({"decoder_stacks": 1, "pretrained_stacks": 1}, "_decoder_stage6_extra", "semantic_decoder"),
        ({"semantic_branch": False}, "transformer_mask_head", "semantic_last_layer"),
    ],
)
def test_changed_variant(changes, there, gone):
    model = _build(replace(SMALL, **changes))
    assert _has(model, there) and not _has(model, gone)
    outputs = model(_images(65, 49), training=False)
    assert outputs.mask_logits.shape == (2, 17, 13, 6)
    assert (outputs.semantic_logits is None) == ("semantic_branch" in changes)


def test_keras_does_not_save_what_it_could_not_load(model, tmp_path):
    for save in (model.save, lambda path: keras.models.save_model(model, path)):
        with pytest.raises(NotImplementedError, match="maxdl-export"):
            save(str(tmp_path / "model.keras"))
    assert not list(tmp_path.iterdir())


def test_batch_norm_arguments():
    model = _build(SMALL, sync_batch_norm=False, batch_norm_momentum=0.5)
    norms = [layer for layer in model.submodules if layer.__class__.__name__.startswith("BatchNorm")]
    assert {norm.momentum for norm in norms} == {0.5}
    start = model.backbone.stem.conv1.batch_norm.moving_mean.numpy()
    images = _images(65, 65)
    model(images, training=True)
    mean = model.backbone.stem.conv1.conv(np.pad(images / 127.5 - 1.0, ((0, 0), (1, 1), (1, 1), (0, 0))))
    expected = 0.5 * start + 0.5 * mean.numpy().mean((0, 1, 2))
    np.testing.assert_allclose(model.backbone.stem.conv1.batch_norm.moving_mean, expected, atol=1e-4)


@pytest.mark.parametrize(
    "changes", [{"stem": "patches"}, {"convolution_block": "wide"}, {"stages": {2: VARIANTS["tiny"].stages[2]}}]
)
def test_variant_that_makes_no_sense(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        replace(SMALL, **changes)


def test_counting_leaves_earlier_models_usable(model):
    before = model(_images(65, 65), training=False).mask_logits
    complexity.measure(lambda: _build(SMALL), (65, 65))
    np.testing.assert_array_equal(model(_images(65, 65), training=False).mask_logits, before)
