"""The assignment of masks to slots."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.losses import assignment
from maxdl_tf.losses.assignment import scipy_assign, tensorflow_assign
from tests.helpers import shared_golden

SOLVERS = {
    "scipy": scipy_assign,
    "tensorflow": tf.function(tensorflow_assign, autograph=False),
    "xla": tf.function(tensorflow_assign, autograph=False, jit_compile=True),
}


@pytest.fixture(params=SOLVERS)
def assign(request):
    def assign(similarity, valid=None):
        similarity = tf.constant(similarity, tf.float32)
        valid = tf.ones(similarity.shape[:2], tf.bool) if valid is None else tf.constant(valid)
        return SOLVERS[request.param](similarity, valid).numpy()

    return assign


def total(similarity, slot_of_row):
    return sum(similarity[row, slot] for row, slot in enumerate(slot_of_row) if slot >= 0)


@pytest.mark.parametrize(
    "name",
    ["random_8", "random_40", "integers_ties_10", "all_equal_6", "zeros_6", "one_1", "negative_12", "duplicate_rows_7"],
)
def test_totals_of_the_reference(assign, name):
    golden = shared_golden("d_hungarian")
    cost, reference = golden[name + "/cost"], golden[name + "/assignment"]
    slots = assign(-cost)
    totals = [total(image, image_slots) for image, image_slots in zip(cost, slots)]
    np.testing.assert_allclose(totals, golden[name + "/total"], rtol=1e-5, atol=1e-5)
    if name.startswith(("random", "negative")):  # The others have several optima.
        np.testing.assert_array_equal(slots, reference.argmax(axis=-1))


@pytest.mark.parametrize("name", ["wide_5x9", "tall_9x5", "wide_ties_4x8"])
def test_wide_and_tall(assign, name):
    golden = shared_golden("d_hungarian")
    cost, reference = golden[name + "/cost"], golden[name + "/nonsquare"]
    slots = assign(-cost)
    rows, columns = cost.shape[1:]
    for image_cost, image_slots, image_reference in zip(cost, slots, reference):
        given = image_slots[image_slots >= 0]
        assert len(given) == len(set(given)) == min(rows, columns)
        np.testing.assert_allclose(total(image_cost, image_slots), (image_cost * image_reference).sum(), rtol=1e-5)


def test_more_rows_than_slots_of_which_few_or_many_are_valid(assign):
    """As in training: 181 rows, 128 slots, and the rows that are not valid priced at 999."""
    golden = shared_golden("d_hungarian")
    cost, reference = golden["loss_181x128/cost"], golden["loss_181x128/nonsquare"]
    valid = (cost < 900).any(axis=2)
    assert valid.sum(axis=1).tolist() == [12, 60, 150]
    slots = assign(-cost, valid)
    assert (slots >= 0).sum(axis=1).tolist() == [12, 60, 128]
    for image, image_slots in enumerate(slots):
        wanted = cost[image][valid[image]][reference[image][valid[image]]].sum()
        # The reference solves costs rounded to 6e-5, so the total here may be slightly better.
        assert total(cost[image], image_slots) == pytest.approx(wanted, abs=128 * 6.2e-5)
        assert total(cost[image], image_slots) <= wanted + 1e-4


@pytest.mark.parametrize("rows, slots", [(2, 5), (4, 4), (5, 3)])
def test_is_the_best_of_all_assignments(assign, rows, slots):
    similarity = np.random.default_rng(rows).random([rows, slots]).astype(np.float32)
    few, many = sorted((rows, slots))
    best = max(
        sum(similarity[i, j] if rows <= slots else similarity[j, i] for i, j in enumerate(chosen))
        for chosen in itertools.permutations(range(many), few)
    )
    np.testing.assert_allclose(total(similarity, assign(similarity[np.newaxis])[0]), best, rtol=1e-6)


def test_rows_that_are_not_valid_take_no_slot(assign):
    similarity = np.zeros([2, 3, 2], np.float32)
    similarity[:, 0] = 9.0  # Would win both slots if it were valid.
    similarity[:, 1, 1] = similarity[:, 2, 0] = 0.5
    valid = np.array([[False, True, True], [False, False, False]])
    np.testing.assert_array_equal(assign(similarity, valid), [[-1, 1, 0], [-1, -1, -1]])


def test_tells_similarities_apart_that_float32_cannot_beside_999(assign):
    similarity = np.full([1, 2, 2], 1e-5, np.float32)
    similarity[0, 0, 1] = similarity[0, 1, 0] = 1.1e-5
    np.testing.assert_array_equal(assign(similarity), [[1, 0]])


def test_nan_is_left_to_the_loss_to_report(assign):
    similarity = np.array([[[np.nan, np.nan], [0.1, 0.9]], [[0.1, 0.9], [0.3, 0.2]]])
    slots = assign(similarity)
    np.testing.assert_array_equal(slots, [[0, 1], [1, 0]])


@pytest.mark.parametrize("scale", [1.0, 1e-6])
@pytest.mark.parametrize("levels", [None, 4], ids=["distinct", "ties"])
@pytest.mark.parametrize("rows, slots, share", [(181, 128, 0.1), (181, 128, 0.95), (30, 128, 1.0), (64, 64, 1.0)])
def test_both_solvers_find_the_same_total(rows, slots, share, levels, scale):
    random = np.random.default_rng(rows + slots)
    similarity = random.random([3, rows, slots]).astype(np.float32) ** 4
    if levels:
        similarity = np.round(similarity * levels) / levels
    similarity *= scale
    valid = random.random([3, rows]) < share
    solutions = {name: solve(tf.constant(similarity), tf.constant(valid)).numpy() for name, solve in SOLVERS.items()}
    for name, slot_of_row in solutions.items():
        for image in range(3):
            given = slot_of_row[image][slot_of_row[image] >= 0]
            assert len(set(given)) == len(given) == min(valid[image].sum(), slots), name
            assert not (slot_of_row[image][~valid[image]] >= 0).any(), name
            wanted = total(similarity[image].astype(np.float64), solutions["scipy"][image])
            assert total(similarity[image].astype(np.float64), slot_of_row[image]) == pytest.approx(wanted, rel=1e-6), (
                name
            )


@pytest.mark.parametrize(("device", "asks_the_host"), [("CPU", True), ("GPU", False)])
def test_on_accelerators_nothing_waits_for_the_host(device, asks_the_host, monkeypatch):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: ["one"] if kind == device else [])
    similarity, valid = tf.random.uniform([2, 5, 4]), tf.ones([2, 5], tf.bool)
    graph = tf.function(assignment.assign, autograph=False).get_concrete_function(similarity, valid).graph
    assert any("PyFunc" in operation.type for operation in graph.get_operations()) == asks_the_host


def test_the_compiled_solver_has_no_host_callback():
    solve = tf.function(tensorflow_assign, autograph=False, jit_compile=True)
    text = solve.experimental_get_compiler_ir(tf.random.uniform([2, 5, 4]), tf.ones([2, 5], tf.bool))(stage="hlo")
    assert "while" in text and "custom-call" not in text and "outfeed" not in text
