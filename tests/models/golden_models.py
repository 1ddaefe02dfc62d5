"""The reference's narrow models, built from the tables of the variants."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np

from maxdl_tf.models.build import build_panoptic_model
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


_KMAX = {
    "drop_path_keep": 1.0,
    "transformer_decoder_drop_path_keep": 1.0,
    "pixel_decoder_widths": (32, 16, 8, 4),
    "transformer_width": 16,
    "memory_channels": 48,
    "ffn_channels": 40,
    "num_slots": 20,
    **_HEADS,
    "semantic_decoder_channels": 12,
}
NARROW |= {
    "kmax_r50": replace(VARIANTS["kmax_r50"].scaled(width=0.0625, stem_width=0.125), **_KMAX),
    "kmax_convnext": replace(VARIANTS["kmax_convnext_t"].scaled(width=0.0625, stem_width=1.0), **_KMAX),
}
FILES = {"s": "b_tiny_s", "l": "b_tiny_l", "kmax_r50": "k_tiny_r50", "kmax_convnext": "k_tiny_convnext"}


@functools.cache
def golden_weights(name: str) -> dict[str, np.ndarray]:
    golden = shared_golden(f"{FILES[name]}_weights")
    return {key: golden[key] for key in sorted(golden.keys()) if key != "info"}


def golden_model(name: str):
    """A new model of `NARROW`, without drop path and dropout."""
    variant = replace(NARROW[name], drop_path_keep=1.0, aspp_dropout=0.0)
    return build_panoptic_model(variant, num_classes=133, num_semantic_channels=134, crop_size=(65, 65))


def load_golden_weights(model, name: str):
    """Gives the model the golden's weights; returns its variables by published name."""
    return load_weights(model, golden_weights(name), root="model")
