"""Color operations equal the goldens of the reference, and each has its probability."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.data import color_augmentation
from tests.helpers import shared_golden

CASES = [
    ("Sharpness", (1, 5, 7, 9)),
    ("Brightness", (5, 10)),
    ("Color", (5, 9)),
    ("Contrast", (5, 10)),
    ("Solarize", (5, 7)),
    ("Equalize", (5, 7, 9)),
]


@pytest.mark.parametrize("name, level", [(name, level) for name, levels in CASES for level in levels])
def test_operations_equal_the_reference(name, level):
    golden = shared_golden("f_autoaugment_ops")
    operation = getattr(color_augmentation, name.lower())
    np.testing.assert_array_equal(operation(tf.constant(golden["in/image"]), level), golden[f"op/{name}/{level}"])


def test_the_policy_equals_the_reference():
    expected = json.loads(str(shared_golden("f_autoaugment_ops")["policy"]))
    got = [[[step.operation.__name__.title(), *step[1:]] for step in steps] for steps in color_augmentation._POLICY]
    assert got == expected


@pytest.mark.parametrize("pair", range(5))
def test_draws_choose_the_pair_and_its_operations(pair):
    image = tf.constant(np.random.default_rng(0).integers(40, 200, [9, 8, 3], dtype=np.uint8))
    first, second = color_augmentation._POLICY[pair]
    start = (pair + 0.5) / 5
    no, yes = 0.99, 0.0
    augment = color_augmentation.augment_color
    np.testing.assert_array_equal(augment(image, tf.constant([start, no, no])), image)
    np.testing.assert_array_equal(augment(image, tf.constant([start, no, yes])), second.operation(image, second.level))
    after_first = first.operation(image, first.level) if first.probability > 0 else image
    np.testing.assert_array_equal(augment(image, tf.constant([start, yes, no])), after_first)
    np.testing.assert_array_equal(
        augment(image, tf.constant([start, yes, yes])), second.operation(after_first, second.level)
    )


@pytest.mark.parametrize("pair, operation", [(0, "Brightness"), (1, "Contrast")])
def test_half_the_magnitude_halves_the_levels(pair, operation):
    golden = shared_golden("f_autoaugment_ops")
    draws = tf.constant([(pair + 0.5) / 5, 0.99, 0.0])  # The second operation of the pair, of level 10.
    image = color_augmentation.augment_color(tf.constant(golden["in/image"]), draws, 0.5)
    np.testing.assert_array_equal(image, golden[f"op/{operation}/5"])


def test_equalize_keeps_an_image_of_one_value():
    image = tf.fill([4, 5, 3], tf.constant(77, tf.uint8))
    np.testing.assert_array_equal(color_augmentation.equalize(image, 5), image)
