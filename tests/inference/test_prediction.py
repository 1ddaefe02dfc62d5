import dataclasses
import sys
import types

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maxdl_tf import panoptic_ids
from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.errors import UserError
from maxdl_tf.inference import prediction as predictions
from maxdl_tf.inference.prediction import Prediction, Segment
from maxdl_tf.inference.segmenter import SegmentTable
from tests.inference.color_network import INFO


def _info(label_divisor=256, ignore_label=0):
    return DatasetInfo(
        "toy",
        (SegmentClass(1, "person", True, (220, 20, 60), 1), SegmentClass(7, "sky", False, (70, 130, 180), 187)),
        label_divisor,
        ignore_label,
    )


def _table():
    return SegmentTable(
        count=np.int32(2),
        ids=np.array([257, 7 * 256, 0], np.int32),
        class_ids=np.array([1, 7, 0], np.int32),
        scores=np.array([0.5, 0.25, 0.0], np.float32),
        areas=np.array([6, 4, 0], np.int32),
        boxes=np.array([[2, 1, 3, 2], [0, 0, 2, 2], [0, 0, 0, 0]], np.int32),
    )


def test_the_rows_of_a_table_that_count_are_segments():
    assert predictions.segments_of(_table(), _info()) == [
        Segment(id=257, class_id=1, is_thing=True, score=0.5, area=6, bbox=(2, 1, 3, 2)),
        Segment(id=7 * 256, class_id=7, is_thing=False, score=0.25, area=4, bbox=(0, 0, 2, 2)),
    ]
    assert predictions.segments_of(_table()._replace(count=np.int32(0)), _info()) == []


@pytest.mark.parametrize("ignore_label", [0, 255])
def test_the_picture_decodes_to_the_label_map(ignore_label):
    info = _info(ignore_label=ignore_label)
    label_map = np.array([[257, 300, 7 * 256], [info.void, 511, 257]])
    decoded = panoptic_ids.color_to_id(predictions.coco_picture(label_map, info))
    np.testing.assert_array_equal(decoded == 0, label_map == info.void)
    np.testing.assert_array_equal(decoded[decoded > 0], label_map[label_map != info.void])


def test_a_label_beyond_three_bytes_is_an_error():
    with pytest.raises(UserError, match="smaller label_divisor than 10000000"):
        predictions.coco_picture(np.array([[20_000_000]]), _info(label_divisor=10_000_000))


def test_coco_writes_the_official_category_id():
    found = predictions.segments_of(_table(), _info())[1:]
    assert predictions.coco_segments_info(found, _info()) == [
        {"id": 1792, "category_id": 187, "iscrowd": 0, "area": 4, "bbox": [0, 0, 2, 2], "score": 0.25}
    ]
    assert predictions.coco_categories(_info())[1] == {"id": 187, "name": "sky", "isthing": 0, "color": [70, 130, 180]}


def test_segments_below_the_score_become_void_and_nothing_else_changes():
    label_map = np.array([[1001, 1001, 3000], [1002, 1001, 3000], [0, 1002, 1002]], np.int32)
    segments = [
        Segment(1001, 1, True, 0.4, 3, (0, 0, 2, 2)),
        Segment(1002, 1, True, 0.5, 3, (0, 1, 3, 2)),
        Segment(3000, 3, False, 0.9, 2, (2, 0, 1, 2)),
    ]
    prediction = Prediction(label_map, segments, np.zeros((*label_map.shape, 3), np.uint8), INFO)
    label_map.setflags(write=False)
    kept = prediction.without_unsure_segments(0.5)
    np.testing.assert_array_equal(kept.label_map, [[0, 0, 3000], [1002, 0, 3000], [0, 1002, 1002]])
    assert kept.segments == segments[1:]  # A score that is just the limit is enough.
    assert prediction.without_unsure_segments(0.0) is prediction
    everything_gone = prediction.without_unsure_segments(1.0)
    assert everything_gone.segments == [] and not everything_gone.label_map.any()


def test_a_prediction_is_shown_by_its_segments():
    segments = [Segment(1001, 1, True, 0.4, 3, (0, 0, 2, 2)), Segment(3000, 3, False, 0.9, 2, (2, 0, 1, 2))]
    shown = repr(Prediction(np.zeros((3, 4), np.int32), segments, np.zeros((3, 4, 3), np.uint8), INFO))
    names = [INFO.by_id[class_id].name for class_id in (1, 3)]
    assert shown == f"<Prediction of 3 x 4 pixels, 2 segments: {names[0]} 0.40, {names[1]} 0.90>"


