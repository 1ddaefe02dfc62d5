"""The sweep gives the quality of maps without the segments below the threshold."""

from __future__ import annotations

import numpy as np
import pytest

from maxdl_tf.evaluation.matching import stack_counts
from maxdl_tf.evaluation.quality import quality_of
from maxdl_tf.evaluation.sweep import threshold_sweep
from tests.evaluation import pairs
from tests.evaluation.test_official_rule import compare_pair


def test_equals_removing_the_segments():
    rng = np.random.default_rng(5)
    drawn = [pairs.random_pair(rng) for _ in range(60)]
    whole = [compare_pair(pairs.INFO, *pair) for pair in drawn]
    counts = stack_counts([c.counts for c in whole], 6)
    found = threshold_sweep(counts, [c.scored for c in whole], pairs.INFO, (0.0, 0.3, 0.8, 1))
    for threshold, row in found.items():
        left = []
        for truth, true_segments, ids, segments in drawn:
            kept = [segment for segment in segments if segment["score"] >= threshold]
            ids = np.where(np.isin(ids, [segment["id"] for segment in kept]), ids, 0)
            left.append(compare_pair(pairs.INFO, truth, true_segments, ids, kept).counts)
        want = quality_of(stack_counts(left, 6), pairs.INFO)
        assert row == pytest.approx({group: getattr(want, group).pq for group in ("all", "things", "stuff")})
    assert found[0.0]["all"] > found[0.8]["all"] > 0 and found[1]["all"] == 0


def test_segments_without_scores():
    truth = np.int32([[1, 1]])
    listed = [{"id": 1, "category_id": 10}]
    assert compare_pair(pairs.INFO, truth, listed, truth, listed).scored is None
    scored = [{**listed[0], "score": 0.0}]
    assert compare_pair(pairs.INFO, truth, listed, truth, scored).scored.iou.tolist() == [1.0]
