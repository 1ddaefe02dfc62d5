import numpy as np
import pytest

from maxdl_tf import panoptic_ids
from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.inference import segments
from maxdl_tf.inference.segment_table import SegmentTable


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
    assert segments.segments_of(_table(), _info()) == [
        segments.Segment(id=257, class_id=1, is_thing=True, score=0.5, area=6, bbox=(2, 1, 3, 2)),
        segments.Segment(id=7 * 256, class_id=7, is_thing=False, score=0.25, area=4, bbox=(0, 0, 2, 2)),
    ]
    assert segments.segments_of(_table()._replace(count=np.int32(0)), _info()) == []


@pytest.mark.parametrize("ignore_label", [0, 255])
def test_the_picture_decodes_to_the_label_map(ignore_label):
    info = _info(ignore_label=ignore_label)
    label_map = np.array([[257, 300, 7 * 256], [info.void, 511, 257]])
    decoded = panoptic_ids.color_to_id(segments.coco_picture(label_map, info))
    np.testing.assert_array_equal(decoded == 0, label_map == info.void)
    np.testing.assert_array_equal(decoded[decoded > 0], label_map[label_map != info.void])


def test_a_label_beyond_three_bytes_is_an_error():
    with pytest.raises(ValueError, match="smaller label_divisor than 10000000"):
        segments.coco_picture(np.array([[20_000_000]]), _info(label_divisor=10_000_000))


def test_coco_writes_the_official_category_id():
    found = segments.segments_of(_table(), _info())[1:]
    assert segments.coco_segments_info(found, _info()) == [
        {"id": 1792, "category_id": 187, "iscrowd": 0, "area": 4, "bbox": [0, 0, 2, 2], "score": 0.25}
    ]
    assert segments.coco_categories(_info())[1] == {"id": 187, "name": "sky", "isthing": 0, "color": [70, 130, 180]}
