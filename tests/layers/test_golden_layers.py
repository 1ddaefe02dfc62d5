"""Every layer against the reference: inference, training, moving statistics after it, gradients."""

import json

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.layers.aspp import ASPP
from maxdl_tf.layers.axial_attention import AxialAttention2D, SelfAttention1D, relative_positions
from maxdl_tf.layers.conv_bn import Conv1DBatchNorm, Conv2DBatchNorm, SeparableConvBatchNorm
from maxdl_tf.layers.dual_path_transformer import CrossAttention, DualPathTransformer
from maxdl_tf.layers.residual_block import AxialBlock, BasicBlock, BottleneckBlock
from maxdl_tf.layers.resize import resize_bilinear
from maxdl_tf.layers.resized_fuse import ResizedFuse
from maxdl_tf.models.encoder import InceptionStem
from tests.helpers import shared_golden
from tests.layers.golden_layers import check_golden
from tests.layers.golden_layers import reference_norm as norm

SINGLE_INPUT = {
    "a_conv1d_bn_act": lambda: Conv1DBatchNorm(10, activation="relu", norm=norm),
    "a_atrous_conv_rate6": lambda: Conv2DBatchNorm(8, 3, rate=6, activation="relu", norm=norm),
    "a_separable_conv5": lambda: SeparableConvBatchNorm(10, 5, norm=norm),
    "a_stem_l_conv_16": lambda: Conv2DBatchNorm(16, 3, strides=2, norm=norm),
    "a_stem_s_inception_16": lambda: InceptionStem(16, norm=norm),
    "a_stem_s_inception_17": lambda: InceptionStem(16, norm=norm),
    "a_block_basic_identity": lambda: BasicBlock(16, norm=norm),
    "a_block_basic_identity_stride2": lambda: BasicBlock(16, strides=2, norm=norm),
    "a_block_basic_stride2": lambda: BasicBlock(16, strides=2, norm=norm),
    "a_block_bottleneck_atrous2": lambda: BottleneckBlock(6, 24, rate=2, norm=norm),
    "a_block_bottleneck_identity": lambda: BottleneckBlock(6, 24, norm=norm),
    "a_block_bottleneck_stride2": lambda: BottleneckBlock(6, 24, strides=2, norm=norm),
    "a_block_axial": lambda: AxialBlock(16, 40, norm=norm),
    "a_block_axial_identity": lambda: AxialBlock(16, 40, norm=norm),
    "a_axial_attention_1d": lambda: SelfAttention1D(16, 32, norm=norm),
    "a_axial_attention_1d_long": lambda: SelfAttention1D(16, 32, norm=norm),
    "a_axial_attention_2d_stride1": lambda: AxialAttention2D(16, 32, norm=norm),
    "a_axial_attention_2d_stride2": lambda: AxialAttention2D(16, 32, strides=2, norm=norm),
    "k_axial_block_stride2": lambda: AxialBlock(16, 40, strides=2, activation="gelu", norm=norm),
    "a_aspp_pool5": lambda: ASPP(8, rates=(6, 12, 18), pool_size=(5, 5), dropout=0.0, norm=norm),
    "a_aspp_pool5_on_9x7": lambda: ASPP(8, rates=(6, 12, 18), pool_size=(5, 5), dropout=0.0, norm=norm),
}


@pytest.mark.parametrize("name", SINGLE_INPUT)
def test_layer_of_one_input(name):
    def call(layer, inputs, training):
        if "mask" in inputs:  # The golden's drop path mask stands for the random one.
            mask = tf.reshape(inputs["mask"], [-1, 1, 1, 1])
            layer.drop_path = lambda branch, training: branch * mask if training else branch
        return {"out": layer(inputs["x"], training=training)}

    check_golden(shared_golden(name), SINGLE_INPUT[name](), call)


def test_cross_attention():
    def call(layer, inputs, training):
        query, key = (tf.transpose(inputs[part], [0, 2, 1, 3]) for part in ("query", "key"))
        return {"out": layer((query, key, inputs["value"]), training=training)}

    check_golden(shared_golden("a_attention_operation"), CrossAttention(norm=norm), call)


def test_dual_path_transformer():
    def call(layer, inputs, training):
        pixel, memory, _ = layer((inputs["pixel"], inputs["memory"]), training=training)
        return {"pixel": pixel, "memory": memory}

    check_golden(shared_golden("a_dual_path_block"), DualPathTransformer(16, 24, norm=norm), call)


@pytest.mark.parametrize(
    ("name", "stride", "source_strides"),
    [
        ("a_resized_fuse_up", 8, (16, 8, 8)),
        ("a_resized_fuse_down", 16, (8, 16, 16)),
        ("a_resized_fuse_misc", 16, (8, 4, 8)),
    ],
)
def test_resized_fuse(name, stride, source_strides):
    golden = shared_golden(name)
    info = json.loads(str(golden["info"]))
    layer = ResizedFuse(info["num_channels"], stride=stride, source_strides=source_strides, norm=norm)

    def call(layer, inputs, training):
        features = [inputs[f"x{number}"] for number in (1, 2, 3)]
        return {"out": layer(features, (info["height"], info["width"]), training=training)}

    check_golden(golden, layer, call)


def test_relative_positions():
    golden = shared_golden("a_relative_distance")
    table = tf.range(509, dtype=tf.float32)[:, tf.newaxis]
    for key in sorted(golden.keys()):
        length = int(key[1:])
        np.testing.assert_array_equal(relative_positions(table, length)[..., 0], golden[key])
        np.testing.assert_array_equal(relative_positions(table, tf.constant(length))[..., 0], golden[key])


def test_resize_bilinear():
    golden = shared_golden("a_resize")
    keys = [key for key in sorted(golden.keys()) if key.startswith("bilinear")]
    assert keys
    for key in keys:
        size = tuple(int(side) for side in key.split("_")[1].split("x"))
        np.testing.assert_allclose(resize_bilinear(golden["x"], size), golden[key], atol=1e-6)
