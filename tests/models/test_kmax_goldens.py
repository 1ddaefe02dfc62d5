"""Parts of kMaX-DeepLab against the reference (architecture section 16)."""

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.checkpoints.deeplab2_names import published_name
from maxdl_tf.keras_api import keras
from maxdl_tf.layers.aspp import ASPP
from maxdl_tf.layers.dual_path_transformer import DualPathTransformer
from maxdl_tf.layers.residual_block import AxialBlock, BottleneckBlock
from maxdl_tf.layers.resized_fuse import ResizedFuse
from maxdl_tf.models.encoder import Stage
from maxdl_tf.models.heads import ClusteringPredictor, SemanticDecoder, SemanticHead
from maxdl_tf.models.pixel_decoder import PixelDecoder
from tests.helpers import any_golden, shared_golden
from tests.layers.golden_layers import check_golden, reference_norm


def _kmeans_block(width, ffn_channels, num_classes=8, pixel_head=12, mask_channels=16, **options):
    predictor = ClusteringPredictor(num_classes, pixel_head, mask_channels, norm=reference_norm, name="predictor")
    return DualPathTransformer(
        width,
        ffn_channels,
        pixel_to_memory=False,
        predictor=predictor,
        activation="gelu",
        norm=reference_norm,
        **options,
    )


@pytest.mark.parametrize("name", ["k_block_os32", "k_block_os8"])
def test_kmeans_block(name):
    golden = any_golden(name)
    assigned = {}

    def call(layer, inputs, training):
        pixel, memory, (predicted,) = layer((inputs["pixel"], inputs["memory"]), training=training)
        assert pixel is inputs["pixel"]
        assigned[training] = tf.argmax(predicted.mask_logits, axis=-1)
        return {
            "memory": memory,
            "mask_logits": predicted.mask_logits,
            "feature": predicted.pixel_feature,
            "class_logits": predicted.class_logits,
        }

    check_golden(golden, _kmeans_block(16, 24), call)
    for training, key in ((False, "eval"), (True, "train")):
        np.testing.assert_array_equal(assigned[training], golden[f"assign/{key}"])


def test_drop_path_of_a_kmeans_block():
    def call(layer, inputs, training):
        for branch in ("memory", "kmeans", "ffn"):
            mask = inputs[f"mask_{branch.replace('memory', 'attention')}"]
            setattr(layer, f"{branch}_drop_path", lambda x, training, mask=mask: x * mask if training else x)
        _, memory, (predicted,) = layer((inputs["pixel"], inputs["memory"]), training=training)
        return {
            "memory": memory,
            "mask_logits": predicted.mask_logits,
            "feature": predicted.pixel_feature,
            "class_logits": predicted.class_logits,
        }

    check_golden(shared_golden("k_block_droppath"), _kmeans_block(16, 24), call)


def _pixel_decoder(widths, blocks, num_axial=2):
    """The published topology: axial blocks in the first stages, then bottlenecks of rate 2."""
    common = {"activation": "gelu", "norm": reference_norm}
    stages, fuses = [], []
    for number, (width, count) in enumerate(zip(widths, blocks)):
        if number < num_axial:
            row = {f"block{i + 1}": AxialBlock(width, 4 * width, **common) for i in range(count)}
        else:
            row = {f"block{i + 1}": BottleneckBlock(width, 4 * width, rate=2, **common) for i in range(count)}
        stages.append(Stage(row, {}))
        if number:
            stride = 32 // 2**number
            fuses.append(ResizedFuse(width, stride=stride, source_strides=(2 * stride, stride), **common))
    return PixelDecoder(stages, fuses)


@pytest.mark.parametrize(
    "name, widths, blocks",
    [("k_pixel_decoder", (16, 8, 8, 4), (1, 2, 1, 1)), ("k_pixel_decoder_stride2", (8, 8, 8, 4, 4), (1, 1, 1, 1, 1))],
)
def test_pixel_decoder(name, widths, blocks):
    def call(layer, inputs, training):
        outputs = layer(dict(inputs), training=training)
        names = [f"decoder_stage{number}" for number in range(1, len(outputs))] + ["decoder_output"]
        return dict(zip(names, outputs))

    def in_decoder(path):
        return published_name(f"model/pixel_decoder/{path}").removeprefix("pixel_decoder/")

    check_golden(shared_golden(name), _pixel_decoder(widths, blocks), call, in_decoder)


class _PredictorAndSemanticBranch(keras.layers.Layer):
    """What follows the decoders. The inputs of the semantic decoder are activated already."""

    def __init__(self, num_classes, num_semantic_channels, mask_channels, has_decoder):
        super().__init__()
        common = {"activation": "gelu", "norm": reference_norm}
        self.predictor = ClusteringPredictor(num_classes, 12, mask_channels, **common, name="predictor")
        self.semantic_decoder = None
        if has_decoder:
            aspp = ASPP(8, rates=(6, 12, 18), pool_size=None, dropout=0.0, **common, name="aspp")
            self.semantic_decoder = SemanticDecoder(8, aspp, (6, 4), **common, name="semantic_decoder")
        self.semantic_head = SemanticHead(10, num_semantic_channels, **common, name="semantic_head")

    def call(self, inputs, training=None):
        names = ("feature_panoptic", "transformer_class_feature", "transformer_mask_feature")
        predicted, _ = self.predictor(tuple(inputs[name] for name in names), training=training)
        semantic = inputs["feature_semantic"]
        if self.semantic_decoder is not None:
            semantic = self.semantic_decoder.aspp(semantic, training=training)
            semantic = self.semantic_decoder((semantic, inputs["res3"], inputs["res2"]), training=training)
        return {
            "pixel_space_normalized_feature": predicted.pixel_feature,
            "pixel_space_mask_logits": predicted.mask_logits,
            "transformer_class_logits": predicted.class_logits,
            "semantic_logits": self.semantic_head(semantic, training=training),
        }


def _name_in_predictor(path):
    name = published_name(f"model/{path}")
    name = name.replace("semantic_head_without_last_layer/", "auxiliary_semantic_head/conv_block/")
    name = name.replace("semantic_last_layer/", "auxiliary_semantic_head/final_conv/")
    return "_" + name.replace("semantic_decoder/", "auxiliary_semantic_decoder/")


@pytest.mark.parametrize(
    "name, num_classes, num_semantic_channels",
    [("k_predictor", 20, 21), ("k_predictor_cityscapes", 19, 19)],
)
def test_predictor_and_semantic_branch(name, num_classes, num_semantic_channels):
    layer = _PredictorAndSemanticBranch(num_classes, num_semantic_channels, 16, has_decoder=name == "k_predictor")
    check_golden(
        shared_golden(name), layer, lambda layer, inputs, training: layer(inputs, training=training), _name_in_predictor
    )
