"""The count of multiply-adds, against small networks counted by hand and the published sizes of S and L."""

import pytest
import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.layers.axial_attention import AxialAttention2D
from maxdl_tf.layers.conv_bn import Conv2DBatchNorm, SeparableConvBatchNorm
from maxdl_tf.layers.dual_path_transformer import DualPathTransformer
from maxdl_tf.models.build import build_max_deeplab, build_panoptic_model
from maxdl_tf.models.complexity import frozen_multiply_adds, measure, multiply_adds
from maxdl_tf.models.variants import VARIANTS


@pytest.fixture(autouse=True)
def graph():
    with tf.Graph().as_default():
        yield


def values(*shape):
    return tf.compat.v1.placeholder(tf.float32, shape)


@pytest.mark.parametrize(
    ("make_layer", "expected"),
    [
        (lambda: Conv2DBatchNorm(7), 9 * 9 * 5 * 7),
        (lambda: Conv2DBatchNorm(7, 3), 9 * 9 * 3 * 3 * 5 * 7),
        (lambda: Conv2DBatchNorm(7, 3, strides=2), 5 * 5 * 3 * 3 * 5 * 7),
        (lambda: Conv2DBatchNorm(7, 3, rate=2), 9 * 9 * 3 * 3 * 5 * 7),
        (lambda: SeparableConvBatchNorm(7, 5), 9 * 9 * (5 * 5 * 5 + 5 * 7)),
        (lambda: keras.layers.DepthwiseConv2D(3, padding="same", dilation_rate=4), 9 * 9 * 3 * 3 * 5),
        (lambda: keras.layers.Dense(7), 9 * 9 * 5 * 7),
        (lambda: keras.layers.BatchNormalization(), 0),
    ],
)
def test_layers(make_layer, expected):
    # Made in the graph of the test: layers made outside of one do not work in it once another graph has had layers.
    assert multiply_adds(make_layer()(values(1, 9, 9, 5), training=False)) == expected


@pytest.mark.parametrize(
    ("product", "expected"),
    [
        (lambda: tf.matmul(values(2, 3), values(3, 5)), 2 * 3 * 5),
        (lambda: tf.matmul(values(3, 2), values(3, 5), transpose_a=True), 2 * 3 * 5),
        (lambda: tf.matmul(values(7, 2, 3), values(7, 5, 3), transpose_b=True), 7 * 2 * 3 * 5),
        (lambda: tf.matmul(values(7, 3, 2), values(7, 3, 5), transpose_a=True), 7 * 2 * 3 * 5),
        (lambda: tf.einsum("bhwd,bnd->bhwn", values(1, 4, 5, 6), values(1, 7, 6)), 4 * 5 * 6 * 7),
        (lambda: tf.einsum("ab,ac->", values(2, 3), values(2, 5)), 2 * 3 * 5),
        (lambda: tf.einsum("abc->b", values(2, 3, 5)), 0),
    ],
)
def test_products(product, expected):
    assert multiply_adds(product()) == expected


def test_axial_attention():
    height, width, channels, key, value = 9, 5, 16, 8, 32
    layer = AxialAttention2D(key, value, num_heads=4)
    expected = 0
    for length, entering in ((height, channels), (width, value)):
        projection = height * width * entering * (2 * key + value)
        # Query . key and the positions of both; values and their positions.
        attention = height * width * length * (3 * key + 2 * value)
        expected += projection + attention
    assert multiply_adds(layer(values(1, height, width, channels), training=False)) == expected


def test_dual_path_transformer():
    pixels, slots, pixel_channels, memory_channels, width, ffn = 9 * 5, 7, 16, 24, 8, 40
    hidden, qkv = 2 * width, 4 * width
    layer = DualPathTransformer(width, ffn, num_heads=4)
    pixel, memory, _ = layer((values(1, 9, 5, pixel_channels), values(1, slots, memory_channels)), training=False)
    pixel_projections = pixels * (pixel_channels * hidden + hidden * qkv)
    memory_projections = slots * (memory_channels * hidden + hidden * qkv)
    pixel_reads = pixels * slots * (width + hidden) + pixels * hidden * pixel_channels
    memory_reads = slots * (pixels + slots) * (width + hidden) + slots * hidden * memory_channels
    memory_reads += slots * 2 * memory_channels * ffn
    for_pixels = pixel_projections + memory_projections + pixel_reads
    assert multiply_adds((pixel, memory)) == for_pixels + memory_reads
    assert multiply_adds(pixel) == for_pixels


