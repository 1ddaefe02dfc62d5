"""Panoptic quality: the reference's values, COCO's rule for crowds, and a slow second implementation."""

import json

import numpy as np
import pytest
from PIL import Image

from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.evaluation import segment_map
from maxdl_tf.evaluation.quality import PanopticQuality
from maxdl_tf.panoptic_ids import color_to_id
from tests.helpers import own_golden, shared_path

COCO = DatasetInfo("coco", tuple(SegmentClass(i, str(i), i <= 80, (0, 0, 0), i) for i in range(1, 134)))
# Things 1 and 4, stuff 2; void is 5.
SMALL = DatasetInfo(
    "small",
    tuple(SegmentClass(i, name, name != "sky", (0, 0, 0), i) for i, name in ((1, "cat"), (2, "sky"), (4, "dog"))),
    label_divisor=100,
    ignore_label=5,
)
VOID = 500


def quality(truth, prediction, info=SMALL, **options):
    metric = PanopticQuality(info, **options)
    metric.update(np.array(truth), np.array(prediction))
    return metric.result()


def counts(result):
    return {c.name: (c.tp, c.fp, c.fn) for c in result.classes if c.has_segments}


@pytest.mark.parametrize("pair", ["pair0", "pair1", "pair2", "pair3", "pair4", "pair5", "all"])
def test_metrics_of_the_reference(pair):
    golden = own_golden("g_pq")
    metric = PanopticQuality(COCO, ignore_crowd=False)
    for name in [f"pair{i}" for i in range(6)] if pair == "all" else [pair]:
        metric.update(golden[name + "/gt"], golden[name + "/pred"])
    result = metric.result()
    metrics = golden.group(pair)
    for name, value in (("PQ", result.all.pq), ("SQ", result.all.sq), ("RQ", result.all.rq)):
        np.testing.assert_allclose(value, metrics[name], rtol=1e-6)
    for c in result.classes:
        assert (c.tp, c.fp, c.fn) == tuple(metrics[name][c.id] for name in ("class_tp", "class_fp", "class_fn"))
        np.testing.assert_allclose(c.sq * c.tp, metrics["class_iou"][c.id], rtol=1e-6)


def slow_quality(pairs, info, ignore_crowd):
    """{class id: [sum of IoU, tp, fp, fn]}, by the text of the paper and of COCO's rule, with sets of pixels."""
    tally = {i: [0.0, 0, 0, 0] for i in info.class_order}
    for truth, prediction in pairs:
        truth_at, prediction_at = ({} for _ in range(2))
        for segments, label_map in ((truth_at, truth), (prediction_at, prediction)):
            for pixel, label in np.ndenumerate(label_map):
                segments.setdefault(int(label), set()).add(pixel)
        void = truth_at.get(info.void, set())
        found = set()
        for label, pixels in prediction_at.items():
            class_id = label // info.label_divisor
            if class_id == info.ignore_label:
                continue
            forgiven = set(void)
            for true_label, true_pixels in truth_at.items():
                if true_label // info.label_divisor != class_id:
                    continue
                if ignore_crowd and info.by_id[class_id].is_thing and true_label % info.label_divisor == 0:
                    forgiven |= true_pixels
                    continue
                iou = len(pixels & true_pixels) / len((pixels - void) | true_pixels)
                if iou > 0.5:
                    found.add(true_label)
                    tally[class_id][0] += iou
                    tally[class_id][1] += 1
                    break
            else:
                if len(pixels & forgiven) / len(pixels) <= 0.5:
                    tally[class_id][2] += 1
        for label in set(truth_at) - found - {info.void}:
            class_id = label // info.label_divisor
            if not (ignore_crowd and info.by_id[class_id].is_thing and label % info.label_divisor == 0):
                tally[class_id][3] += 1
    return tally


@pytest.mark.parametrize("ignore_crowd", [True, False])
def test_agrees_with_a_slow_implementation(ignore_crowd):
    rng = np.random.default_rng(0)
    labels = np.array([100, 101, 102, 200, 400, 401, VOID])
    pairs = []
    for share_changed in np.linspace(0, 0.8, 30):
        truth = labels[rng.integers(0, len(labels), [4, 5])].repeat(2, axis=0).repeat(2, axis=1)
        noise = labels[rng.integers(0, len(labels), truth.shape)]
        pairs.append((truth, np.where(rng.random(truth.shape) < share_changed, noise, truth)))
    metric = PanopticQuality(SMALL, ignore_crowd=ignore_crowd)
    for truth, prediction in pairs:
        metric.update(truth, prediction)
    tally = slow_quality(pairs, SMALL, ignore_crowd)
    for c in metric.result().classes:
        iou, *want = tally[c.id]
        assert [c.tp, c.fp, c.fn] == want and min(want) > 0
        np.testing.assert_allclose(c.sq, iou / c.tp, rtol=1e-12)


