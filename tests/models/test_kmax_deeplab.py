"""kMaX-DeepLab and k-means in MaX-DeepLab from outside, on variants small enough for tests."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.dual_path_transformer import sum_of_clusters
from maxdl_tf.models.variants import VARIANTS
from tests.models.test_max_deeplab import SMALL, _build, _images

KMAX_SMALL = replace(
    VARIANTS["kmax_tiny"].scaled(width=0.5, stem_width=0.5),
    num_slots=6,
    memory_channels=16,
    transformer_width=8,
    ffn_channels=16,
    pixel_decoder_widths=(16, 8, 8, 4, 4),
    pixel_decoder_blocks=(1, 1, 1, 1, 1),
)
SIZES = {  # Sides of masks, auxiliary masks before resizing, and semantic logits for an image of 65 x 97.
    "kmax": (KMAX_SMALL, (17, 25), 6, (17, 25)),
    "convnext": (replace(KMAX_SMALL, encoder="convnext"), (17, 25), 6, (17, 25)),
    "stride 2": (replace(KMAX_SMALL, output_stride=2, semantic_decoder=False), (33, 49), 6, (3, 4)),
    "one transformer": (replace(KMAX_SMALL, transformer_decoder_blocks=(0, 1), grid_slots=True), (17, 25), 1, (17, 25)),
    "stride 2 in max": (replace(SMALL, output_stride=2, grid_slots=True), (33, 49), 0, (17, 25)),
    "k-means in max": (replace(SMALL, memory_to_pixel="kmeans"), (17, 25), 2, (17, 25)),
}


@pytest.fixture(scope="module", params=SIZES)
def built(request):
    variant, *sizes = SIZES[request.param]
    return _build(variant), variant, *sizes


def test_outputs(built):
    model, variant, size, num_auxiliary, semantic_size = built
    outputs = model(_images(65, 97), training=False)
    assert outputs.auxiliary == ()
    assert outputs.mask_logits.shape == (2, *size, 6)
    assert outputs.class_logits.shape == (2, 6, 4)
    assert outputs.semantic_logits.shape == (2, *semantic_size, 4)
    assert outputs.mask_embedding.shape == (2, 6, variant.mask_channels)
    assert (64 // model.output_stride + 1, 64 // model.semantic_stride + 1) == (size[0], semantic_size[0])
    training = model(_images(65, 97), training=True)
    assert len(training.auxiliary) == model.num_auxiliary_outputs == num_auxiliary
    for auxiliary in training.auxiliary:
        assert auxiliary.mask_logits.shape == training.mask_logits.shape
        assert auxiliary.pixel_feature.shape == training.pixel_feature.shape
        assert auxiliary.class_logits.shape == training.class_logits.shape


def test_every_variable_learns(built):
    model, *_ = built
    with tf.GradientTape() as tape:
        outputs = tf.nest.flatten(model(_images(65, 65), training=True))
        loss = tf.add_n([tf.reduce_sum(x * tf.random.stateless_normal(x.shape, [1, 2])) for x in outputs])
    for variable, gradient in zip(model.trainable_variables, tape.gradient(loss, model.trainable_variables)):
        assert isinstance(gradient, tf.Tensor), variable.name
        assert np.isfinite(gradient).all(), variable.name


def test_recomputing_changes_no_result():
    images, cotangent = _images(65, 65), tf.random.stateless_normal([2, 17, 17, 6], [1, 2])
    found = []
    for option in ("none", "all"):
        keras.utils.set_random_seed(0)
        model = _build(replace(KMAX_SMALL, recompute=option))
        with tf.GradientTape() as tape:
            outputs = model(images, training=True)
            masks = [outputs.mask_logits, *(auxiliary.mask_logits for auxiliary in outputs.auxiliary)]
            loss = tf.add_n([tf.reduce_sum(mask * cotangent) for mask in masks])
        gradients = tape.gradient(loss, model.trainable_variables, unconnected_gradients="zero")
        moving = [variable for variable in model.variables if not variable.trainable]
        found.append([loss, *gradients, *moving])
    for value, reference in zip(*found):
        np.testing.assert_allclose(value, reference, rtol=1e-3, atol=1e-3)


def test_clusters_are_summed_without_a_gradient_of_the_choice():
    logits = tf.constant([[[[2.0, 1.0, 2.0], [0.0, 3.0, 1.0]]]])  # The first of two equal slots wins.
    values = tf.constant([[[1.0, 10.0], [2.0, 20.0]]])
    with tf.GradientTape() as tape:
        tape.watch((logits, values))
        sums = sum_of_clusters(logits, values)
        loss = tf.reduce_sum(sums * [[[1.0, 1.0], [5.0, 5.0], [7.0, 7.0]]])
    np.testing.assert_array_equal(sums, [[[1.0, 10.0], [2.0, 20.0], [0.0, 0.0]]])
    of_logits, of_values = tape.gradient(loss, (logits, values))
    assert of_logits is None
    np.testing.assert_array_equal(of_values, [[[1.0, 1.0], [5.0, 5.0]]])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"pixel_decoder_widths": (8, 8)}, "widths } has too few values, 2; give 4, one for each stage"),
        ({"transformer_decoder_blocks": (0, 0)}, "at least one"),
        ({"output_stride": 8}, "output_stride 8: must be one of 2, 4"),
    ],
)
def test_variants_that_cannot_be_built(changes, message):
    with pytest.raises(ValueError, match=message):
        _build(replace(KMAX_SMALL, **changes))


def test_sides_of_32k_plus_1():
    with pytest.raises(ValueError, match=r"81 x 65: each side must be 32k\+1.*81 to 97"):
        _build(KMAX_SMALL)(_images(81, 65))
