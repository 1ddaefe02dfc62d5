import dataclasses
import sys
import types

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maxdl_tf.errors import UserError
from maxdl_tf.inference import adapters
from maxdl_tf.inference.predictor import Prediction
from maxdl_tf.inference.segments import Segment
from tests.inference.color_network import INFO


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
    instances = adapters.to_coco_instances(prediction, 139, INFO)
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
    detections = adapters.to_supervision(prediction, INFO)
    assert detections.class_id.tolist() == [1, 1, 3]
    assert detections.data["class_name"].tolist() == ["ball", "ball", "sea"]
    np.testing.assert_allclose(detections.confidence, [0.9, 0.625, 0.8])
    for label, mask, (left, top, right, bottom) in zip((1001, 1002, 3000), detections.mask, detections.xyxy):
        np.testing.assert_array_equal(mask, prediction.label_map == label)
        rows, columns = np.nonzero(mask)
        assert (left, top, right, bottom) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert adapters.to_supervision(prediction, INFO, things_only=True).class_id.tolist() == [1, 1]


def test_supervision_gets_arrays_of_the_right_shapes_where_nothing_is_seen(supervision, prediction):
    detections = adapters.to_supervision(prediction._replace(label_map=np.zeros((7, 9), np.int32), segments=[]), INFO)
    assert (detections.xyxy.shape, detections.mask.shape, detections.class_id.shape) == ((0, 4), (0, 7, 9), (0,))


def test_without_supervision_the_package_is_named(monkeypatch, prediction):
    monkeypatch.setitem(sys.modules, "supervision", None)  # Importing it fails.
    with pytest.raises(UserError, match="pip install supervision"):
        adapters.to_supervision(prediction, INFO)