@pytest.fixture(scope="module")
def prediction():
    """Two balls, one of them in two pieces, on a sea, with void."""
    label_map = np.zeros((7, 9), np.int32)
    label_map[:, 5:] = 3000
    label_map[1:3, 1:4] = label_map[6, 8] = 1001
    label_map[4:6, 0:7] = 1002
    found = []
    for label, score in ((1001, 0.9), (1002, 0.625), (3000, 0.8)):
        rows, columns = np.nonzero(label_map == label)
        left, top = int(columns.min()), int(rows.min())
        box = (left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top)
        found.append(Segment(label, label // 1000, label < 3000, score, len(rows), box))
    return Prediction(label_map, found, np.zeros((7, 9, 3), np.uint8), INFO)


def test_coco_instances_are_the_things_of_the_map(prediction):
    instances = predictions.to_coco_instances(prediction, 139)
    assert [(entry["image_id"], entry["category_id"], entry["score"]) for entry in instances] == [
        (139, 18, 0.9),
        (139, 18, 0.625),
    ]
    for entry, label in zip(instances, (1001, 1002)):
        wanted = prediction.label_map == label
        np.testing.assert_array_equal(coco_mask.decode(entry["segmentation"]), wanted)
        assert entry["area"] == coco_mask.area(entry["segmentation"]) == wanted.sum()
        assert entry["bbox"] == coco_mask.toBbox(entry["segmentation"]).tolist()
        assert isinstance(entry["segmentation"]["counts"], str)  # JSON takes no bytes.


def test_coco_instances_are_encoded_as_pycocotools_does():
    """Among others, segments that end with a column and begin the next one, or begin or end with the image."""
    random = np.random.default_rng(0)
    for height, width in random.integers(1, 6, (50, 2)).tolist():
        label_map = random.integers(1001, 1003, (height, width)).astype(np.int32)
        label_map[random.random(label_map.shape) < 0.2] = 0
        rows, columns = np.nonzero(label_map == 1001)
        if not len(rows):
            continue
        box = (int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1)
        prediction = Prediction(label_map, [Segment(1001, 1, True, 1.0, len(rows), box)], None, INFO)
        [entry] = predictions.to_coco_instances(prediction, 1)
        assert (
            entry["segmentation"]["counts"].encode() == coco_mask.encode(np.asfortranarray(label_map == 1001))["counts"]
        )


@pytest.fixture
def supervision(monkeypatch):
    """A stand-in for the package: keeps what it is given."""

    @dataclasses.dataclass
    class Detections:
        xyxy: np.ndarray
        mask: np.ndarray
        confidence: np.ndarray
        class_id: np.ndarray
        data: dict

    monkeypatch.setitem(sys.modules, "supervision", types.SimpleNamespace(Detections=Detections))


def test_supervision_gets_boxes_masks_scores_and_names(supervision, prediction):
    detections = predictions.to_supervision(prediction)
    assert detections.class_id.tolist() == [1, 1, 3]
    assert detections.data["class_name"].tolist() == ["ball", "ball", "sea"]
    np.testing.assert_allclose(detections.confidence, [0.9, 0.625, 0.8])
    for label, mask, (left, top, right, bottom) in zip((1001, 1002, 3000), detections.mask, detections.xyxy):
        np.testing.assert_array_equal(mask, prediction.label_map == label)
        rows, columns = np.nonzero(mask)
        assert (left, top, right, bottom) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert predictions.to_supervision(prediction, things_only=True).class_id.tolist() == [1, 1]


def test_supervision_gets_arrays_of_the_right_shapes_where_nothing_is_seen(supervision, prediction):
    detections = predictions.to_supervision(prediction._replace(label_map=np.zeros((7, 9), np.int32), segments=[]))
    assert (detections.xyxy.shape, detections.mask.shape, detections.class_id.shape) == ((0, 4), (0, 7, 9), (0,))


def test_without_supervision_the_package_is_named(monkeypatch, prediction):
    monkeypatch.setitem(sys.modules, "supervision", None)  # Importing it fails.
    with pytest.raises(UserError, match="pip install supervision"):
        predictions.to_supervision(prediction)