def test_iou_of_a_half_is_no_match():
    truth = [[101, 101, 101, 200]]
    assert counts(quality(truth, [[101, 101, 200, 200]]))["cat"] == (1, 0, 0)  # 2 / 3
    truth = [[101, 101, 200, 200]]
    result = quality(truth, [[101, 200, 200, 200]])  # The cat's IoU is 1 / 2, the sky's 2 / 3.
    assert counts(result) == {"cat": (0, 1, 1), "sky": (1, 0, 0)}
    assert (result.things.pq, result.stuff.sq) == (0.0, pytest.approx(2 / 3))
    assert result.all.pq == pytest.approx(1 / 3)


def test_void_of_the_truth_is_left_out_of_the_union_and_forgives():
    truth = [[101, 101, VOID, VOID, VOID, 200]]
    # The cat reaches into void; a dog lies on void by 2 of 3 pixels.
    result = quality(truth, [[101, 101, 101, 401, 401, 401]])
    assert counts(result) == {"cat": (1, 0, 0), "sky": (0, 0, 1)}
    assert result.things.sq == 1.0
    # By a half is not by more than a half.
    assert counts(quality(truth, [[101, 101, VOID, VOID, 401, 401]]))["dog"] == (0, 1, 0)


def test_void_of_the_prediction_is_no_segment():
    result = quality([[101, 101, 200, 200]], np.full([1, 4], VOID))
    assert counts(result) == {"cat": (0, 0, 1), "sky": (0, 0, 1)}
    assert result.all.pq == 0.0 and result.all.num_classes == 2


def test_crowds_by_both_rules():
    truth = [[100, 100, 100, 101, 200, 200]]
    prediction = [[102, 102, 400, 101, 200, 200]]
    assert counts(quality(truth, prediction)) == {"cat": (1, 0, 0), "sky": (1, 0, 0), "dog": (0, 1, 0)}
    assert counts(quality(truth, prediction, ignore_crowd=False))["cat"] == (2, 0, 0)
    # Half a prediction on the crowd and half beside it is wrong, whatever void may be elsewhere.
    assert counts(quality([[100, 100, 200, 200]], [[101, 101, 101, 101]]))["cat"] == (0, 1, 0)
    assert counts(quality([[100, 100, VOID, 200]], [[101, 101, 101, 101]])) == {"sky": (0, 0, 1)}


def test_instance_0_of_a_predicted_thing_is_a_segment():
    assert counts(quality([[101, 101]], [[100, 100]])) == {"cat": (1, 0, 0)}


def test_nothing_to_compare():
    void = np.full([3, 3], VOID)
    for result in (quality(void, void), quality(void, np.full([3, 3], 101)), PanopticQuality(SMALL).result()):
        assert result.all.num_classes == 0 and result.all.pq == 0.0
        _, *groups = [line.split() for line in result.as_table().splitlines()]
        assert groups == [[name, "-", "-", "-", "0", "classes"] for name in ("all", "things", "stuff")]


