"""Label maps as they come: the metric's figures, the pictures that are kept, what is submitted."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.errors import UserError
from maxdl_tf.evaluation import dataset_evaluation
from maxdl_tf.evaluation.collector import Collector
from maxdl_tf.evaluation.quality import PanopticQuality
from maxdl_tf.evaluation.segment_map import from_coco, from_label_map, to_label_maps
from maxdl_tf.evaluation.submission import open_submission
from maxdl_tf.panoptic_ids import color_to_id
from tests.evaluation import pairs

# Void is 6 here, so that 0 is no class.
INFO = DatasetInfo("few", pairs.INFO.classes, label_divisor=50, ignore_label=6)
LABELS = np.array([50, 51, 52, 101, 102, 200, 250, 300])  # 50 is a crowd in truth, 300 void.


def draw(rng):
    truth = LABELS[rng.integers(0, 8, (4, 5))].repeat(3, axis=0).repeat(3, axis=1)
    noise = LABELS[rng.integers(0, 8, truth.shape)]
    return truth, np.where(rng.random(truth.shape) < rng.uniform(0, 0.4), noise, truth)


def collect(images, **options):
    collector = Collector(INFO, **options)
    for number, (truth, prediction) in enumerate(images):
        scores = {label: label / 1000 for label in np.unique(prediction).tolist()}
        collector.add(f"val/{number:03d}", truth, prediction, scores, lambda n=number: np.full((2, 2, 3), n, np.uint8))
    return collector


def test_figures_are_those_of_the_metric():
    rng = np.random.default_rng(0)
    images = [draw(rng) for _ in range(40)]
    metric = PanopticQuality(INFO)
    for pair in images:
        metric.update(*pair)
    found = dataset_evaluation.evaluate(collect(images, with_masks=True).comparisons, INFO, with_mask_ap=True)
    assert found.quality == metric.result() and 0.1 < found.quality.all.pq < 0.9
    assert found.sweep[0.0]["all"] == pytest.approx(found.quality.all.pq) and found.sweep[0.3]["all"] == 0
    assert 0 < found.mask_ap.ap < 1 and set(found.mask_ap.classes) == {"class 1", "class 2", "class 3"}
    json.dumps(found.as_dict())
    assert "mask AP" in found.as_table()


def test_pictures_of_the_best_and_the_worst():
    rng = np.random.default_rng(1)
    collector = collect([draw(rng) for _ in range(12)], num_pictures=3)
    found = dataset_evaluation.evaluate(collector.comparisons, INFO, with_mask_ap=False)
    shown = [comparison.image_id for comparison in found.best(3) + found.worst(3)]
    assert set(collector.pictures) == set(shown) and len(set(shown)) == 6
    qualities = [comparison.quality() for comparison in found.best(12)]
    assert qualities == sorted(qualities, reverse=True) and found.best(1)[0].quality() > found.worst(1)[0].quality()
    assert all((picture == int(image_id[4:])).all() for image_id, picture in collector.pictures.items())
    # Of few images none is shown twice.
    assert len(found.best(10)) == 10 and len(found.worst(10)) == 2


def test_images_without_segments_have_no_quality():
    void = np.full((3, 3), 300)
    collector = collect([(void, void), (np.full((3, 3), 50), void)], num_pictures=2)
    assert [found.quality() for found in collector.comparisons] == [None, None] and collector.pictures == {}


def test_submission(tmp_path):
    rng = np.random.default_rng(2)
    images = [draw(rng) for _ in range(3)]
    with open_submission(str(tmp_path / "new"), "val_test") as writer:
        collect(images, submission=writer)
        assert not (tmp_path / "new").exists()
    content = json.loads((tmp_path / "new" / "panoptic_val_test_results.json").read_text())
    assert [row["image_id"] for row in content["annotations"]] == [0, 1, 2]
    class_of = {row.source_id: row.id for row in INFO.classes}
    for (_, prediction), row in zip(images, content["annotations"]):
        with Image.open(tmp_path / "new" / "panoptic_val_test_results" / row["file_name"]) as png:
            ids = color_to_id(np.asarray(png))
        np.testing.assert_array_equal(ids, np.where(prediction == 300, 0, prediction))
        listed = {segment["id"]: class_of[segment["category_id"]] for segment in row["segments_info"]}
        assert listed == {label: label // 50 for label in np.unique(prediction).tolist() if label != 300}


def test_a_submission_that_fails_leaves_nothing(tmp_path):
    complaint = "segment id 16777216; a PNG of a submission holds ids from 1 to 16777215"
    with pytest.raises(UserError, match=complaint), open_submission(str(tmp_path / "new"), "val_test") as writer:
        writer.add(1, np.full((2, 2), 2**24), {2**24: 10})
    assert not list(tmp_path.iterdir())


def test_a_class_that_the_table_has_not():
    with pytest.raises(UserError, match="truth of 1: label 0 is of class 0, which 'few' has not"):
        from_label_map(np.zeros((2, 2), int), INFO, "truth of 1", is_truth=True)


def test_label_maps_for_pictures_keep_segments_apart():
    rng = np.random.default_rng(4)
    for _ in range(20):
        truth, true_segments, ids, segments = pairs.random_pair(rng)
        maps = [
            from_coco(truth, true_segments, pairs.CLASS_OF_CATEGORY, "truth"),
            from_coco(ids, segments, pairs.CLASS_OF_CATEGORY, "prediction"),
        ]
        *label_maps, table = to_label_maps(*maps, pairs.INFO)
        for segment_map, label_map in zip(maps, label_maps):
            np.testing.assert_array_equal(label_map == table.void, segment_map.ids == 0)
            for segment in segment_map.segments:
                (label,) = np.unique(label_map[segment_map.ids == segment.id])
                assert label // table.label_divisor == segment.class_id
                is_one = segment.class_id <= 3 and not segment.is_crowd
                assert (label % table.label_divisor > 0) == is_one
                assert not is_one or (segment_map.ids[label_map == label] == segment.id).all()
