"""Panoptic copy-paste equals the reference, keeps segments distinct, and pastes no padding."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.data.copy_paste import CopyPaste, copy_paste, padding_label, random_choice
from maxdl_tf.panoptic_ids import largest_instance_to_paste
from tests.helpers import shared_golden


def _table(classes, things, **options) -> DatasetInfo:
    return DatasetInfo(
        "test", tuple(SegmentClass(i, f"class {i}", i in things, (0, 0, 0), i) for i in classes), **options
    )


@pytest.mark.parametrize("pair", range(3))
def test_pasted_crops_equal_the_reference(pair):
    golden = shared_golden("k_copy_paste")
    inputs, info = golden.group(f"pair{pair}/in"), json.loads(str(golden[f"pair{pair}/info"]))
    labels = np.unique([inputs["label1"], inputs["label2"]])
    void, divisor = info["void_label"], info["divisor"]
    things = set(labels[labels % divisor > 0] // divisor) - {void}  # All classes of things here have instances.
    table = _table(set(labels // divisor) - {void}, things, label_divisor=divisor, ignore_label=void)
    assert padding_label(table) == info["padding_label"]
    image, label_map = copy_paste(
        tf.constant(inputs["image1"], tf.float32),
        tf.constant(inputs["label1"]),
        tf.constant(inputs["image2"], tf.float32),
        tf.constant(inputs["label2"]),
        options=CopyPaste(things=info["thing"], stuff=info["stuff"], void=info["void"]),
        dataset_info=table,
        choose=lambda num_labels: tf.constant(golden[f"pair{pair}/keep_before_options"] == 1),
    )
    np.testing.assert_array_equal(image, golden[f"pair{pair}/out/image"])
    np.testing.assert_array_equal(label_map, golden[f"pair{pair}/out/label"])


# --- a row of pixels, one for each kind of segment ---

INFO = _table((1, 2, 3, 4), (1, 2), label_divisor=16)
BELOW = np.int32([[16 + 1, 16 + 1, 16 + 1, 3 * 16, 3 * 16, 2 * 16 + 7, 0]])
THING, LARGEST, CROWD, STUFF, VOID, PADDING = 16 + 1, 2 * 16 + 7, 16, 4 * 16, 0, 1
ABOVE = np.int32([[THING, LARGEST, CROWD, STUFF, VOID, PADDING, THING]])
PASTED = np.int32([[16 + 14, 2 * 16 + 8, CROWD, STUFF, VOID, 2 * 16 + 7, 16 + 14]])  # Padding shows what is below.


@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize(
    "kinds, pasted",
    [
        ({"things": "all", "stuff": "random", "void": "none"}, {"thing", "random stuff"}),
        ({"things": "random", "stuff": "none", "void": "all"}, {"random thing", "void"}),
        ({"things": "none", "stuff": "all", "void": "random"}, {"stuff", "random void"}),
    ],
)
def test_each_kind_is_pasted_as_asked(kinds, pasted, chosen):
    image, label_map = copy_paste(
        tf.zeros([1, 7, 3]),
        tf.constant(BELOW),
        tf.ones([1, 7, 3]),
        tf.constant(ABOVE),
        options=CopyPaste(**kinds),
        dataset_info=INFO,
        choose=lambda num_labels: tf.fill([num_labels], chosen),
    )
    kind_of_pixel = ["thing", "thing", "thing", "stuff", "void", "padding", "thing"]
    is_pasted = np.array([kind in pasted or (chosen and f"random {kind}" in pasted) for kind in kind_of_pixel])
    np.testing.assert_array_equal(label_map, np.where(is_pasted, PASTED, BELOW))
    np.testing.assert_array_equal(image[0], np.repeat(is_pasted[:, np.newaxis], 3, axis=1))


@pytest.mark.parametrize("divisor", [2, 15, 16, 256, 1000])
def test_instances_of_both_images_never_meet(divisor):
    table = _table((1, 2), (1,), label_divisor=divisor)
    instances = divisor + np.arange(1, largest_instance_to_paste(divisor) + 1, dtype=np.int32)[np.newaxis]
    _, label_map = copy_paste(
        tf.zeros([*instances.shape, 3]),
        tf.constant(instances),
        tf.zeros([*instances.shape, 3]),
        tf.constant(instances),
        options=CopyPaste(),
        dataset_info=table,
        choose=lambda num_labels: tf.fill([num_labels], True),
    )
    assert not set(label_map.numpy().ravel()) & set(instances.ravel())
    assert set(label_map.numpy().ravel() // divisor) <= {1}


def test_every_number_of_labels_is_chosen_equally_often():
    seeds = tf.stack([tf.fill([2000], 3), tf.range(2000)], axis=1)
    choose = tf.function(
        lambda: tf.map_fn(lambda seed: random_choice(seed, tf.constant(4)), seeds, fn_output_signature=tf.bool)
    )
    chosen = choose().numpy()
    counts = np.bincount(chosen.sum(axis=1), minlength=5)
    # 400 each, with a standard deviation of 18; each label is chosen in half of the cases.
    assert abs(counts - 400).max() < 90
    assert abs(chosen.mean(axis=0) - 0.5).max() < 0.06