def test_only_what_the_outputs_need_and_once():
    first = tf.matmul(values(2, 3), values(3, 5))
    second, third = tf.matmul(first, values(5, 7)), tf.matmul(first, values(5, 11))
    assert multiply_adds(second) == 2 * 3 * 5 + 2 * 5 * 7
    assert multiply_adds([second, None, {"a": third}]) == 2 * 3 * 5 + 2 * 5 * 7 + 2 * 5 * 11


def test_what_cannot_be_counted_stops_the_count():
    with pytest.raises(ValueError, match=r"kind Conv3D, of which is not known whether it multiplies; say in"):
        multiply_adds(tf.nn.relu(tf.nn.conv3d(values(1, 3, 3, 3, 2), values(1, 1, 1, 2, 2), [1] * 5, "SAME")))
    with pytest.raises(ValueError, match=r"\(MatMul\) has the shape \(None, 3\), not all of it known; give"):
        multiply_adds(tf.matmul(values(None, 3), values(3, 5)))
    with pytest.raises(ValueError, match=r"'...ab,...bc->...ac' do not all have letters"):
        multiply_adds(tf.einsum("...ab,...bc->...ac", values(2, 3, 5), values(2, 5, 7)))


@pytest.mark.parametrize(
    ("name", "parameters", "billions"),
    [("s", 61_900_200, 325.8), pytest.param("l", 450_763_880, 3691.9, marks=pytest.mark.slow)],
)
def test_published_sizes(name, parameters, billions):
    """At 1025 x 1025, without the auxiliary branch."""
    counted = measure(
        lambda: build_max_deeplab(VARIANTS[name], num_classes=133, num_semantic_channels=134, crop_size=(1025, 1025)),
        (1025, 1025),
    )
    assert counted.parameters_without_semantic == parameters
    assert counted.multiply_adds_without_semantic / 1e9 == pytest.approx(billions, abs=0.05)
    assert counted.parameters > parameters and counted.multiply_adds > counted.multiply_adds_without_semantic


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("kmax_r50", 293.4),
        pytest.param("kmax_axial_r50", 419.8, marks=pytest.mark.slow),
        pytest.param("kmax_convnext_t", 301.9, marks=pytest.mark.slow),
        pytest.param("kmax_convnext_b", 668.6, marks=pytest.mark.slow),
    ],
)
def test_sizes_of_kmax(name, billions):
    """At 1281 x 1281, without the auxiliary branch."""
    counted = measure(
        lambda: build_panoptic_model(
            VARIANTS[name], num_classes=133, num_semantic_channels=134, crop_size=(1281, 1281)
        ),
        (1281, 1281),
    )
    assert counted.multiply_adds_without_semantic / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize(
    ("trainable", "frozen"),
    [((True, True, True), 0), ((False, True, True), 4), ((False, False, True), 4 + 6), ((True, False, False), 0)],
)
def test_layers_before_the_first_trained_one_need_no_gradient(trainable, frozen):
    """Three pointwise convolutions of 3 to 4, 6 and 5 channels; those behind a trained one pass its gradient on."""

    def build_model():
        layers = [keras.layers.Conv2D(channels, 1) for channels in (4, 6, 5)]
        for layer, is_trainable in zip(layers, trainable):
            layer.trainable = is_trainable
        return keras.Sequential(layers)

    pixels = 7 * 9
    assert frozen_multiply_adds(build_model, (7, 9)) == pixels * {0: 0, 4: 3 * 4, 10: 3 * 4 + 4 * 6}[frozen]
