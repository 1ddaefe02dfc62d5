"""Properties of each image of the drawn data set."""

from __future__ import annotations

import numpy as np
import pytest

from maxdl_tf.data_gen import shapes

INFO = shapes.dataset_info()
COUNT = 40


@pytest.fixture(scope="module")
def drawings():
    painter = shapes.Painter(97, 129, 5, seed=3, split="train")
    return [painter.draw(index) for index in range(COUNT)]


def test_an_image_depends_on_seed_split_and_number_only():
    painter = shapes.Painter(48, 64, 4, seed=0, split="train")
    late, again = painter.draw(7), shapes.Painter(48, 64, 4, seed=0, split="train")
    again.draw(0)
    np.testing.assert_array_equal(late.image, again.draw(7).image)
    np.testing.assert_array_equal(late.label, again.draw(7).label)
    others = [(7, 1, "train"), (7, 0, "val"), (8, 0, "train")]
    for index, seed, split in others:
        assert np.any(late.label != shapes.Painter(48, 64, 4, seed=seed, split=split).draw(index).label)


def test_labels_are_complete_and_instances_are_counted_within_their_class(drawings):
    for image, label in drawings:
        assert image.shape == (97, 129, 3) and label.shape == (97, 129)
        classes, instances = np.divmod(np.unique(label), INFO.label_divisor)
        assert set(classes) <= set(INFO.class_order)
        for class_id in set(classes):
            expected = np.arange(np.sum(classes == class_id)) + (class_id in INFO.thing_ids)
            np.testing.assert_array_equal(instances[classes == class_id], expected)
        assert 1 <= np.sum(instances > 0) <= 5


def test_no_segment_is_tiny(drawings):
    for _, label in drawings:
        values, areas = np.unique(label, return_counts=True)
        is_thing = values % INFO.label_divisor > 0
        # The smallest triangle has a side of about 0.15 of the image's, of which 40 % is visible.
        assert areas[is_thing].min() > 0.4 * 0.4 * (0.15 * 97) ** 2
        assert areas[~is_thing].min(initial=label.size) >= 0.02 * label.size


def test_all_classes_occur_and_things_overlap(drawings):
    occurring = np.concatenate([np.unique(label // INFO.label_divisor) for _, label in drawings])
    counts = np.bincount(occurring, minlength=7)
    assert np.all(counts[list(INFO.class_order)] >= COUNT / 4)
    touching = 0
    for _, label in drawings:
        left, right = label[:, :-1], label[:, 1:]
        both_things = (left % INFO.label_divisor > 0) & (right % INFO.label_divisor > 0)
        touching += bool(np.any(both_things & (left != right)))
    assert touching > COUNT / 4


def test_things_stand_out_from_their_surroundings(drawings):
    for image, label in drawings:
        things = label % INFO.label_divisor > 0
        edges = (label[:, :-1] != label[:, 1:]) & (things[:, :-1] | things[:, 1:])
        step = np.linalg.norm(image[:, 1:].astype(float) - image[:, :-1], axis=-1)
        assert step[edges].mean() > 25
