import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.evaluation import diagnosis
from maxdl_tf.evaluation.diagnosis import REASONS, Removed
from maxdl_tf.files import images
from maxdl_tf.inference.diagnosis import diagnose
from maxdl_tf.inference.predict_files import FileOptions, ImageTask, predict_file
from maxdl_tf.inference.predictor import Predictor
from maxdl_tf.inference.tensorflow_backends import TensorFlowBackend
from maxdl_tf.inference.writer import PredictionWriter
from maxdl_tf.models.postprocess import Postprocessor
from maxdl_tf.structs import PanopticOutputs
from tests.inference.color_network import CROP_SIZE, INFO, ColorNetwork, postprocessor, striped_image

SIDE, STRIDED = 65, 17
CLASSES = DatasetInfo(
    "four", tuple(SegmentClass(i, f"class {i}", i < 3, (0, 0, 0), i) for i in (1, 2, 3, 4)), label_divisor=100
)
THRESHOLDS = {"class_threshold": 0.6, "pixel_threshold": 0.5, "thing_area_limit": 220, "stuff_area_limit": 400}
OPTIONAL = ("overlap_threshold", "split_min_area")
VOID = 4  # Index of void among the class logits.
#        no object  unsure  things ----------  stuff -------------
CLASS = (VOID, VOID, 1, 2, 0, 0, 1, 1, 0, 1, 2, 2, 3, 3)
LOGIT = (6.0, 9.0, 0.9, 1.2, 6.0, 4.0, 5.0, 6.0, 3.0, 7.0, 6.0, 5.0, 4.0, 6.0)


@pytest.fixture(scope="module")
def outputs():
    """Soft masks of all sizes: every threshold takes something."""
    generator = np.random.default_rng(3)
    coarse = generator.normal(0.0, 1.0, [len(CLASS), 7, 7])
    positions = np.linspace(0, 6, STRIDED)
    mask_logits = 4.0 * _interpolated(coarse, positions) + np.linspace(0.6, -0.6, len(CLASS))[:, None, None]
    class_logits = np.array(LOGIT)[:, None] * np.eye(5)[list(CLASS)]
    return PanopticOutputs(
        pixel_feature=tf.zeros([1, STRIDED, STRIDED, 2]),
        mask_logits=tf.constant(mask_logits.transpose(1, 2, 0)[np.newaxis], tf.float32),
        class_logits=tf.constant(class_logits[np.newaxis], tf.float32),
        semantic_logits=None,
        mask_embedding=None,
    )


def _interpolated(maps, positions):
    """[slots, h, w] at these rows and columns, linearly."""
    for axis in (1, 2):
        below = np.minimum(positions.astype(int), maps.shape[axis] - 2)
        share = (positions - below).reshape([-1, 1] if axis == 1 else [-1])
        maps = np.take(maps, below, axis) * (1 - share) + np.take(maps, below + 1, axis) * share
    return maps


def _expected(outputs, min_score_ids, panoptic):
    """What each rule removed, by name, by the rules of the post-processing, one pixel after the other."""
    logits = _interpolated(outputs.mask_logits[0].numpy().transpose(2, 0, 1).astype(np.float64), np.arange(SIDE) / 4)
    exponent = np.exp(outputs.class_logits[0].numpy().astype(np.float64))
    probability = exponent / exponent.sum(axis=1, keepdims=True)
    confidence = probability[:, :VOID].max(axis=1)
    kept = np.flatnonzero(confidence >= THRESHOLDS["class_threshold"])
    owners, pixels = {}, {}
    for row in range(SIDE):
        for column in range(SIDE):
            here = logits[:, row, column]
            best = int(here.argmax())
            share = np.exp(here[best]) / np.exp(here[kept]).sum()
            if best not in kept:
                reason = "no_object" if probability[best, VOID] > confidence[best] else "class_threshold"
            elif share <= THRESHOLDS["pixel_threshold"]:
                reason = "pixel_threshold"
            elif panoptic[row, column] == 0:
                reason = "thing_area_limit" if CLASS[best] < 2 else "stuff_area_limit"
            else:
                reason = "min_score" if panoptic[row, column] in min_score_ids else "kept"
            owners.setdefault(best, set()).add(reason)
            pixels[reason] = pixels.get(reason, 0) + 1
    masks = dict.fromkeys(REASONS, 0)
    for reasons in owners.values():
        if not reasons & {"kept", "min_score"}:
            last = (reasons - {"pixel_threshold"}) or {"pixel_threshold"}
            masks[last.pop()] += 1
    masks["min_score"] = len(min_score_ids)
    return len(owners), {name: Removed(masks[name], pixels.get(name, 0)) for name in REASONS}, pixels["kept"]


