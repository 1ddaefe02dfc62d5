"""Each error has one kind, and its cost is the gain of fixing it in the map."""

from __future__ import annotations

import numpy as np
import pytest

from maxdl_tf.evaluation.errors import KINDS, ErrorCounts, error_costs
from maxdl_tf.evaluation.matching import stack_counts
from maxdl_tf.evaluation.quality import quality_of
from tests.evaluation import pairs
from tests.evaluation.test_official_rule import compare_pair

# Rows of 10 pixels. Truth: 1 and 2 of class 1, 3 of class 2, 4 of class 3, 5 of class 4, void.
TRUTH = np.repeat(np.int32([[1], [2], [3], [4], [5], [0]]), 10, axis=1)
TRUE_CATEGORY = {1: 10, 2: 10, 3: 20, 4: 30, 5: 40}
CATEGORY = {11: 10, 12: 10, 13: 30, 15: 40, 16: 50}


def predicted():
    """1 is matched with 0.8, 2 with 0.4 is a bad mask, 3 has class 3, 4 is missed, 5 is exact, 16 is false on 4."""
    ids = np.zeros_like(TRUTH)
    ids[0, :8] = 11
    ids[1, :4] = 12
    ids[2, :9] = 13
    ids[3, :1] = 16
    ids[4] = 15
    return ids


def costs_of(comparisons, info=pairs.INFO):
    errors = ErrorCounts(*map(np.stack, zip(*(found.errors for found in comparisons))))
    return error_costs(stack_counts([found.counts for found in comparisons], 6), errors, info)


def quality(ids, categories=CATEGORY):
    segments = pairs.segments_of(ids, categories)
    found = compare_pair(pairs.INFO, TRUTH, pairs.segments_of(TRUTH, TRUE_CATEGORY), ids, segments)
    return quality_of(stack_counts([found.counts], 6), pairs.INFO), found


def fix(kind):
    """The prediction with one kind of error fixed by hand."""
    ids, categories = predicted(), dict(CATEGORY)
    if kind == "missed":
        ids[3] = np.where(ids[3] == 16, 16, 0)
        ids[3, 1:] = 14
        categories[14] = 30
    elif kind == "false":
        ids[ids == 16] = 0
    elif kind == "wrong class":
        categories[13] = 20
    elif kind == "bad mask":
        ids[1] = 12
    else:
        ids[0] = 11
    return ids, categories


def test_each_error_is_of_one_kind():
    _, found = quality(predicted())
    errors = {name: np.flatnonzero(field).tolist() for name, field in found.errors._asdict().items()}
    assert errors == {
        "missed": [3],
        "false": [5],
        "wrong_class_true": [2],
        "wrong_class_predicted": [3],
        "wrong_class_iou": [2],
        "bad_mask": [1],
        "rough_mask": [1],
    }
    assert found.errors.wrong_class_iou[2] == 0.9


@pytest.mark.parametrize("kind", ["false", "wrong class", "bad mask", "rough mask"])
def test_costs_are_the_gains_of_fixing(kind):
    now, found = quality(predicted())
    then, _ = quality(*fix(kind))
    cost = costs_of([found])[kind]
    assert cost.count == 1
    for group in ("all", "things", "stuff"):
        assert getattr(cost, group) == pytest.approx(getattr(then, group).pq - getattr(now, group).pq)
    gained = [c for c in then.classes if c.pq > dict((x.id, x.pq) for x in now.classes)[c.id]]
    assert {class_id for class_id, value in cost.of_class.items() if value > 1e-9} == {c.id for c in gained}


def test_a_missed_segment_costs_an_exact_match():
    now, found = quality(predicted())
    cost = costs_of([found])["missed"]
    # Class 3 has a wrong prediction too, 13: 1 / 1.5 after, 0 before.
    assert cost.of_class == pytest.approx({1: 0, 2: 0, 3: 2 / 3, 4: 0, 5: 0})
    assert cost.things == pytest.approx(2 / 9) and cost.all == pytest.approx(2 / 15) and now.things.num_classes == 3


def test_bad_masks_pair_the_closest_first_and_each_segment_once():
    truth = np.int32([[1] * 10 + [2] * 10])
    ids = np.int32([[0] * 5 + [3] * 7 + [4] * 4 + [5] + [0] * 3])
    segments = pairs.segments_of(ids, {3: 10, 4: 10, 5: 10})
    found = compare_pair(pairs.INFO, truth, pairs.segments_of(truth, {1: 10, 2: 10}), ids, segments)
    # 3 and 1: 5 / 12; 4 and 2: 4 / 10; 5 and 2: 1 / 10, but 2 is taken.
    assert (found.errors.bad_mask[1], found.errors.missed[1], found.errors.false[1]) == (2, 0, 1)


def test_errors_add_up_to_what_the_metric_counts():
    rng = np.random.default_rng(3)
    comparisons = [compare_pair(pairs.INFO, *pairs.random_pair(rng)) for _ in range(200)]
    for found in comparisons:
        e, counts = found.errors, found.counts
        np.testing.assert_array_equal(e.missed + e.wrong_class_true + e.bad_mask, counts.fn)
        np.testing.assert_array_equal(e.false + e.wrong_class_predicted + e.bad_mask, counts.fp)
        assert (e.rough_mask <= counts.tp).all() and (e.rough_mask == 0)[counts.iou == counts.tp].all()
    costs = costs_of(comparisons)
    assert list(costs) == list(KINDS) and all(cost.count > 0 and cost.all > 0 for cost in costs.values())
