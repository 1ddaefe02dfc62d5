"""One test that every layer passes, and tests of single layers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.keras_api import computing_in, keras
from maxdl_tf.layers.aspp import ASPP
from maxdl_tf.layers.axial_attention import AxialAttention2D, SelfAttention1D
from maxdl_tf.layers.batch_norm import Norm
from maxdl_tf.layers.conv_bn import Conv2DBatchNorm, SeparableConvBatchNorm
from maxdl_tf.layers.dropout import Dropout, DropPath
from maxdl_tf.layers.dual_path_transformer import CrossAttention, DualPathTransformer
from maxdl_tf.layers.grid_seed import GridSeed
from maxdl_tf.layers.recompute import recomputed
from maxdl_tf.layers.residual_block import AxialBlock, BasicBlock, BottleneckBlock
from maxdl_tf.layers.resized_fuse import ResizedFuse
from maxdl_tf.models.convnext import ConvNeXtBlock, Downsample, PatchStem
from maxdl_tf.models.efficientnet_lite import MBConv, Stem
from maxdl_tf.models.encoder import InceptionStem, Stage
from maxdl_tf.models.heads import ClassHead, MaskHead, PixelHead, SemanticHead


class _FuseTo9(ResizedFuse):
    """A fuse of known size, because the shared test calls layers with inputs only."""

    def call(self, inputs, training=None):
        return super().call(inputs, (9, 9), training=training)


def _features(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


PIXEL, MEMORY = _features(2, 9, 7, 8), _features(2, 5, 6)
LAYERS = {
    "conv_2d": (lambda: Conv2DBatchNorm(4, 3, strides=2), PIXEL),
    "conv_2d_atrous": (lambda: Conv2DBatchNorm(4, 3, rate=2, norm=Norm(0.9, synchronized=True)), PIXEL),
    "axial_attention": (lambda: AxialAttention2D(8, 16), PIXEL),
    "separable_conv": (lambda: SeparableConvBatchNorm(4), PIXEL),
    "inception_stem": (lambda: InceptionStem(4), PIXEL),
    "basic_block": (lambda: BasicBlock(8, drop_path_keep=0.5), PIXEL),
    "bottleneck_block": (lambda: BottleneckBlock(4, 16, strides=2), PIXEL),
    "axial_block": (lambda: AxialBlock(4, 8, num_heads=4), PIXEL),
    "strided_axial_block": (lambda: AxialBlock(4, 8, strides=2, num_heads=4, activation="gelu"), PIXEL),
    "patch_stem": (lambda: PatchStem(6), PIXEL),
    "downsample": (lambda: Downsample(6), PIXEL),
    "convnext_block": (lambda: ConvNeXtBlock(8, drop_path_keep=0.5), PIXEL),
    "lite_stem": (lambda: Stem(6), PIXEL),
    "mb_conv": (lambda: MBConv(24, 8, drop_path_keep=0.5), PIXEL),
    "strided_mb_conv": (lambda: MBConv(8, 6, 5, strides=2), PIXEL),
    "self_attention": (lambda: SelfAttention1D(8, 16), PIXEL[0]),
    "cross_attention": (CrossAttention, (_features(2, 3, 8, 2), _features(2, 5, 8, 2), _features(2, 5, 8, 4))),
    "transformer": (lambda: DualPathTransformer(8, 12, drop_path_keep=0.5), (PIXEL, MEMORY)),
    "transformer_with_positions": (lambda: DualPathTransformer(8, 12, position_octaves=3), (PIXEL, MEMORY)),
    "grid_seed": (lambda: GridSeed(position_octaves=2), (PIXEL, MEMORY)),
    "fuse": (lambda: _FuseTo9(6, stride=8, source_strides=(16, 8)), (_features(2, 5, 5, 4), _features(2, 9, 9, 6))),
    "stage": (lambda: Stage({"block1": BasicBlock(8)}, {"block1": DualPathTransformer(8, 12)}), (PIXEL, MEMORY)),
    "pixel_head": (lambda: PixelHead(6, 4), PIXEL),
    "positioned_pixel_head": (lambda: PixelHead(6, 4, position_octaves=3), PIXEL),
    "mask_head": (lambda: MaskHead(6, 8), (PIXEL, MEMORY)),
    "class_head": (lambda: ClassHead(6, 3), MEMORY),
    "semantic_head": (lambda: SemanticHead(6, 4), PIXEL),
    "aspp_of_small_image": (lambda: ASPP(4, rates=(1, 2, 3), pool_size=(11, 5), dropout=0.0), PIXEL),
    "aspp": (lambda: ASPP(4, rates=(1, 2, 3), pool_size=(5, 5), dropout=0.1), PIXEL),
}


@pytest.mark.parametrize("name", LAYERS)
def test_eager_graph_training_and_mixed_precision(name):
    make, inputs = LAYERS[name]
    layer = make()
    eager = tf.nest.flatten(layer(inputs, training=False))

    # Traced with only the channels (and heads) known.
    known = 2 if name == "cross_attention" else 1
    signature = tf.nest.map_structure(lambda x: tf.TensorSpec([None] * (x.ndim - known) + [*x.shape[-known:]]), inputs)
    graph = tf.function(lambda x: layer(x, training=False), input_signature=[signature], autograph=False)
    for ours, expected in zip(tf.nest.flatten(graph(inputs)), eager):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)

    # Training reaches every weight. The last batch norms start at 0, so give all weights some size first.
    for weight in layer.trainable_weights:
        weight.assign_add(0.1 * _features(*weight.shape))
    moving = [weight.numpy() for weight in layer.non_trainable_weights]
    with tf.GradientTape() as tape:
        outputs = layer(inputs, training=True)
        loss = tf.add_n([tf.reduce_sum(output * _features(*output.shape)) for output in tf.nest.flatten(outputs)])
    for weight, gradient in zip(layer.trainable_weights, tape.gradient(loss, layer.trainable_weights)):
        assert gradient is not None and np.isfinite(gradient).all(), weight.name
    assert all((weight.numpy() != old).any() for weight, old in zip(layer.non_trainable_weights, moving))

    full = tf.nest.flatten(layer(inputs, training=False))
    with computing_in("mixed_bfloat16"):
        half = make()
        half(inputs, training=False)
    half.set_weights(layer.get_weights())
    assert all(weight.dtype == tf.float32 for weight in half.weights)
    for ours, expected in zip(tf.nest.flatten(half(inputs, training=False)), full):
        assert ours.dtype == (tf.float32 if name.endswith("_head") else tf.bfloat16)
        error = np.abs(tf.cast(ours, tf.float32) - expected)
        assert error.mean() < 0.05 * max(np.abs(expected).mean(), 0.1)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "stage"])
def test_a_layer_made_of_a_config_is_the_same(name, policy):
    make, inputs = LAYERS[name]
    with computing_in(policy):
        layer = _with_weights(make(), inputs)
    written = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    for again in (type(layer).from_config(written["config"]), keras.saving.deserialize_keras_object(written)):
        assert type(again) is type(layer) and json.dumps(again.get_config()) == json.dumps(layer.get_config())
        again(inputs, training=False)
        again.set_weights(layer.get_weights())
        outputs = [tf.nest.flatten(one(inputs, training=False)) for one in (layer, again)]
        for expected, ours in zip(*outputs):
            assert ours.dtype == expected.dtype
            np.testing.assert_array_equal(tf.cast(ours, tf.float32), tf.cast(expected, tf.float32))


def test_containers_say_that_they_have_no_config():
    with pytest.raises(NotImplementedError):
        Stage({"block1": BasicBlock(8)}, {}).get_config()


def test_drop_path():
    x = tf.ones([2000, 3, 2])
    drop_path = DropPath(0.8)
    np.testing.assert_array_equal(drop_path(x, training=False), x)
    dropped = drop_path(x, training=True).numpy().reshape(2000, -1)
    assert np.isin(dropped, np.float32([0.0, 1.25])).all()
    assert (dropped == dropped[:, :1]).all(), "a sample is kept or dropped as a whole"
    assert abs(dropped.mean() - 1.0) < 0.05
    with pytest.raises(ValueError, match="keep probability 0"):
        DropPath(0.0)


def test_dropout():
    x = tf.ones([200, 100])
    dropout = Dropout(0.2)
    np.testing.assert_array_equal(dropout(x, training=False), x)
    dropped = dropout(x, training=True).numpy()
    assert np.isin(dropped, np.float32([0.0, 1.25])).all() and abs(dropped.mean() - 1.0) < 0.02
    assert (dropped != dropout(x, training=True).numpy()).any()


@pytest.mark.parametrize("layer", [DropPath(0.5), Dropout(0.5)])
def test_what_is_dropped_is_the_same_when_recomputed(layer):
    class Dropping(keras.layers.Layer):
        def call(self, inputs, training=None):
            # The gradient with respect to the inputs is what the second pass dropped.
            return layer(inputs, training=training)

    x = tf.ones([64, 3])
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = recomputed(Dropping())(x, training=True)
    np.testing.assert_array_equal(tape.gradient(outputs, x), outputs)
    assert 0 < (outputs.numpy() == 0).mean() < 1


@pytest.mark.parametrize("training", [False, True])
def test_only_the_named_kinds_are_recomputed(training):
    calls = []

    class Counted(keras.layers.Layer):
        def call(self, inputs, training=None):
            calls.append(training)
            return inputs * inputs

    x = tf.ones([2])
    for kinds, passes in (((Counted,), 2 if training else 1), ((BasicBlock,), 1), ((), 1)):
        calls.clear()
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = recomputed(Counted(), kinds)(x, training=training)
        np.testing.assert_array_equal(tape.gradient(outputs, x), [2.0, 2.0])
        assert len(calls) == passes


def test_momentum_and_synchronization_reach_the_norms():
    layer = Conv2DBatchNorm(4, norm=Norm(momentum=0.5, synchronized=True))
    layer(PIXEL, training=True)
    features = layer.conv(PIXEL).numpy()
    np.testing.assert_allclose(layer.batch_norm.moving_mean, 0.5 * features.mean((0, 1, 2)), atol=1e-5)
    variance = 0.5 + 0.5 * features.var((0, 1, 2))
    np.testing.assert_allclose(layer.batch_norm.moving_variance, variance, rtol=1e-4)


def _with_weights(layer, *inputs):
    """The layer, built, with no weight at its initial value."""
    layer(*inputs, training=False)
    for weight in layer.trainable_weights:
        weight.assign_add(0.3 * _features(*weight.shape))
    return layer


def test_axis_attends_within_its_rows():
    layer = _with_weights(SelfAttention1D(8, 16), PIXEL[0])
    changed = PIXEL[0].copy()
    changed[4, 3] += 1.0
    difference = np.abs(layer(changed, training=False) - layer(PIXEL[0], training=False)).max(axis=-1)
    assert (difference[4] > 0).all() and (np.delete(difference, 4, axis=0) == 0).all()


def test_positions_matter_to_attention():
    turned = PIXEL[:, ::-1, ::-1]
    axial = _with_weights(AxialAttention2D(8, 16), PIXEL)
    assert np.abs(axial(turned, training=False) - axial(PIXEL, training=False)[:, ::-1, ::-1]).max() > 0.1


@pytest.mark.parametrize("switched_off", ["memory_to_pixel", "memory_to_memory", "pixel_to_memory"])
def test_each_attention_can_be_switched_off(switched_off):
    def influences(layer):
        """The attentions whose effect on the outputs can be observed."""

        def run(pixel, memory):
            return [output.numpy() for output in layer((pixel, memory), training=False)[:2]]

        other_pixel, other_slot = PIXEL.copy(), MEMORY.copy()
        other_pixel[:, 0, 0] += 1.0
        other_slot[:, 0] += 1.0
        pixel, memory = run(PIXEL, MEMORY)
        seen = set()
        if (run(other_pixel, MEMORY)[1] != memory).any():
            seen.add("memory_to_pixel")
        if (run(PIXEL, other_slot)[1][:, 1:] != memory[:, 1:]).any():
            seen.add("memory_to_memory")
        if (run(PIXEL, other_slot)[0] != pixel).any():
            seen.add("pixel_to_memory")
        return seen

    attentions = {"memory_to_pixel", "memory_to_memory", "pixel_to_memory"}
    whole = _with_weights(DualPathTransformer(8, 12), (PIXEL, MEMORY))
    assert influences(whole) == attentions
    without = _with_weights(DualPathTransformer(8, 12, **{switched_off: False}), (PIXEL, MEMORY))
    assert influences(without) == attentions - {switched_off}
    alone = _with_weights(
        DualPathTransformer(8, 12, **{name: name == switched_off for name in attentions}), (PIXEL, MEMORY)
    )
    assert influences(alone) == {switched_off}
    assert alone.count_params() < whole.count_params()


def test_slots_are_a_set():
    layer = _with_weights(DualPathTransformer(8, 12), (PIXEL, MEMORY))
    order = [3, 0, 4, 1, 2]
    pixel, memory, _ = layer((PIXEL, MEMORY), training=False)
    same_pixel, permuted, _ = layer((PIXEL, MEMORY[:, order]), training=False)
    np.testing.assert_allclose(same_pixel, pixel, atol=1e-4)
    np.testing.assert_allclose(permuted, memory.numpy()[:, order], atol=1e-4)


def test_stage_names_a_transformer_without_block():
    with pytest.raises(ValueError, match="block2"):
        Stage({"block1": BasicBlock(8)}, {"block2": DualPathTransformer(8, 12)})