def test_every_mask_and_pixel_is_accounted_for(outputs):
    read = Postprocessor(CLASSES, **THRESHOLDS)
    predictor = Predictor.from_model(
        lambda images, training: outputs, read, crop_size=(SIDE, SIDE), dataset_info=CLASSES
    )
    prediction = predictor(np.zeros((SIDE, SIDE, 3), np.uint8))
    scores = sorted(segment.score for segment in prediction.segments)
    kept = prediction.without_unsure_segments((scores[0] + scores[1]) / 2)
    found = diagnose(outputs, read, prediction, kept)

    unsure = {min(prediction.segments, key=lambda segment: segment.score).id}
    masks, removed, left = _expected(outputs, unsure, prediction.label_map)
    assert {name: getattr(found, name) for name in REASONS} == removed
    # Or the test would not see much.
    assert all(one.pixels > 0 for name, one in removed.items() if name not in OPTIONAL), removed
    assert (found.masks, found.pixels, found.segments, found.segment_pixels) == (
        masks,
        SIDE * SIDE,
        len(kept.segments),
        left,
    )


def test_masks_under_others_are_counted(outputs):
    """Only mask-wise post-processing shows its threshold."""
    settings = {**THRESHOLDS, "pixel_threshold": 0.35}
    pixel_wise, strict, lenient = (
        Postprocessor(CLASSES, **settings, **options)
        for options in ({}, {"overlap_threshold": 0.95}, {"overlap_threshold": 0.0})
    )

    def count(read):
        predictor = Predictor.from_model(
            lambda images, training: outputs, read, crop_size=(SIDE, SIDE), dataset_info=CLASSES
        )
        prediction = predictor(np.zeros((SIDE, SIDE, 3), np.uint8))
        found = diagnose(outputs, read, prediction, prediction)
        lost = sum(getattr(found, name).pixels for name in REASONS)
        assert lost == (prediction.label_map == CLASSES.void).sum() == found.pixels - found.segment_pixels
        return found

    assert count(pixel_wise).overlap_threshold == count(lenient).overlap_threshold == Removed(0, 0)
    found = count(strict)
    assert found.overlap_threshold.masks > 0 and found.overlap_threshold.pixels > 0
    for read, is_shown in ((strict, True), (pixel_wise, False)):
        shown = {**read.thresholds, "min_score": 0.0}
        assert ("overlap_threshold" in diagnosis.as_dictionary(found, shown)) == is_shown
        assert ("overlap_threshold 0.95" in diagnosis.as_table(found, shown)) == is_shown
    line = diagnosis.as_line(found, {**strict.thresholds, "stuff_class_threshold": 0.2})
    assert "removed by overlap_threshold 0.95" in line and "class_threshold 0.6 (stuff 0.2)" in line


