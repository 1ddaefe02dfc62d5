"""The classifier is the panoptic model's pretrained part: the same variables under the same paths, and no others."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.checkpoints.deeplab2_names import variable_paths
from maxdl_tf.models.build import build_image_classifier, build_max_deeplab
from maxdl_tf.models.variants import VARIANTS

# Stem, blocks of all stages, and what of the decoder is not called "extra" (architecture section 7).
PRETRAINED = re.compile(
    r"model/(backbone/(stem|stages/\w+/blocks)|decoder/(stages/decoder_stage\d+/blocks|fuses/decoder_stage\d+))/"
)


@pytest.mark.parametrize("name", ["tiny", "s", "l"])
def test_variables_are_those_of_the_pretrained_part_and_the_classifier(name):
    # In a graph of its own the variables have shapes and names but no memory.
    with tf.Graph().as_default():
        panoptic = build_max_deeplab(VARIANTS[name], num_classes=3, num_semantic_channels=4, crop_size=(65, 65))
        classifier = build_image_classifier(VARIANTS[name], num_classes=7, crop_size=(49, 49))
    wanted = {p: v.shape for p, v in variable_paths(panoptic, "model").items() if PRETRAINED.match(p)}
    found = {path: variable.shape for path, variable in variable_paths(classifier, "model").items()}
    head = {path: found.pop(path) for path in list(found) if path.startswith("model/classifier/")}
    assert found == wanted
    channels = 4 * VARIANTS[name].stages[5].width
    assert head == {"model/classifier/kernel": (channels, 7), "model/classifier/bias": (7,)}
    has_decoder = any(path.startswith("model/decoder/") for path in found)
    assert has_decoder == (VARIANTS[name].pretrained_stacks > 0)


def test_all_of_the_network_is_learned_at_the_full_rate_and_the_classes_are_in_the_last_layer():
    with tf.Graph().as_default():
        model = build_image_classifier(VARIANTS["l"], num_classes=7, crop_size=(49, 49))
    assert model.backbone_variables == []
    assert len(model.pretrained_variables) == len(model.variables) - 2
    assert [tuple(v.shape) for v in model.class_dependent_variables] == [(2048, 7), (7,)]


def small_l():
    """L's parts, its decoder among them, at a width that runs at once."""
    return VARIANTS["l"].scaled(1 / 16, 1 / 8)


def test_features_are_those_of_the_panoptic_model():
    """With the panoptic model's weights, whose transformers start as identities, so that its features are the same."""
    panoptic = build_max_deeplab(small_l(), num_classes=3, num_semantic_channels=4, crop_size=(49, 49))
    model = build_image_classifier(small_l(), num_classes=7, crop_size=(49, 49))
    # Residual branches end in a scale of 0; blocks shall do something here.
    random = np.random.default_rng(0)
    source = variable_paths(panoptic, "model")
    for path, variable in variable_paths(model, "model").items():
        if path in source:
            if "transformers" not in path and path.endswith("gamma"):
                source[path].assign(random.uniform(0.2, 1.0, source[path].shape))
            variable.assign(source[path])
    images = tf.constant(random.uniform(0, 255, (2, 49, 49, 3)), tf.float32)
    features, memory, _ = panoptic.backbone(images / 127.5 - 1.0, training=False)
    features, _, _ = panoptic.decoder((features, memory), (49, 49), training=False)
    pooled = tf.reduce_mean(tf.nn.relu(features["decoder_stage4"]), axis=(1, 2))
    wanted = pooled @ model.classifier.kernel + model.classifier.bias
    assert np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(model(images, training=False), wanted, rtol=1e-4, atol=1e-6)


def test_every_variable_gets_a_gradient():
    model = build_image_classifier(small_l(), num_classes=7, crop_size=(33, 33))
    for variable in model.trainable_variables:  # Scales of 0 would hide what lies behind them.
        if "gamma" in variable.name:
            variable.assign(tf.ones_like(variable))
    images = tf.random.uniform((2, 33, 33, 3), 0, 255)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.nn.log_softmax(model(images, training=True))[:, 0])
    gradients = tape.gradient(loss, model.trainable_variables)
    assert all(gradient is not None for gradient in gradients)
