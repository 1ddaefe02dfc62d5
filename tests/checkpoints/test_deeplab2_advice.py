"""The advice names what a checkpoint has and the config lacks. Lists are those of the published models."""

from __future__ import annotations

import pytest

from maxdl_tf.checkpoints.compare import compare
from maxdl_tf.checkpoints.deeplab2_advice import advice, family
from tests.checkpoints.deeplab2_checkpoints import published_shapes

R50, CONVNEXT, S, L = "kmax_r50", "kmax_convnext_tiny", "deeplab2_s", "deeplab2_l"


def _cityscapes(shapes):
    """As on Cityscapes: other slots and classes, another stage, no semantic decoder."""
    changed = {name: shape for name, shape in shapes.items() if not name.startswith("semantic_decoder/")}
    return changed | {
        "transformer_decoder/cluster_centers": (1, 256, 256),
        "transformer_class_head/_conv/bias": (20,),
        "semantic_head_without_last_layer/_conv1_bn_act/_depthwise/_depthwise_conv/depthwise_kernel": (5, 5, 2048, 1),
        "pixel_decoder/_stages/4/_block1/_conv1_bn_act/_conv/kernel": (1, 1, 256, 32),
    }


def _slots(shapes):
    return shapes | {"encoder/memory_feature": (1, 50, 256)}


def _deep(shapes):
    """As in ConvNeXt-S."""
    block = {name: shape for name, shape in shapes.items() if name.startswith("encoder/stages/2/layer_with_weights-8/")}
    return shapes | {name.replace("-8", f"-{i}"): shape for i in range(9, 27) for name, shape in block.items()}


def _wide(shapes):
    return {n: (*shape[:-1], 2 * shape[-1]) if n.startswith("pixel_decoder/") else shape for n, shape in shapes.items()}


def _without(*items):
    return lambda shapes: {name: shape for name, shape in shapes.items() if not name.startswith(items)}


@pytest.mark.parametrize(
    ("found", "wanted", "expected"),
    [
        (
            (_cityscapes, R50),
            (dict, R50),
            "it has model { num_slots: 256 output_stride: 2 semantic_decoder: false } and 19 classes; name a config "
            "that has the same",
        ),
        (
            (dict, R50),
            (_cityscapes, R50),
            "it has model { num_slots: 128 output_stride: 4 semantic_decoder: true } and 133 classes; name a config "
            "that has the same",
        ),
        ((_slots, S), (dict, S), "it has model { num_slots: 50 }; name a config that has the same"),
        ((dict, R50), (_without("semantic_"), R50), "it has model { semantic_branch: true }; name a config that has"),
        (
            (_without("semantic_decoder/"), R50),
            (dict, R50),
            "if these may keep their initial values, add --allow_missing semantic_decoder",
        ),
        (
            (_deep, CONVNEXT),
            (dict, CONVNEXT),
            "its encoder is a ConvNeXt with 3, 3, 27, 3 blocks, the config's a ConvNeXt with 3, 3, 9, 3 blocks; name",
        ),
        (
            (dict, CONVNEXT),
            (dict, R50),
            "its encoder is a ConvNeXt with 3, 3, 9, 3 blocks, the config's a ResNet with 3, 4, 6, 3 blocks; name",
        ),
        ((dict, L), (dict, S), "its encoder is a ResNet with 3, 3, 6, 3, 3 blocks, the config's a ResNet with 3, 4, 6"),
        ((_wide, R50), (dict, R50), "name a config of its variant and widths, with the classes that it was trained on"),
        ((_without("pixel", "semantic", "transformer"), R50), (dict, R50), "add --backbone_only"),
    ],
)
def test_advice(found, wanted, expected):
    found, wanted = (change(published_shapes(listed)) for change, listed in (found, wanted))
    pretrained = [name for name in wanted if name.startswith("encoder/") and "memory" not in name]
    assert expected in advice(compare(found, wanted), found, wanted, pretrained)


@pytest.mark.parametrize(
    ("listed", "expected"),
    [(R50, "kMaX-DeepLab"), (CONVNEXT, "kMaX-DeepLab"), (S, "MaX-DeepLab"), (L, "MaX-DeepLab")],
)
def test_families(listed, expected):
    shapes = published_shapes(listed)
    assert family(shapes) == expected
    assert family([name for name in shapes if name.startswith("encoder/") and "memory" not in name]) is None
