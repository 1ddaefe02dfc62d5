"""Targets equal the goldens of the reference; also crops with too many things, and other data sets."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.data.targets import panoptic_targets
from tests.helpers import own_golden, shared_golden


def _dataset_info(things, stuff, **options) -> DatasetInfo:
    classes = [SegmentClass(i, f"class {i}", i in things, (0, 0, 0), i) for i in (*things, *stuff)]
    return DatasetInfo("test", tuple(classes), **options)


COCO_LIKE = _dataset_info(range(1, 81), range(81, 134))
SMALL = _dataset_info(things=(1, 4), stuff=(2, 3), label_divisor=10)


@pytest.mark.parametrize("case", [0, 1, 2])
@pytest.mark.parametrize("variant, small_instance_weight", [("s", 1.0), ("l", 3.0)])
def test_equals_the_reference(case, variant, small_instance_weight):
    golden = own_golden("f_targets")
    label_map = tf.constant(golden[f"{case}/in/panoptic"])
    expected = golden.group(f"{case}/{variant}")
    targets = panoptic_targets(label_map, COCO_LIKE, small_instance_weight=small_instance_weight)
    np.testing.assert_array_equal(targets.semantic, expected["semantic_gt"])
    np.testing.assert_array_equal(targets.semantic_weight, expected["semantic_loss_weight"])
    np.testing.assert_array_equal(targets.thing_id_mask, expected["thing_id_mask_gt"])
    np.testing.assert_array_equal(targets.thing_id_class, expected["thing_id_class_gt"])
    # Pixels with a thing class that belong to no thing are a crowd.
    is_crowd = (np.asarray(targets.thing_id_mask) < 0) & np.isin(targets.semantic, COCO_LIKE.thing_ids)
    np.testing.assert_array_equal(is_crowd, expected["is_crowd_gt"])


@pytest.mark.parametrize("case", [0, 2])
def test_evaluation_samples_of_the_reference(case):
    golden = shared_golden("f_eval_samples_129")
    targets = panoptic_targets(tf.constant(golden[f"eval{case}/out/panoptic_gt"]), COCO_LIKE)
    np.testing.assert_array_equal(targets.semantic, golden[f"eval{case}/out/semantic_gt"])
    np.testing.assert_array_equal(targets.thing_id_mask, golden[f"eval{case}/out/thing_id_mask_gt"])
    np.testing.assert_array_equal(targets.thing_id_class, golden[f"eval{case}/out/thing_id_class_gt"])


def test_raster_order_crowd_void_and_weights():
    label_map = tf.constant([[0, 42, 42, 11], [40, 41, 11, 11], [20, 41, 30, 10]])
    targets = panoptic_targets(label_map, SMALL, small_instance_weight=5.0, small_instance_area=3, max_things=4)
    np.testing.assert_array_equal(targets.semantic, [[0, 4, 4, 1], [4, 4, 1, 1], [2, 4, 3, 1]])
    np.testing.assert_array_equal(targets.thing_id_mask, [[-1, 0, 0, 1], [-1, 2, 1, 1], [-1, 2, -1, -1]])
    np.testing.assert_array_equal(targets.thing_id_class, [4, 1, 4, -1])
    np.testing.assert_array_equal(targets.semantic_weight, [[1, 5, 5, 1], [1, 5, 1, 1], [1, 5, 1, 1]])


def test_the_largest_of_too_many_things_are_kept():
    label_map = tf.constant([[11, 12, 12, 41], [42, 12, 41, 20], [42, 43, 43, 43]])
    targets = panoptic_targets(label_map, SMALL, max_things=3)
    # Areas: 11 has 1, 12 and 43 have 3, 41 and 42 have 2; of equal areas, the lower label value is kept.
    np.testing.assert_array_equal(targets.thing_id_mask, [[-1, 0, 0, 1], [-1, 0, 1, -1], [-1, 2, 2, 2]])
    np.testing.assert_array_equal(targets.thing_id_class, [1, 4, 4])
    np.testing.assert_array_equal(targets.semantic, np.asarray(label_map) // 10)


def test_an_ignore_label_other_than_zero():
    info = _dataset_info(things=(1,), stuff=(2,), label_divisor=1000, ignore_label=255)
    targets = panoptic_targets(tf.constant([[255000, 1001], [2000, 1000]]), info, max_things=2)
    np.testing.assert_array_equal(targets.semantic, [[255, 1], [2, 1]])
    np.testing.assert_array_equal(targets.thing_id_mask, [[-1, 0], [-1, -1]])
    np.testing.assert_array_equal(targets.thing_id_class, [1, -1])


def test_a_batch_equals_its_images_one_by_one_and_xla_agrees():
    random = np.random.default_rng(3)
    label_maps = tf.constant(random.choice([0, 10, 11, 12, 13, 20, 30, 40, 41, 42, 49], [3, 17, 33]).astype(np.int32))
    options = {"small_instance_weight": 3.0, "small_instance_area": 50, "max_things": 5}
    batched = panoptic_targets(label_maps, SMALL, **options)
    compiled = tf.function(lambda x: panoptic_targets(x, SMALL, **options), jit_compile=True)(label_maps)
    one_by_one = [panoptic_targets(label_map, SMALL, **options) for label_map in label_maps]
    for field, values in batched._asdict().items():
        np.testing.assert_array_equal(values, np.stack([getattr(image, field) for image in one_by_one]), err_msg=field)
        np.testing.assert_array_equal(values, getattr(compiled, field), err_msg=field)