def test_large_divisors_need_no_large_tables(monkeypatch):
    golden = own_golden("g_pq")
    truth, prediction = golden["pair1/gt"], golden["pair1/pred"]
    result = quality(truth, prediction, info=COCO)
    monkeypatch.setattr(segment_map, "_LONGEST_TABLE", 1)
    assert quality(truth, prediction, info=COCO) == result
    wide = DatasetInfo("wide", COCO.classes, label_divisor=10**6)
    truth, prediction = (m // 256 * 10**6 + m % 256 for m in (truth, prediction))
    assert quality(truth, prediction, info=wide) == result


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(1, 2\).*\(1, 3\)"):
        quality([[101, 101]], [[101, 101, 101]])
    with pytest.raises(ValueError, match=r"prediction has label 301, which is class 3 .*1, 4, 2 and 5"):
        quality([[101]], [[301]])
    for label in (9900, -1):
        with pytest.raises(ValueError, match=f"truth has label {label}"):
            quality([[label]], [[101]])


def test_result_as_json_and_as_table():
    result = quality([[101, 101, 200, 200, 200, 200]], [[101, 101, 200, 200, 200, 402]])
    loaded = json.loads(json.dumps(result.as_dict()))
    assert loaded["all"]["num_classes"] == 3 and loaded["all"]["pq"] == pytest.approx((1 + 3 / 4 + 0) / 3)
    assert loaded["things"]["pq"] == pytest.approx(0.5) and loaded["num_images"] == 1
    dog = {"id": 4, "name": "dog", "is_thing": True, "pq": 0.0, "sq": 0.0, "rq": 0.0, "tp": 0, "fp": 1, "fn": 0}
    assert loaded["classes"][1] == {**dog, "iou": 0.0}
    table = result.as_table().splitlines()
    assert table[0].split()[:7] == ["class", "PQ", "SQ", "RQ", "TP", "FP", "FN"] and table[0].endswith("in %)")
    assert loaded["unit"] == "fraction" and "losses" not in loaded and len(table) == 8
    assert table[2].split() == ["things", "50.0", "50.0", "50.0", "2", "classes"]
    assert table[5].split() == ["dog", "0.0", "0.0", "0.0", "0", "1", "0"]


def coco_truth(annotations, split):
    """The class table and label maps of a data set in COCO's format, every segment numbered."""
    content = json.loads((annotations / f"panoptic_{split}.json").read_text())
    categories = sorted(content["categories"], key=lambda c: c["id"])
    class_of = {c["id"]: i for i, c in enumerate(categories, start=1)}
    classes = [SegmentClass(class_of[c["id"]], c["name"], bool(c["isthing"]), (0, 0, 0), c["id"]) for c in categories]
    label_maps = []
    for annotation in content["annotations"]:
        with Image.open(annotations / f"panoptic_{split}" / annotation["file_name"]) as png:
            segment_ids = color_to_id(np.array(png))
        label_map = np.zeros(segment_ids.shape, np.int32)
        for number, segment in enumerate(annotation["segments_info"], start=1):
            category = classes[class_of[segment["category_id"]] - 1]
            instance = number if category.is_thing and not segment["iscrowd"] else 0
            label_map[segment_ids == segment["id"]] = category.id * 1000 + instance
        label_maps.append(label_map)
    return DatasetInfo("real", tuple(classes), label_divisor=1000), label_maps


@pytest.mark.parametrize(
    "data_set, split",
    [("coco_sample", "train2017"), ("coco_sample", "val2017"), ("nuclei", "train"), ("nuclei", "val")],
)
def test_truth_against_truth_is_perfect(data_set, split):
    info, label_maps = coco_truth(shared_path("data", data_set, "annotations"), split)
    metric = PanopticQuality(info)
    for label_map in label_maps:
        metric.update(label_map, label_map)
    result = metric.result()
    assert result.num_images == len(label_maps) > 1
    assert result.all.num_classes >= 1 and result.all == result.all.__class__(1.0, 1.0, 1.0, result.all.num_classes)
    if data_set == "coco_sample":
        assert result.things.num_classes > 20 and result.stuff.num_classes > 20


def test_miou_is_that_of_the_classes_pixels():
    """Against masks of classes, on random maps with void on both sides and several segments of a class."""
    rng = np.random.default_rng(5)
    labels = np.array([100, 101, 102, 200, 400, 401, VOID])
    metric = PanopticQuality(SMALL)
    both, either = np.zeros(5), np.zeros(5)
    for _ in range(5):
        truth, prediction = rng.choice(labels, size=(2, 9, 9), p=[0.1, 0.1, 0.1, 0.3, 0.1, 0.1, 0.2])
        metric.update(truth, prediction)
        kept = truth != VOID
        for class_id in (1, 2, 4):
            masks = [(label_map // 100 == class_id) & kept for label_map in (truth, prediction)]
            both[class_id] += np.sum(masks[0] & masks[1])
            either[class_id] += np.sum(masks[0] | masks[1])
    result = metric.result()
    assert [c.iou for c in result.classes] == [both[c.id] / either[c.id] for c in result.classes]
    assert result.miou == pytest.approx(np.mean([c.iou for c in result.classes]))
    assert result.as_dict()["miou"] == result.curves()["miou"] == result.miou
    assert f"\nmIoU {100 * result.miou:.1f}" in result.as_table()


def test_miou_skips_classes_without_pixels():
    result = quality([[100, 200, VOID]], [[101, 200, 400]])
    assert result.miou == 1.0  # Instances do not matter, and a dog on void is no pixel of its class.
    assert {c.name: c.iou for c in result.classes} == {"cat": 1.0, "dog": None, "sky": 1.0}
    assert quality([[VOID]], [[200]]).miou is None
