"""Solvers of the assignment problem: give each row a slot so that the total similarity is greatest.

Both are exact. SciPy's runs on the host. The other consists of TensorFlow operations of fixed size, which XLA compiles.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import numpy as np
import tensorflow as tf
from scipy.optimize import linear_sum_assignment

# (similarity float32 [batch, rows, slots], valid bool [batch, rows]) -> slot_of_row int32 [batch, rows],
# -1 where the row is not valid or gets no slot.
Assign = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def scipy_assign(similarity: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """The assignment of greatest total similarity, by SciPy on the host. Does not run under XLA.

    Each valid row gets one slot. With more valid rows than slots, each slot gets one row.

    Args:
      similarity: float [batch, rows, slots].
      valid: bool [batch, rows].

    Returns:
      int32 [batch, rows], -1 for rows that are not valid or get no slot.
    """
    slot_of_row = tf.numpy_function(_assign_on_host, [similarity, valid], tf.int32, stateful=False)
    slot_of_row.set_shape(valid.shape)
    return slot_of_row


def _assign_on_host(similarity: np.ndarray, valid: np.ndarray) -> np.ndarray:
    slot_of_row = np.full(valid.shape, -1, np.int32)
    # A diverged model also has a NaN loss, which is reported by name; the solver would only say "invalid entries".
    similarity = np.nan_to_num(similarity.astype(np.float64), nan=0.0)
    for image_similarity, image_valid, slots in zip(similarity, valid, slot_of_row):
        rows = np.flatnonzero(image_valid)
        matched_row, matched_slot = linear_sum_assignment(image_similarity[rows], maximize=True)
        slots[rows[matched_row]] = matched_slot
    return slot_of_row


def assign(similarity: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """The solver that suits the devices of this program; arguments and result are those of the other two.

    On CPUs both take the same time, and SciPy's needs no compilation. GPUs would wait for the host, and TPUs cannot
    call it: there the other solver runs, compiled.
    """
    on_tpu = isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy)
    if on_tpu or tf.config.list_logical_devices("GPU"):
        return _compiled_assign(similarity, valid)
    return scipy_assign(similarity, valid)


class _Search(NamedTuple):
    """Shortest alternating paths from one row of each image, as far as they are known.

    Columns are the slots, followed by columns for "no slot". The cost of an edge is reduced by what its row and column
    have paid already.
    """

    row: tf.Tensor  # int32 [batch], row that the paths have reached.
    reached: tf.Tensor  # float32 [batch], cost up to that row.
    cost: tf.Tensor  # float32 [batch, columns], cost of the shortest known path to each column.
    before: tf.Tensor  # int32 [batch, columns], row before each column on that path.
    done: tf.Tensor  # bool [batch, columns], whether no shorter path exists.
    end: tf.Tensor  # int32 [batch], free column where the search has ended, or -1.


class _State(NamedTuple):
    """Pairs so far, and the dual variables: prices that rows and columns pay."""

    column_of_row: tf.Tensor  # int32 [batch, rows], -1 for none.
    row_of_column: tf.Tensor  # int32 [batch, columns], -1 for none.
    row_pays: tf.Tensor  # float32 [batch, rows]
    column_pays: tf.Tensor  # float32 [batch, columns]


def tensorflow_assign(similarity: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """The assignment of greatest total similarity, in TensorFlow operations.

    Solves the problem of `scipy_assign` in float32, for all images of a batch at once, by shortest augmenting paths
    (Crouse, "On implementing 2D rectangular assignment algorithms", 2016). Sizes must be static.

    Args:
      similarity: float [batch, rows, slots].
      valid: bool [batch, rows].

    Returns:
      int32 [batch, rows], -1 for rows that are not valid or get no slot.
    """
    similarity = tf.cast(similarity, tf.float32)
    similarity = tf.where(tf.math.is_finite(similarity), similarity, 0.0)
    batch, rows, slots = similarity.shape
    if batch is None:
        batch = tf.shape(similarity)[0]
    valid_first = tf.argsort(tf.cast(valid, tf.int32), axis=1, direction="DESCENDING", stable=True)
    cost = -tf.where(valid[:, :, tf.newaxis], similarity, 0.0)
    # Rows beyond the number of slots end in columns that cost more than any slot, but not so much more that rounding
    # would hide the differences between slots.
    spare = max(rows - slots, 0)
    dearest = 2.0 * tf.reduce_max(tf.abs(cost), axis=[1, 2], keepdims=True) + 1e-30
    cost = tf.concat([cost, tf.tile(dearest, [1, rows, spare])], axis=2)
    columns = slots + spare

    def add_row(number, state: _State):
        row = valid_first[:, number]
        search = tf.while_loop(
            lambda search: tf.reduce_any(search.end < 0),
            lambda search: (_advance(cost, state, search),),
            (
                _Search(
                    row=row,
                    reached=tf.zeros([batch]),
                    cost=tf.fill([batch, columns], np.float32(np.inf)),
                    before=tf.fill([batch, columns], -1),
                    done=tf.zeros([batch, columns], tf.bool),
                    # An image without such a row has nothing to search.
                    end=tf.where(tf.gather(valid, row, batch_dims=1), -1, 0),
                ),
            ),
        )[0]
        return number + 1, _swap(_pay(state, row, search, valid), row, search, valid)

    count = tf.reduce_max(tf.reduce_sum(tf.cast(valid, tf.int32), axis=1))
    start = _State(
        column_of_row=tf.fill([batch, rows], -1),
        row_of_column=tf.fill([batch, columns], -1),
        row_pays=tf.zeros([batch, rows]),
        column_pays=tf.zeros([batch, columns]),
    )
    _, state = tf.while_loop(lambda number, state: number < count, add_row, (0, start), maximum_iterations=rows)
    return tf.where(state.column_of_row < slots, state.column_of_row, -1)


_compiled_assign = tf.function(tensorflow_assign, autograph=False, jit_compile=True)


def _advance(cost: tf.Tensor, state: _State, search: _Search) -> _Search:
    """Moves to the nearest column that is not done; images that have ended stay unchanged."""
    going = search.end < 0
    paid = tf.gather(state.row_pays, search.row, batch_dims=1)[:, tf.newaxis] + state.column_pays
    through_row = search.reached[:, tf.newaxis] + tf.gather(cost, search.row, batch_dims=1) - paid
    is_shorter = (through_row < search.cost) & ~search.done & going[:, tf.newaxis]
    path_cost = tf.where(is_shorter, through_row, search.cost)
    before = tf.where(is_shorter, search.row[:, tf.newaxis], search.before)

    open_cost = tf.where(search.done, np.float32(np.inf), path_cost)
    reached = tf.reduce_min(open_cost, axis=1)
    # Among equally near columns a free one ends the search.
    nearest = open_cost <= reached[:, tf.newaxis]
    preferred = tf.cast(nearest, tf.int32) + tf.cast(nearest & (state.row_of_column < 0), tf.int32)
    column = tf.argmax(preferred, axis=1, output_type=tf.int32)
    next_row = tf.gather(state.row_of_column, column, batch_dims=1)
    return _Search(
        row=tf.where(going & (next_row >= 0), next_row, search.row),
        reached=tf.where(going, reached, search.reached),
        cost=path_cost,
        before=before,
        done=search.done | (_at(column, cost.shape[2]) & going[:, tf.newaxis]),
        end=tf.where(going & (next_row < 0), column, search.end),
    )


def _pay(state: _State, row: tf.Tensor, search: _Search, valid: tf.Tensor) -> _State:
    """Raises the prices along the way by how much earlier each column was reached than the end."""
    saved = tf.where(search.done, search.reached[:, tf.newaxis] - search.cost, 0.0)
    has_column = state.column_of_row >= 0
    of_row = tf.gather(saved, tf.maximum(state.column_of_row, 0), batch_dims=1) * tf.cast(has_column, tf.float32)
    of_row += tf.one_hot(row, valid.shape[1]) * search.reached[:, tf.newaxis]
    return state._replace(row_pays=state.row_pays + of_row, column_pays=state.column_pays - saved)


def _swap(state: _State, row: tf.Tensor, search: _Search, valid: tf.Tensor) -> _State:
    """Pairs each row on the path with the column behind it, from the end back to the start."""
    rows, columns = valid.shape[1], search.done.shape[1]

    def step(column, going, column_of_row, row_of_column):
        owner = tf.reduce_max(tf.where(_at(column, columns), search.before, -1), axis=1)
        previous = tf.reduce_max(tf.where(_at(owner, rows), column_of_row, -1), axis=1)
        at_owner = _at(owner, rows) & going[:, tf.newaxis]
        at_column = _at(column, columns) & going[:, tf.newaxis]
        column_of_row = tf.where(at_owner, column[:, tf.newaxis], column_of_row)
        row_of_column = tf.where(at_column, owner[:, tf.newaxis], row_of_column)
        return tf.maximum(previous, 0), going & (owner != row), column_of_row, row_of_column

    going = tf.gather(valid, row, batch_dims=1)
    _, _, column_of_row, row_of_column = tf.while_loop(
        lambda column, going, *_: tf.reduce_any(going),
        step,
        (search.end, going, state.column_of_row, state.row_of_column),
    )
    return state._replace(column_of_row=column_of_row, row_of_column=row_of_column)


def _at(index: tf.Tensor, size: int) -> tf.Tensor:
    """bool [batch, size], true where int32 [batch] `index` points."""
    return index[:, tf.newaxis] == tf.range(size)
