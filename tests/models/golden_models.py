"""The reference's narrow models, built from the tables of S and L."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np

from maxdl_tf.models.build import build_max_deeplab
from maxdl_tf.models.variants import VARIANTS
from tests.helpers import shared_golden
from tests.layers.golden_layers import load_weights

_HEADS = {
    "mask_channels": 16,
    "pixel_head_channels": 24,
    "semantic_head_channels": 24,
    "semantic_decoder_channels": 24,
    "semantic_low_level_channels": (12, 8),
}
NARROW = {
    "s": replace(
        VARIANTS["s"].scaled(width=0.125, stem_width=0.125),
        memory_channels=48,
        memory_head_channels=40,
        transformer_width=16,
        ffn_channels=72,
        **_HEADS,
    ),
    "l": replace(
        VARIANTS["l"].scaled(width=0.0625, stem_width=0.125),
        memory_channels=40,
        memory_head_channels=32,
        transformer_width=32,
        ffn_channels=56,
        **_HEADS,
    ),
}


@functools.cache
def golden_weights(name: str) -> dict[str, np.ndarray]:
    golden = shared_golden(f"b_tiny_{name}_weights")
    return {key: golden[key] for key in sorted(golden.keys())}


def golden_model(name: str):
    """A new model "s" or "l", without drop path and dropout."""
    variant = replace(NARROW[name], drop_path_keep=1.0, aspp_dropout=0.0)
    return build_max_deeplab(variant, num_classes=133, num_semantic_channels=134, crop_size=(65, 65))


def load_golden_weights(model, name: str):
    """Gives the model the weights of b_tiny_NAME; returns its variables by published name."""
    return load_weights(model, golden_weights(name), root="model")
