"""Evaluated images: their metrics, the pictures that are kept, the submission."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from maxdl_tf import class_table
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.errors import UserError
from maxdl_tf.evaluation import coco_pairs, comparison
from maxdl_tf.evaluation.comparison import evaluate_images
from maxdl_tf.evaluation.diagnosis import count_masks
from maxdl_tf.evaluation.model_images import EvaluatedImage, panoptic_quality
from maxdl_tf.evaluation.quality import PanopticQuality
from maxdl_tf.evaluation.segment_map import SegmentInfo, SegmentMap, from_coco, from_label_map, to_label_maps
from maxdl_tf.evaluation.submission import open_submission
from maxdl_tf.panoptic_ids import color_to_id, id_to_color
from tests.evaluation import pairs

# Void is 6 here, so that 0 is no class.
INFO = DatasetInfo("few", pairs.INFO.classes, label_divisor=50, ignore_label=6)
LABELS = np.array([50, 51, 52, 101, 102, 200, 250, 300])  # 50 is a crowd in truth, 300 void.


def draw(rng):
    truth = LABELS[rng.integers(0, 8, (4, 5))].repeat(3, axis=0).repeat(3, axis=1)
    noise = LABELS[rng.integers(0, 8, truth.shape)]
    return truth, np.where(rng.random(truth.shape) < rng.uniform(0, 0.4), noise, truth)


def evaluate(images, info=INFO, **options):
    def evaluated():
        for number, (truth, prediction) in enumerate(images):
            scores = {label: label / 1000 for label in np.unique(prediction).tolist()}
            picture = np.full((2, 2, 3), number, np.uint8)
            yield EvaluatedImage(f"val/{number:03d}", truth, prediction, scores, lambda picture=picture: picture)

    return evaluate_images(evaluated(), info, **options)


def test_quality_is_that_of_the_metric():
    rng = np.random.default_rng(0)
    images = [draw(rng) for _ in range(40)]
    metric = PanopticQuality(INFO)
    for pair in images:
        metric.update(*pair)
    found = evaluate(images, with_mask_ap=True)
    assert found.quality == metric.result() and 0.1 < found.quality.all.pq < 0.9
    assert found.sweep[0.0]["all"] == pytest.approx(found.quality.all.pq) and found.sweep[0.3]["all"] == 0
    assert 0 < found.mask_ap.ap < 1 and set(found.mask_ap.classes) == {"class 1", "class 2", "class 3"}
    json.dumps(found.as_dict())
    assert "mask AP" in found.as_table()


def test_pictures_of_the_best_and_the_worst():
    rng = np.random.default_rng(1)
    found = evaluate([draw(rng) for _ in range(12)], num_pictures=3)
    shown = [comparison.image_id for comparison in found.best(3) + found.worst(3)]
    assert set(found.pictures) == set(shown) and len(set(shown)) == 6
    qualities = [comparison.quality() for comparison in found.best(12)]
    assert qualities == sorted(qualities, reverse=True) and found.best(1)[0].quality() > found.worst(1)[0].quality()
    assert all((picture == int(image_id[4:])).all() for image_id, picture in found.pictures.items())


@pytest.mark.parametrize("images", [1, 5, 9, 30])
def test_no_image_is_both_among_the_best_and_the_worst(images):
    """Also where many have the same PQ, as those of an untrained model."""
    rng = np.random.default_rng(5)
    thing, void = np.full((4, 4), 101), np.full((4, 4), 300)
    found = evaluate([(thing, thing if rng.random() < 0.2 else void) for _ in range(images)], num_pictures=4)
    best, worst = ([image.image_id for image in some] for some in (found.best(4), found.worst(4)))
    assert not set(best) & set(worst) and set(found.pictures) == {*best, *worst}
    assert len(best) == min(4, (images + 1) // 2) and len(worst) == min(4, images // 2)


def test_losses_are_means_and_a_pq_of_0_is_explained():
    thing, void = np.full((4, 4), 101), np.full((4, 4), 300)
    slot, reason = np.repeat([[0, 1, 2, 2]], 4, axis=0), np.repeat([[1, 2, 2, 2]], 4, axis=0)

    def images(prediction):
        for total in (1.0, 4.0):
            losses = {"total": total, "mask_id": total / 2, "semantic": 0.0}
            segments = int((prediction == thing).all())
            found = count_masks(slot, reason * (1 - segments), segments=segments)
            yield EvaluatedImage("a", thing, prediction, None, lambda: None, losses, found)

    thresholds = {"class_threshold": 0.7}
    zero, perfect = (evaluate_images(images(p), INFO, thresholds=thresholds) for p in (void, thing))
    for found in (zero, perfect):
        assert found.as_dict()["losses"] == {"total": 2.5, "mask_id": 1.25, "semantic": 0.0}
        assert found.curves()["losses/total"] == 2.5
        assert "\nloss 2.5 (mask_id 1.25)" in found.as_table()
    line = (
        "PQ 0 of all, things: 6 masks of the network in all classes, 4 removed by class_threshold 0.7, 2 void by the "
        "network itself; 0 segments left. Train longer or lower model { postprocess { class_threshold } }"
    )
    assert line in zero.as_table().splitlines() and "segments left" not in perfect.as_table()
    assert panoptic_quality(images(void), INFO, thresholds) == zero.quality
    assert "masks" not in zero.as_dict()


def test_images_without_segments_have_no_quality():
    void = np.full((3, 3), 300)
    found = evaluate([(void, void), (np.full((3, 3), 50), void)], num_pictures=2)
    assert [image.quality() for image in found.comparisons] == [None, None] and found.pictures == {}


def test_submission(tmp_path):
    rng = np.random.default_rng(2)
    images = [draw(rng) for _ in range(3)]
    with open_submission(str(tmp_path / "new"), "val_test") as writer:
        evaluate(images, submission=writer)
        assert writer.num_images == 3 and not (tmp_path / "new").exists()
    content = json.loads((tmp_path / "new" / "panoptic_val_test_results.json").read_text())
    assert [row["image_id"] for row in content["annotations"]] == [0, 1, 2]
    class_of = {row.source_id: row.id for row in INFO.classes}
    for (_, prediction), row in zip(images, content["annotations"]):
        with Image.open(tmp_path / "new" / "panoptic_val_test_results" / row["file_name"]) as png:
            ids = color_to_id(np.asarray(png))
        np.testing.assert_array_equal(ids, np.where(prediction == 300, 0, prediction))
        listed = {segment["id"]: class_of[segment["category_id"]] for segment in row["segments_info"]}
        assert listed == {label: label // 50 for label in np.unique(prediction).tolist() if label != 300}


def test_a_submission_with_category_0_has_the_quality_of_the_evaluation(tmp_path):
    rows = [dataclasses.replace(row, source_id=row.id - 1) for row in INFO.classes]
    info = class_table.parse(class_table.to_text(dataclasses.replace(INFO, classes=tuple(rows))))
    images = [draw(np.random.default_rng(seed)) for seed in range(3)]
    with open_submission(str(tmp_path / "new"), "val") as writer:
        found = evaluate(images, info=info, submission=writer)
    content = {"images": [], "annotations": []}
    content["categories"] = [{"id": row.source_id, "name": row.name, "isthing": row.is_thing} for row in rows]
    (tmp_path / "truth").mkdir()
    for number, (truth, _) in enumerate(images):
        ids = np.where(truth == INFO.void, 0, truth)
        Image.fromarray(id_to_color(ids)).save(tmp_path / "truth" / f"{number:03d}.png")
        segments = [
            {"id": label, "category_id": label // 50 - 1, "iscrowd": int(label == 50)}
            for label in np.unique(ids[ids > 0]).tolist()
        ]
        content["images"].append({"id": number, "file_name": f"{number:03d}.jpg", "height": 12, "width": 15})
        content["annotations"].append({"image_id": number, "file_name": f"{number:03d}.png", "segments_info": segments})
    (tmp_path / "truth.json").write_text(json.dumps(content))
    files = coco_pairs.find_predictions(str(tmp_path / "new"))
    pairs_of_files = coco_pairs.open_pairs(files, str(tmp_path / "truth.json"))
    quality = comparison.evaluate(coco_pairs.compare_pairs(pairs_of_files), pairs_of_files.dataset_info).quality
    assert quality.all == found.quality.all and 0.1 < quality.all.pq < 0.9


def test_a_submission_that_fails_leaves_nothing(tmp_path):
    complaint = "segment id 16777216; a PNG of a submission holds ids from 1 to 16777215"
    with pytest.raises(UserError, match=complaint), open_submission(str(tmp_path / "new"), "val_test") as writer:
        writer.add(1, SegmentMap(np.full((2, 2), 2**24), [SegmentInfo(2**24, 1)]), {1: 10})
    assert not list(tmp_path.iterdir())


def test_a_class_that_is_not_in_the_table():
    with pytest.raises(ValueError, match=r"truth of 1 has label 7, which is class 0 .*'few' has the classes 1, 2, 3"):
        from_label_map(np.full((2, 2), 7), INFO, "truth of 1")


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
