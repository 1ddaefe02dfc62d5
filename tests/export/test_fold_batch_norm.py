"""Every folded layer against the layer that it stands for, and the whole network."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.export.fold_batch_norm import _Folding, fold_batch_norms
from maxdl_tf.export.folded_attention import FoldedSelfAttention1D
from maxdl_tf.export.folded_convnext import FoldedConvNeXtBlock, StoredConv2D
from maxdl_tf.export.folded_layers import FoldedConv2D, FoldedDepthwiseConv2D, FoldedLinear, Types
from maxdl_tf.export.folded_transformer import FoldedDualPathTransformer
from maxdl_tf.keras_api import keras
from maxdl_tf.layers.axial_attention import SelfAttention1D
from maxdl_tf.layers.batch_norm import BatchNorm
from maxdl_tf.layers.conv_bn import Conv1DBatchNorm, Conv2DBatchNorm, DepthwiseConvBatchNorm
from maxdl_tf.layers.dual_path_transformer import DualPathTransformer
from maxdl_tf.models.convnext import ConvNeXtBlock
from maxdl_tf.models.heads import ClusteringPredictor
from maxdl_tf.models.variants import StageTable
from tests.models.test_kmax_deeplab import KMAX_SMALL
from tests.models.test_max_deeplab import SMALL, _build, _images


def _randomized(layer, seed=0):
    """The layer, none of whose variables is as at initialization."""
    generator = np.random.default_rng(seed)
    for variable in layer.variables:
        name = variable.name.rpartition("/")[2]
        if name.startswith(("moving_variance", "gamma", "layer_scale")):
            # Where branches add little, as in a trained network, rounding does not grow from layer to layer.
            damped = any(part in variable.name for part in ("expand", "second", "ffn2", "similarity"))
            scale = 0.2 if damped and name.startswith("gamma") else 1.0
            variable.assign(generator.uniform(0.3, 1.5, variable.shape) * scale)
        elif name.startswith(("beta", "bias", "moving_mean")):
            variable.assign(generator.normal(0, 0.3, variable.shape))
    return layer


def _features(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    "make_layer, folded_class, inputs",
    [
        (lambda: Conv2DBatchNorm(6, 3), FoldedConv2D, _features(2, 9, 7, 5)),
        (lambda: Conv2DBatchNorm(6, 3, strides=2, activation="relu"), FoldedConv2D, _features(2, 9, 7, 5)),
        (lambda: Conv2DBatchNorm(6, 3, rate=3), FoldedConv2D, _features(2, 9, 7, 5)),
        (lambda: Conv2DBatchNorm(6, 1, strides=2), FoldedConv2D, _features(2, 9, 7, 5)),
        (lambda: Conv1DBatchNorm(6, activation="relu"), FoldedLinear.of, _features(2, 9, 5)),
        (lambda: DepthwiseConvBatchNorm(5), FoldedDepthwiseConv2D, _features(2, 9, 7, 5)),
        (lambda: SelfAttention1D(8, 16, num_heads=4), FoldedSelfAttention1D, _features(5, 9, 6)),
        (lambda: ConvNeXtBlock(6), FoldedConvNeXtBlock, _features(2, 9, 7, 6)),
        (lambda: keras.layers.Conv2D(6, 2, strides=2), StoredConv2D, _features(2, 9, 7, 5)),
    ],
)
def test_a_layer(make_layer, folded_class, inputs):
    layer = make_layer()
    layer(inputs)
    folded = folded_class(_randomized(layer), Types())
    wanted = layer(inputs, training=False)
    np.testing.assert_allclose(folded(tf.constant(inputs)), wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("constant_memory", [False, True])
@pytest.mark.parametrize(
    "switched_off",
    [(), ("pixel_to_memory",), ("memory_to_pixel",), ("memory_to_memory",), ("memory_to_pixel", "memory_to_memory")],
)
@pytest.mark.parametrize("kmeans", [False, True])
def test_a_transformer(switched_off, constant_memory, kmeans):
    if kmeans and "memory_to_pixel" in switched_off:
        pytest.skip("k-means is a kind of memory_to_pixel")
    predictor = ClusteringPredictor(3, 8, 8, name="predictor") if kmeans else None
    layer = DualPathTransformer(16, 32, num_heads=4, predictor=predictor, **dict.fromkeys(switched_off, False))
    pixel, memory = _features(1, 5, 7, 12), _features(1, 6, 10)
    layer((pixel, memory))
    layer = _randomized(layer)
    shared = {id(variable): variable for variable in layer.variables}
    predictor = _Folding(Types(), None, None)(copy.deepcopy(layer.predictor, shared)) if kmeans else None
    constant = tf.constant(memory) if constant_memory else None
    folded = FoldedDualPathTransformer(layer, Types(), constant, predictor)
    wanted = layer((pixel, memory), training=False)[:2]
    for got, value in zip(folded((tf.constant(pixel), tf.constant(memory))), wanted):
        np.testing.assert_allclose(got, value, atol=1e-5 * np.abs(value).max())


VARIANTS = {
    # L's hourglasses and transformers, small.
    "l": replace(
        SMALL,
        decoder_stacks=1,
        transformer_stages=(4, 5),
        transformer_width=16,
        stem="convolution",
        output_stride=2,
        grid_slots=True,
    ),
    "kmeans": replace(SMALL, memory_to_pixel="kmeans", position_octaves=3),
    "kmax": KMAX_SMALL,
    "convnext": replace(KMAX_SMALL, encoder="convnext", grid_slots=True),
    "lite": replace(
        KMAX_SMALL,
        encoder="efficientnet_lite",
        stages={number: StageTable(1, 4 + number % 2) for number in range(1, 8)},
        decoder_activation="relu",
    ),
}


@pytest.fixture(scope="module", params=VARIANTS)
def network(request):
    return _randomized(_build(VARIANTS[request.param]))


@pytest.mark.parametrize(
    "network, storage, tolerance",
    [
        *((name, "float32", 1e-4) for name in VARIANTS),
        ("l", "float16", 0.1),
        ("kmax", "float16", 0.1),
        ("l", "bfloat16", 0.5),
        ("convnext", "bfloat16", 0.5),
    ],
    indirect=["network"],
)
def test_the_whole_network_in_a_graph(network, storage, tolerance):
    images = tf.constant(_images(65, 65, batch=1))
    wanted = network(images, training=False)
    folded = fold_batch_norms(network, storage)
    got = tf.function(lambda x: folded(x, training=False)[:3], autograph=False)(images)
    for name, value, reference in zip(("pixel_feature", "mask_logits", "class_logits"), got, wanted):
        if name == "mask_logits":  # But for what all slots have in common.
            value, reference = (x - tf.reduce_mean(x, axis=-1, keepdims=True) for x in (value, reference))
        error = tf.reduce_max(tf.abs(value - reference)) / tf.reduce_max(tf.abs(reference))
        assert float(error) <= tolerance, name


def test_a_batch_of_any_size_is_its_images(network):
    """Signatures may give the network a batch whose size the graph does not know."""
    folded, images = fold_batch_norms(network), _images(65, 65, batch=3)
    of_batch = [tf.TensorSpec([None, 65, 65, 3])]
    outputs = tf.function(lambda x: folded(x, training=False)[:3], input_signature=of_batch, autograph=False)
    together = outputs(images)
    for number in range(3):
        for value, reference in zip(together, outputs(images[number : number + 1])):
            np.testing.assert_allclose(value[number], reference[0], atol=1e-4 * np.abs(reference).max())


@pytest.mark.parametrize("network", ["l", "convnext", "lite"], indirect=True)
def test_the_whole_network_in_bfloat16(network):
    """Kernels, products and features are bfloat16, outputs float32."""
    images = tf.constant(_images(65, 65, batch=1))
    wanted = network(images, training=False)[:3]
    folded = fold_batch_norms(network, compute="bfloat16")
    function = tf.function(lambda x: folded(x, training=False)[:3], autograph=False).get_concrete_function(images)
    for value, reference in zip(function(images), wanted):
        assert value.dtype == tf.float32
        value, reference = (x - tf.reduce_mean(x, axis=-1, keepdims=True) for x in (value, reference))
        error = tf.sqrt(tf.reduce_mean(tf.square(value - reference)) / tf.reduce_mean(tf.square(reference)))
        # Each of some fifty layers rounds to 8 bits; k-means moves pixels between slots.
        assert float(error) <= 0.1

    def of_type(*types):
        return [op for op in function.graph.get_operations() if op.type in types]

    products = of_type("Conv2D", "DepthwiseConv2dNative", "MatMul", "BatchMatMulV2", "Einsum")
    # Class logits and mask logits of each predictor, and the sums of k-means.
    float32 = [op.name for op in products if op.outputs[0].dtype == tf.float32]
    assert len(float32) == 2 + 3 * network.num_auxiliary_outputs, float32

    casts = of_type("Cast")
    assert not [op.name for op in casts if op.inputs[0].op.type == "ReadVariableOp"]
    # Before and after softmax and norms, behind resizing and the image; none between layers.
    of_features = [op.name for op in casts if op.outputs[0].shape.rank == 4]
    assert len(of_features) <= 2 * len(of_type("Softmax", "Rsqrt")) + len(of_type("ResizeBilinear")) + 1


def test_nothing_is_left_to_fold_and_the_network_stays_as_it_was(network):
    before = [variable.numpy() for variable in network.variables]
    folded = fold_batch_norms(network)
    folded(tf.constant(_images(65, 65, batch=1)))
    assert not [part for part in folded.submodules if isinstance(part, BatchNorm)]
    assert [part for part in network.submodules if isinstance(part, BatchNorm)]
    for variable, value in zip(network.variables, before):
        np.testing.assert_array_equal(variable, value)


def test_another_size_of_image_is_refused(network):
    folded = fold_batch_norms(network)
    folded(tf.constant(_images(65, 65, batch=1)))
    with pytest.raises(ValueError, match=r"was folded for those of [35]"):
        folded(tf.constant(_images(97, 65, batch=1)))


def test_a_norm_that_nothing_takes_in_is_told(network):
    norm = BatchNorm(name="lonely")
    norm.build((None, 3))
    network.backbone.lonely = norm
    with pytest.raises(TypeError, match="batch norm lonely has no layer into which it can be folded"):
        fold_batch_norms(network)
    del network.backbone.lonely
