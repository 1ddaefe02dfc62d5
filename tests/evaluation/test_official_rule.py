"""Panoptic quality equals an independent implementation of COCO's rule, for COCO files and for label maps."""

from __future__ import annotations

import numpy as np
import pytest

from maxdl_tf.evaluation.comparison import compare
from maxdl_tf.evaluation.matching import stack_counts
from maxdl_tf.evaluation.quality import PanopticQuality, quality_of
from maxdl_tf.evaluation.segment_map import from_coco
from tests.evaluation import pairs
from tests.evaluation.official_rule import OfficialQuality


def official(info):
    return OfficialQuality(
        [row.source_id for row in info.classes], [row.source_id for row in info.classes if row.is_thing]
    )


def compare_pair(info, truth, true_segments, ids, segments):
    class_of = {row.source_id: row.id for row in info.classes}
    maps = (from_coco(truth, true_segments, class_of, "truth"), from_coco(ids, segments, class_of, "prediction"))
    return compare(0, *maps, info)


def assert_same(result, want, info):
    metrics = {}
    for c in result.classes:
        if c.has_segments:
            metrics.update({(info.by_id[c.id].source_id, name): getattr(c, name) for name in ("pq", "sq", "rq")})
    for group in ("all", "things", "stuff"):
        metrics.update({(group, name): getattr(getattr(result, group), name) for name in ("pq", "sq", "rq")})
    assert metrics.keys() == want.keys()
    for key, value in want.items():
        assert metrics[key] == pytest.approx(value, abs=1e-9), key


def label_map(ids, segments, info, is_truth):
    """The label map; None if crowds or stuff segments of one class would become one."""
    class_of = {row.source_id: row.id for row in info.classes}
    labels = np.full(ids.max() + 1, info.void)
    taken = set()
    for segment in segments:
        class_id = class_of[segment["category_id"]]
        is_one = info.by_id[class_id].is_thing and not (is_truth and segment["iscrowd"])
        label = class_id * info.label_divisor + (segment["id"] if is_one else 0)
        if label in taken:
            return None
        taken.add(label)
        labels[segment["id"]] = label
    return labels[ids]


def test_a_thousand_random_pairs():
    """Each pair alone, and all together."""
    rng = np.random.default_rng(0)
    together, comparisons, from_maps, cases = official(pairs.INFO), [], 0, []
    for _ in range(1000):
        pair = truth, true_segments, ids, segments = pairs.random_pair(rng)
        alone = official(pairs.INFO)
        alone.add(*pair)
        together.add(*pair)
        comparison = compare_pair(pairs.INFO, *pair)
        comparisons.append(comparison.counts)
        want = alone.metrics()
        assert_same(quality_of(stack_counts([comparison.counts], 6), pairs.INFO), want, pairs.INFO)
        maps = (label_map(truth, true_segments, pairs.INFO, True), label_map(ids, segments, pairs.INFO, False))
        if maps[0] is not None and maps[1] is not None:
            metric = PanopticQuality(pairs.INFO)
            metric.update(*maps)
            assert_same(metric.result(), want, pairs.INFO)
            from_maps += 1
        crowds = [s["category_id"] for s in true_segments if s["iscrowd"]]
        cases.append((bool(crowds), len(crowds) > len(set(crowds)), (truth == 0).any(), not truth.any(), not ids.any()))
    assert_same(quality_of(stack_counts(comparisons, 6), pairs.INFO), together.metrics(), pairs.INFO)
    tally = together.tally.values()
    assert min(count[name] for count in tally for name in ("tp", "fp", "fn")) > 50
    # Crowds, several of one category, void, all void, empty predictions.
    assert (np.sum(cases, axis=0) >= [200, 20, 200, 5, 5]).all() and from_maps > 200


@pytest.mark.parametrize("kind", ["at a half", "just above"])
def test_edges_of_the_rule(kind):
    """An IoU of 0.5 is no match, and half of a prediction on void or on a crowd is not the larger part."""
    above = kind == "just above"
    truth = np.repeat(np.int32([[1, 2, 0, 3]]), 4, axis=0).repeat(8, axis=1)  # 3 is a crowd.
    ids = np.zeros_like(truth)
    ids[:2, :8] = 5
    ids[2, 0] = 5 if above else 0
    ids[0, 16:24] = ids[1, 8:16] = 6  # Half on void.
    ids[2, 16] = 6 if above else 0
    ids[0, 24:32] = ids[2, 8:16] = 7  # Half on the crowd.
    ids[3, 24] = 7 if above else 0
    true_segments = pairs.segments_of(truth, {1: 10, 2: 40, 3: 20}, crowds={3})
    segments = pairs.segments_of(ids, {5: 10, 6: 20, 7: 20})
    want = official(pairs.INFO)
    want.add(truth, true_segments, ids, segments)
    assert (want.tally[10]["tp"], want.tally[20]["fp"]) == ((1, 0) if above else (0, 2))
    counts = compare_pair(pairs.INFO, truth, true_segments, ids, segments).counts
    assert_same(quality_of(stack_counts([counts], 6), pairs.INFO), want.metrics(), pairs.INFO)


def test_only_the_last_crowd_of_a_category_forgives():
    truth = np.int32([[1, 1, 1, 2, 3]])
    ids = np.int32([[4, 4, 4, 5, 0]])
    for order, wrong in (([1, 2, 3], 1), ([2, 1, 3], 0)):
        true_segments = [{"id": i, "category_id": 10 if i < 3 else 40, "iscrowd": i < 3} for i in order]
        segments = [{"id": 4, "category_id": 10}, {"id": 5, "category_id": 20}]
        counts = compare_pair(pairs.INFO, truth, true_segments, ids, segments).counts
        assert counts.fp.tolist() == [0, wrong, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("data_set", "split"),
    [("coco_sample", "train2017"), ("coco_sample", "val2017"), ("nuclei", "train"), ("nuclei", "val")],
)
def test_perturbed_truths_of_real_data(data_set, split):
    info, images = pairs.real_truth(data_set, split)
    rng = np.random.default_rng(1)
    want, counts = official(info), []
    for truth, true_segments, _ in images:
        ids, segments = pairs.perturbed(rng, truth, true_segments, [row.source_id for row in info.classes])
        want.add(truth, true_segments, ids, segments)
        counts.append(compare_pair(info, truth, true_segments, ids, segments).counts)
    result = quality_of(stack_counts(counts, info.num_semantic_channels), info)
    assert result.num_images == len(images)
    assert 0.2 < result.all.pq < 0.95
    assert_same(result, want.metrics(), info)
