"""Bootstrap intervals, compared with a loop that resamples the images and measures each sample."""

import numpy as np
import pytest

from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.evaluation.matching import PanopticCounts
from maxdl_tf.evaluation.quality import intervals_line, quality_intervals, quality_of

INFO = DatasetInfo("few", tuple(SegmentClass(i, str(i), i <= 2, (0, 0, 0), i) for i in range(1, 5)))


def draw_counts(rng, images):
    tp, fp, fn = (rng.poisson(rate, (images, 5)) * (np.arange(5) > 0) for rate in (1.5, 0.5, 0.7))
    rare = rng.random(images) < 0.9  # Class 4 is in a tenth of the images.
    for field in (tp, fp, fn):
        field[rare, 4] = 0
    return PanopticCounts(tp * rng.uniform(0.5, 1, (images, 5)), tp, fp, fn)


def test_equals_a_loop_over_samples():
    rng = np.random.default_rng(0)
    counts = draw_counts(rng, 30)
    qualities = []
    for _ in range(4000):
        chosen = rng.integers(0, 30, 30)
        qualities.append(quality_of(PanopticCounts(*(field[chosen] for field in counts)), INFO))
    found = quality_intervals(counts, INFO, samples=4000)
    for group in ("all", "things", "stuff"):
        for name in ("pq", "sq", "rq"):
            want = np.percentile([getattr(getattr(quality, group), name) for quality in qualities], [2.5, 97.5])
            np.testing.assert_allclose(found[group][name], want, atol=0.02)
            assert found[group][name][0] < getattr(getattr(quality_of(counts, INFO), group), name)


def test_more_images_narrow_the_interval_and_a_seed_repeats_it():
    rng = np.random.default_rng(1)
    widths = []
    for images in (25, 400):
        counts = draw_counts(rng, images)
        low, high = quality_intervals(counts, INFO)["things"]["pq"]
        widths.append(high - low)
        assert low <= quality_of(counts, INFO).things.pq <= high
        assert quality_intervals(counts, INFO) == quality_intervals(counts, INFO)
        assert quality_intervals(counts, INFO) != quality_intervals(counts, INFO, seed=1)
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.4)  # As the square root of the number.


def test_equal_images_give_an_interval_of_one_value():
    counts = PanopticCounts(*(np.tile(np.array([0, 3, 0, 1, 0]) * scale, (10, 1)) for scale in (0.8, 1, 1, 0)))
    intervals = quality_intervals(counts, INFO)
    assert intervals["things"]["pq"] == pytest.approx((0.8 / 1.5,) * 2)
    assert intervals["stuff"]["sq"] == pytest.approx((0.8, 0.8))
    assert intervals_line(intervals).endswith("all 53.3 to 53.3, things 53.3 to 53.3, stuff 53.3 to 53.3")


def test_no_images():
    empty = PanopticCounts(*(np.zeros((0, 5)) for _ in range(4)))
    intervals = quality_intervals(empty, INFO)
    assert intervals["all"] == {"pq": None, "sq": None, "rq": None} and intervals_line(intervals).endswith(
        "images): none"
    )


def test_a_group_without_classes_has_no_interval():
    only_things = PanopticCounts(*(np.tile([0, 3, 0, 0, 0], (10, 1)) * scale for scale in (0.8, 1, 1, 0)))
    intervals = quality_intervals(only_things, INFO)
    assert intervals["all"]["pq"] == intervals["things"]["pq"] is not None and intervals["stuff"]["pq"] is None
    assert intervals_line(intervals).endswith("images): all 53.3 to 53.3, things 53.3 to 53.3")
