"""Position encodings tell pixels apart, and they reach slots and masks."""

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.layers.dual_path_transformer import DualPathTransformer
from maxdl_tf.layers.positions import with_positions
from maxdl_tf.models.heads import PixelHead


def _features(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_waves_along_both_axes():
    features = _features(2, 9, 5, 3)
    encoded = with_positions(features, 2).numpy()
    np.testing.assert_array_equal(encoded[..., :3], features)
    for axis, (side, waves) in enumerate(((9, encoded[..., 3:7]), (5, encoded[..., 7:]))):
        along = np.linspace(0, 1, side)
        expected = np.stack([f(np.pi * n * along) for f in (np.sin, np.cos) for n in (1, 2)], axis=-1)
        expected = np.expand_dims(expected, 1 - axis)
        np.testing.assert_allclose(waves, np.broadcast_to(expected, waves.shape), atol=1e-6)


def test_no_octaves_change_nothing():
    features = tf.constant(_features(2, 9, 5, 3))
    assert with_positions(features, 0) is features


@pytest.mark.parametrize("jit_compile", [False, True])
def test_sizes_unknown_when_traced_and_xla(jit_compile):
    features = _features(2, 33, 1, 3)
    signature = [tf.TensorSpec([None, None, None, 3])] if not jit_compile else None
    encode = tf.function(lambda x: with_positions(x, 6), input_signature=signature, jit_compile=jit_compile)
    np.testing.assert_allclose(encode(features), with_positions(features, 6), atol=1e-5)


def _distinct(vectors) -> int:
    """Number of vectors [..., channels] that differ by more than rounding."""
    return len(np.unique(np.round(np.reshape(vectors, [-1, vectors.shape[-1]]), 3), axis=0))


@pytest.mark.parametrize(("octaves", "distinct"), [(0, 1), (6, 81)])
def test_look_alikes_have_features_of_their_own(octaves, distinct):
    head = PixelHead(6, 8, position_octaves=octaves)
    features = head(np.ones([1, 13, 13, 4], np.float32), training=True)
    assert _distinct(features[:, 2:-2, 2:-2].numpy()) == distinct  # But for the border, which sees the padding.


@pytest.mark.parametrize("octaves", [0, 3])
def test_slots_see_where_pixels_are(octaves):
    layer = DualPathTransformer(8, 12, position_octaves=octaves)
    pixel, memory = _features(1, 9, 9, 8), _features(1, 5, 6)
    layer((pixel, memory))
    for weight in layer.trainable_weights:  # Scales of residual branches start at 0.
        weight.assign_add(0.3 * _features(*weight.shape))
    _, before, _ = layer((pixel, memory))
    _, mirrored, _ = layer((pixel[:, :, ::-1], memory))
    assert np.allclose(mirrored, before, atol=1e-4) == (octaves == 0)
