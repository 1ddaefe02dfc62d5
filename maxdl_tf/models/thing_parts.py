"""Splits things into connected parts, in TensorFlow operations only (architecture section 9).

Components are found among the runs of equal pixels in rows, which are mostly far fewer than pixels. In each round, each
set of runs joins its neighbor with the smallest number. The number of rounds grows with the logarithm of that of runs.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class Components(NamedTuple):
    """The n connected components of a map, in raster order of their first pixels.

    Attributes:
      number: int32 [h, w], the component of each pixel, from 0; -1 where the map is negative.
      value: int32 [n], value of the map in each component.
      area: int32 [n], number of pixels.
    """

    number: tf.Tensor
    value: tf.Tensor
    area: tf.Tensor


class Parts(NamedTuple):
    """The segments of an image after its things are split.

    Attributes:
      segment: int32 [h, w], segment of each pixel, from 0; the pixel's slot in stuff and in pixels without a part.
      dropped: bool [h, w], whether it is a pixel of a thing whose part is dropped.
      slot: int32 [max_segments], slot of each segment.
    """

    segment: tf.Tensor
    dropped: tf.Tensor
    slot: tf.Tensor


def split_things(
    slot: tf.Tensor,
    is_thing: tf.Tensor,
    *,
    num_slots: int,
    min_area: int,
    connectivity: int,
    max_segments: int,
) -> Parts:
    """Splits the pixels of each slot into connected parts and numbers them.

    The largest part of a slot has the slot's number; of equal parts, the first in raster order. Further parts of all
    slots follow from `num_slots`, by descending area, then in raster order.

    Args:
      slot: int32 [h, w], slot of each pixel.
      is_thing: bool [h, w], the pixels to split.
      num_slots: Number of slots.
      min_area: Number of pixels below which a part is dropped.
      connectivity: 1: pixels connect along edges. 2: also at corners.
      max_segments: Number of segments, at least `num_slots`; further parts beyond it, the smallest, are dropped.
    """
    components = connected_components(tf.where(is_thing, slot, -1), connectivity)
    large = tf.where(components.area >= min_area)[:, 0]
    large = tf.gather(large, tf.argsort(tf.gather(components.area, large), direction="DESCENDING", stable=True))
    owner = tf.gather(components.value, large)
    place = tf.range(tf.size(large))
    is_first = tf.gather(tf.math.unsorted_segment_min(place, owner, num_slots), owner) == place
    number = tf.where(is_first, owner, num_slots - 1 + tf.cumsum(tf.cast(~is_first, tf.int32)))
    kept = number < max_segments
    large, owner, number = (tf.boolean_mask(field, kept) for field in (large, owner, number))

    segment_of = tf.fill([1 + tf.size(components.area)], -1)  # Of each component, after one for other pixels.
    segment_of = tf.tensor_scatter_nd_update(segment_of, 1 + large[:, tf.newaxis], number)
    segment = tf.gather(segment_of, 1 + components.number)
    slots = tf.concat([tf.range(num_slots), tf.zeros([max_segments - num_slots], tf.int32)], axis=0)
    return Parts(
        segment=tf.where(segment < 0, slot, segment),
        dropped=is_thing & (segment < 0),
        slot=tf.tensor_scatter_nd_update(slots, number[:, tf.newaxis], owner),
    )


def connected_components(value: tf.Tensor, connectivity: int) -> Components:
    """The components of equal pixels in int32 [h, w]; pixels with negative values have none.

    Args:
      value: The map.
      connectivity: 1: pixels connect along edges. 2: also at corners.
    """
    starts = tf.pad(value[:, 1:] != value[:, :-1], [[0, 0], [1, 0]], constant_values=True)
    start = tf.cast(tf.where(tf.reshape(starts, [-1])), tf.int32)[:, 0]  # First pixel of each run.
    run = tf.cumsum(tf.cast(tf.reshape(starts, [-1]), tf.int32)) - 1  # [h * w]
    pairs = [
        [tf.gather(run, pixel), tf.gather(run, pixel + distance)]
        for pixel, distance in _contacts(value, starts, connectivity)
    ]
    root = _roots(tf.size(start), *(tf.concat(side, axis=0) for side in zip(*pairs)))

    value_of_run = tf.gather(tf.reshape(value, [-1]), start)
    is_root = (root == tf.range(tf.size(root))) & (value_of_run >= 0)
    number_of_run = tf.gather(tf.cumsum(tf.cast(is_root, tf.int32)) - 1, root)
    number_of_run = tf.where(value_of_run >= 0, number_of_run, -1)
    value_of_component = tf.boolean_mask(value_of_run, is_root)
    length = tf.concat([start[1:], [tf.size(value)]], axis=0) - start
    return Components(
        number=tf.reshape(tf.gather(number_of_run, run), tf.shape(value)),
        value=value_of_component,
        area=tf.math.unsorted_segment_sum(length, number_of_run, tf.size(value_of_component)),
    )


def _contacts(value: tf.Tensor, starts: tf.Tensor, connectivity: int) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Pixels, int32 [n], whose run touches that of a pixel in the next row, and the distance to it in raster order.

    Two runs that touch in several columns are listed for the first one; runs that touch somewhere, for no corner.
    """
    width = tf.shape(value)[1]
    upper, lower = value[:-1], value[1:]
    below = (upper == lower) & (starts[:-1] | starts[1:])
    masks = [(below, 0)]
    if connectivity == 2:
        left, right, under_left, under_right = upper[:, :-1], upper[:, 1:], lower[:, :-1], lower[:, 1:]
        falling = (left == under_right) & (left != right) & (left != under_left)
        rising = (right == under_left) & (right != left) & (right != under_right)
        masks += [(tf.pad(falling, [[0, 0], [0, 1]]), 1), (tf.pad(rising, [[0, 0], [1, 0]]), -1)]
    return [
        (tf.cast(tf.where(tf.reshape(mask & (upper >= 0), [-1])), tf.int32)[:, 0], width + columns)
        for mask, columns in masks
    ]


def _roots(num_nodes: tf.Tensor, first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """int32 [num_nodes], the smallest node connected with each node by edges from int32 [n] to int32 [n]."""

    def join(root, first, second):
        # Every root with a smaller neighbor joins the smallest one. A root that does not has one in the next round, or
        # has absorbed another: two rounds halve the number of roots with an edge.
        least = tf.math.unsorted_segment_min(tf.minimum(first, second), tf.maximum(first, second), num_nodes)
        root = _compressed(tf.minimum(root, least))
        first, second = tf.gather(root, first), tf.gather(root, second)
        apart = first != second
        return root, tf.boolean_mask(first, apart), tf.boolean_mask(second, apart)

    nodes, edges = tf.TensorShape([None]), tf.TensorShape([None])
    root, *_ = tf.while_loop(
        lambda root, first, second: tf.size(first) > 0,
        join,
        (tf.range(num_nodes), first, second),
        shape_invariants=(nodes, edges, edges),
        parallel_iterations=1,
    )
    return root


def _compressed(parent: tf.Tensor) -> tf.Tensor:
    """int32 [n], the root of each node of a forest, whose roots are their own parents."""
    return tf.while_loop(
        lambda parent, above: tf.reduce_any(parent != above),
        lambda parent, above: (above, tf.gather(above, above)),
        (parent, tf.gather(parent, parent)),
        parallel_iterations=1,
    )[0]
