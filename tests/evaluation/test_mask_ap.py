"""Mask AP of cases with a precision computed by hand."""

import numpy as np
import pytest

from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.evaluation.mask_ap import ImageThings, mask_ap, thing_masks
from maxdl_tf.evaluation.segment_map import SegmentInfo, SegmentMap

INFO = DatasetInfo("few", tuple(SegmentClass(i, f"class {i}", i <= 2, (0, 0, 0), i) for i in range(1, 4)))


def things(ids, *listed):
    """The things in a map; each listed one is id, class, and score or crowd."""
    return thing_masks(SegmentMap(ids, [SegmentInfo(i, class_id, **more) for i, class_id, more in listed]), INFO)


def square(size, at=0, value=1, side=120):
    ids = np.zeros((side, side), np.int32)
    ids[at : at + size, at : at + size] = value
    return ids


def test_masks_of_things():
    from pycocotools import mask as coco_mask

    ids = square(7, at=3, value=9)
    (thing,) = things(ids, (9, 2, {"score": 0.25}))
    assert coco_mask.area(thing.rle) == 49 and thing.segment == SegmentInfo(9, 2, score=0.25)
    assert things(ids, (9, 3, {})) == []  # Stuff.
    np.testing.assert_array_equal(coco_mask.decode(thing.rle), ids == 9)


def test_an_exact_mask_and_a_rough_one():
    truth = things(square(50), (1, 1, {}))
    exact = mask_ap([ImageThings(truth, things(square(50), (1, 1, {"score": 0.5})))], INFO)
    assert (exact.ap, exact.ap50, exact.ap75, exact.medium) == pytest.approx((1.0, 1.0, 1.0, 1.0))
    assert exact.small is None and exact.large is None
    assert exact.classes == {"class 1": pytest.approx(1.0), "class 2": None}
    rough = mask_ap([ImageThings(truth, things(square(42), (1, 1, {"score": 0.5})))], INFO)
    # 42 * 42 / 50 / 50 = 0.7056: five of the ten thresholds.
    assert (rough.ap, rough.ap50, rough.ap75) == pytest.approx((0.5, 1.0, 0.0))


@pytest.mark.parametrize(("score_of_false", "ap"), [(0.2, 1.0), (0.9, 0.5)])
def test_scores_decide_the_order(score_of_false, ap):
    """A false prediction costs if its score is higher than that of the correct one."""
    truth = things(square(40), (1, 2, {}))
    ids = square(40) + square(20, at=60, value=2)
    prediction = things(ids, (1, 2, {"score": 0.5}), (2, 2, {"score": score_of_false}))
    assert mask_ap([ImageThings(truth, prediction)], INFO).ap == pytest.approx(ap)


def test_predictions_on_crowds_are_neither_right_nor_wrong():
    ids = square(40) + square(60, at=60, value=2)
    truth = things(ids, (1, 1, {}), (2, 1, {"is_crowd": True}))
    predicted = square(40) + square(30, at=70, value=2)
    prediction = things(predicted, (1, 1, {"score": 0.5}), (2, 1, {"score": 0.9}))
    assert mask_ap([ImageThings(truth, prediction)], INFO).ap == pytest.approx(1.0)
    not_crowd = things(ids, (1, 1, {}), (2, 1, {}))
    assert mask_ap([ImageThings(not_crowd, prediction)], INFO).ap < 0.6


def test_nothing_predicted_nothing_there(capsys):
    truth = things(square(40), (1, 1, {}))
    missed = mask_ap([ImageThings(truth, []), ImageThings([], [])], INFO)
    assert missed.ap == 0.0 and missed.as_dict()["classes"] == {"class 1": 0.0, "class 2": None}
    empty = mask_ap([ImageThings([], things(square(9), (1, 1, {"score": 1.0})))], INFO)
    assert empty.ap is None and empty.as_line() == "mask AP -  AP50 -  AP75 -  small -  medium -  large -"
    assert capsys.readouterr().out == ""
