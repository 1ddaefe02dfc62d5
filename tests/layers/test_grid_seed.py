"""Slots of a grid begin with the image at their place."""

import numpy as np

from maxdl_tf.layers.grid_seed import GridSeed


def test_a_slot_reads_its_point():
    memory = np.random.default_rng(0).normal(size=[1, 11, 6]).astype(np.float32)
    feature = np.random.default_rng(1).uniform(size=[1, 5, 9, 4]).astype(np.float32)
    layer = GridSeed()
    before = layer((feature, memory)).numpy()  # A grid of 3 x 3 on rows 0, 2, 4 and columns 0, 4, 8.
    feature[:, 2, 8] += 1.0
    changed = (layer((feature, memory)).numpy() != before).any(axis=-1)[0]
    np.testing.assert_array_equal(np.flatnonzero(changed), [5])
    np.testing.assert_array_equal(before[:, 9:], memory[:, 9:])


def test_points_of_a_constant_image_differ_by_position():
    memory, feature = np.zeros([1, 9, 6], np.float32), np.ones([1, 5, 5, 4], np.float32)
    for octaves, distinct in ((0, 1), (3, 9)):
        slots = GridSeed(position_octaves=octaves)((feature, memory), training=True)[0].numpy()
        assert len(np.unique(slots.round(3), axis=0)) == distinct
