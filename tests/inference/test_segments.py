import numpy as np
import pytest

from maxdl_tf import panoptic_ids
from maxdl_tf.inference import segments
from maxdl_tf.structs import DatasetInfo, SegmentClass


def _info(label_divisor=256, ignore_label=0):
    return DatasetInfo(
        "toy",
        (SegmentClass(1, "person", True, (220, 20, 60), 1), SegmentClass(7, "sky", False, (70, 130, 180), 187)),
        label_divisor,
        ignore_label,
    )


def test_area_box_and_score_of_each_segment():
    label_map = np.full((4, 6), 7 * 256)
    label_map[1:3, 2:5] = 257
    label_map[3, 5] = 258
    label_map[0] = 0
    generator = np.random.default_rng(0)
    instance_score, semantic_score = generator.uniform(size=(2, 4, 6)).astype(np.float32)
    found = {s.id: s for s in segments.segments_of(label_map, instance_score, semantic_score, _info())}
    assert list(found) == [257, 258, 7 * 256]  # Without void, by id.
    assert (found[257].class_id, found[257].is_thing, found[257].area, found[257].bbox) == (1, True, 6, (2, 1, 3, 2))
    assert (found[258].area, found[258].bbox) == (1, (5, 3, 1, 1))
    assert (found[7 * 256].is_thing, found[7 * 256].area, found[7 * 256].bbox) == (False, 11, (0, 1, 6, 3))
    for label, segment in found.items():
        pixels = label_map == label
        assert segment.score == pytest.approx(semantic_score[pixels].mean() * instance_score[pixels].mean(), rel=1e-6)


def test_nothing_but_void_has_no_segments():
    void = np.full((3, 3), 255 * 256)
    scores = np.zeros((3, 3), np.float32)
    assert segments.segments_of(void, scores, scores, _info(ignore_label=255)) == []


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
    scores = np.full((2, 2), 0.5, np.float32)
    found = segments.segments_of(np.full((2, 2), 7 * 256), scores, scores, _info())
    assert segments.coco_segments_info(found, _info()) == [
        {"id": 1792, "category_id": 187, "iscrowd": 0, "area": 4, "bbox": [0, 0, 2, 2], "score": 0.25}
    ]
    assert segments.coco_categories(_info())[1] == {"id": 187, "name": "sky", "isthing": 0, "color": [70, 130, 180]}