def test_parts_of_split_things_are_counted(outputs):
    """Masks and parts add up to the segments; a pixel that is lost is void."""
    thresholds = {**THRESHOLDS, "thing_area_limit": 0}
    whole, read = (Postprocessor(CLASSES, **thresholds, split_min_area=area) for area in (None, 40))
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    counts = []
    for one in (whole, read):
        predictor = Predictor.from_model(
            lambda images, training: outputs, one, crop_size=(SIDE, SIDE), dataset_info=CLASSES
        )
        prediction = predictor(image)
        counts.append(diagnose(outputs, one, prediction, prediction))
        lost = sum(getattr(counts[-1], name).pixels for name in REASONS)
        assert lost == (prediction.label_map == CLASSES.void).sum()
    before, after = counts
    assert (before.split_min_area, before.further_parts) == (Removed(0, 0), 0)
    assert after.further_parts > 0 and after.split_min_area.masks > 0
    assert after.segments == before.segments - after.split_min_area.masks + after.further_parts
    assert before.masks == after.masks and before.thing_area_limit == after.thing_area_limit

    settings = {**read.thresholds, "min_score": 0.0}
    table = diagnosis.as_table(diagnosis.total([after, after]), settings).splitlines()
    assert table[-4].startswith("- split_min_area 40 ")
    assert table[-3].split()[:6] == ["+", "further", "parts", "of", "things", str(2 * after.further_parts)]
    assert diagnosis.as_dictionary(after, settings)["further_parts"] == after.further_parts
    unused = diagnosis.as_dictionary(before, {**whole.thresholds, "min_score": 0.0})
    assert not {"further_parts", "split_min_area"} & set(unused)
    line = diagnosis.as_line(after._replace(split_min_area=Removed(99, 99)), settings)
    assert line.endswith("or lower model { postprocess { split_things { min_area } } }")


def test_pixels_are_those_of_the_image():
    """Red is too small a thing, green and blue stay; gray is void by the network's own word."""
    gray, red, green, blue = (127, 127, 127), (255, 0, 0), (0, 255, 0), (0, 0, 255)
    image, labels = striped_image(97, 129, (gray, green, blue, green, red, gray))
    image = image.repeat(3, axis=0).repeat(3, axis=1)
    read = postprocessor(thing_area_limit=97 * 30)
    predictor = Predictor.from_model(ColorNetwork(), read, crop_size=CROP_SIZE, dataset_info=INFO)
    prediction = predictor(image)
    found = diagnose(predictor.network_outputs(image), read, prediction, prediction)
    assert (found.masks, found.segments) == (4, 2)
    assert (found.no_object.masks, found.thing_area_limit.masks) == (1, 1)
    assert found.thing_area_limit.pixels == pytest.approx((labels == 1001).sum() * 9, rel=0.2)
    lost = sum(getattr(found, name).pixels for name in REASONS)
    assert found.segment_pixels + lost == found.pixels == image.shape[0] * image.shape[1]
    assert lost == (prediction.label_map == INFO.void).sum()

    both = diagnosis.total([found, found])
    assert both.thing_area_limit == Removed(2, 2 * found.thing_area_limit.pixels)
    assert (both.masks, both.segments, both.pixels) == (8, 4, 2 * found.pixels)
    text = diagnosis.as_table(both, {**read.thresholds, "min_score": 0.0})
    assert f"thing_area_limit {97 * 30}" in text and text.splitlines()[-1].split()[:2] == ["segments", "4"]
    assert diagnosis.total([]).masks == 0 and diagnosis.as_table(
        diagnosis.total([]), {**read.thresholds, "min_score": 0}
    )


def test_the_network_runs_once_for_prediction_and_diagnosis(tmp_path):
    """Its outputs give the prediction that the whole model gives."""
    images.write_image(str(tmp_path / "a.png"), striped_image(60, 80)[0])
    predictor = Predictor.from_model(ColorNetwork(), postprocessor(), crop_size=CROP_SIZE, dataset_info=INFO)
    whole = predictor(str(tmp_path / "a.png"))
    outputs = predictor.network_outputs(str(tmp_path / "a.png"))
    again = predictor(str(tmp_path / "a.png"), outputs)
    np.testing.assert_array_equal(again.label_map, whole.label_map)
    assert again.segments == whole.segments and len(whole.segments) == 3

    ran = []
    predictor = Predictor(
        TensorFlowBackend(None, lambda image: ran.append(1) or outputs._asdict(), postprocessor()),
        INFO,
        postprocessor(),
    )
    pictures = PredictionWriter(str(tmp_path / "out"), INFO, overlays=False).pictures
    options = FileOptions(min_score=0.0, max_pixels=10**6, features=False, diagnose=True)
    found = predict_file(predictor, ImageTask(str(tmp_path / "a.png"), "a", 1), pictures, options)
    assert len(ran) == 1 and found.diagnosis.segments == len(found.record.annotation["segments_info"]) == 3
