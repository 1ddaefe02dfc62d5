"""Mask-wise post-processing: the reference's maps, the plain rule on random masks, and each step by hand."""

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.models import mask_bands, mask_pasting
from maxdl_tf.models.postprocess import Postprocessor
from tests.helpers import shared_golden
from tests.models.test_mask_competition import random_outputs
from tests.models.test_postprocess import COCO, SMALL, STUFF_5, THING_8, outputs_of, scene, void_reasons

MASK_WISE = {"overlap_threshold": 0.8, "thing_area_limit": 0, "stuff_area_limit": 0}
CLASS_IDS = {"coco": range(1, 134), "cityscapes": range(19), "ade20k": range(1, 151)}


def golden_call(golden):
    """The post-processor, logits and label maps of a golden. Class tables start at 1, so ids from 0 are moved."""
    info, ids = golden.info, CLASS_IDS[golden.info["data"]]
    first = min(ids)
    classes = tuple(SegmentClass(i + 1 - first, str(i), i in info["things"], (0, 0, 0), i) for i in ids)
    table = DatasetInfo(info["data"], classes, label_divisor=info["label_divisor"], ignore_label=info["void_label"])
    names = {
        "class_threshold": "class_threshold_thing",
        "stuff_class_threshold": "class_threshold_stuff",
        "overlap_threshold": "overlap",
        "class_exponent": "reorder_class_weight",
        "mask_exponent": "reorder_mask_weight",
        "output_stride": "stride",
    }
    same = ("pixel_threshold", "thing_area_limit", "stuff_area_limit")
    arguments = {**{name: info[name] for name in same}, **{name: info[key] for name, key in names.items()}}
    panoptic = golden["out/panoptic_pred"]
    panoptic = np.where(panoptic == table.void, table.void, panoptic + (1 - first) * table.label_divisor)
    logits = tuple(tf.constant(golden[f"in/{name}_logits"]) for name in ("mask", "class"))
    return Postprocessor(table, **arguments), logits, panoptic


def assert_is_golden(prediction, golden, panoptic, void):
    np.testing.assert_array_equal(prediction.panoptic, panoptic)
    accepted = panoptic != void
    scores = {"instance_scores": prediction.instance_score, "semantic_scores": prediction.semantic_score}
    for name, score in scores.items():  # Both are probabilities: their rounding is absolute.
        np.testing.assert_allclose(np.asarray(score)[accepted], golden[f"out/{name}"][accepted], atol=2e-6)


@pytest.mark.parametrize("data", CLASS_IDS)
def test_maps_of_the_reference(data):
    """Those of Cityscapes have stride 2; in one image of ADE20K no slot is confident."""
    golden = shared_golden(f"k_post_{data}")
    postprocess, logits, panoptic = golden_call(golden)
    assert_is_golden(postprocess(outputs_of(*logits)), golden, panoptic, postprocess.void)

    @tf.function(input_signature=[tf.TensorSpec([None, *x.shape[1:]]) for x in logits], autograph=False)
    def graph(mask_logits, class_logits):
        return postprocess(outputs_of(mask_logits, class_logits))

    assert_is_golden(graph(*logits), golden, panoptic, postprocess.void)
    assert {"coco": 16, "cityscapes": 11, "ade20k": 26}[data] == len(np.unique(panoptic))


@pytest.mark.parametrize("encoder", ["r50", "convnext"])
def test_maps_of_the_references_whole_models(encoder):
    golden = shared_golden(f"k_tiny_{encoder}_eval")
    limits = {name: golden.info[name] for name in ("thing_area_limit", "stuff_area_limit")}
    postprocess = Postprocessor(COCO, class_threshold=0.7, stuff_class_threshold=0.5, overlap_threshold=0.8, **limits)
    logits = (tf.constant(golden[f"out/{name}_logits"]) for name in ("pixel_space_mask", "transformer_class"))
    assert_is_golden(postprocess(outputs_of(*logits)), golden, golden["out/panoptic_pred"], COCO.void)


def plain_map(postprocess, outputs):
    """The label map of the whole input, with one map of pixels for each mask."""
    limit, stride = postprocess.thresholds, postprocess.output_stride
    probability = tf.nn.softmax(outputs.class_logits[0]).numpy()[:, :-1]
    place, confidence = probability.argmax(axis=1), probability.max(axis=1)
    is_thing = place < len(SMALL.thing_ids)
    least = np.where(is_thing, limit["class_threshold"], limit["stuff_class_threshold"])

    low = tf.nn.softmax(tf.cast(outputs.mask_logits[0], tf.float64)).numpy()
    above = low > limit["pixel_threshold"]
    mean = (low * above).sum(axis=(0, 1)) / np.maximum(above.sum(axis=(0, 1)), 1)
    score = confidence.astype(np.float64) ** limit["class_exponent"] * mean ** limit["mask_exponent"]
    masks = tf.nn.softmax(mask_bands.upsampled(outputs.mask_logits[0], stride)).numpy() > limit["pixel_threshold"]
    canvas = np.zeros(masks.shape[:2], int)
    ranked = np.argsort(-score, kind="stable")
    for number, slot in enumerate(ranked, start=1):
        free = masks[..., slot] & (canvas == 0)
        if confidence[slot] >= least[slot] and free.sum() > limit["overlap_threshold"] * masks[..., slot].sum():
            canvas[free] = number

    label = np.full(canvas.shape, SMALL.void)
    for number, slot in enumerate(ranked, start=1):
        same = [number] if is_thing[slot] else 1 + np.flatnonzero(place[ranked] == place[slot])
        if np.isin(canvas, same).sum() >= limit["thing_area_limit" if is_thing[slot] else "stuff_area_limit"]:
            label[canvas == number] = SMALL.class_order[place[slot]] * SMALL.label_divisor + number * is_thing[slot]
    return label


@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize(
    "overlap_threshold, pixel_threshold, exponents", [(0.8, 0.4, (1, 1)), (0.5, 0.34, (1, 0)), (0.0, 0.5, (0, 2))]
)
def test_the_plain_rule_gives_the_same_map(stride, overlap_threshold, pixel_threshold, exponents):
    labels = set()
    for seed in range(4):
        # Pairs of slots with nearly the same mask compete.
        outputs = random_outputs(seed, num_slots=6)
        twins = tf.concat([outputs.mask_logits, outputs.mask_logits + random_outputs(seed + 9, 6).mask_logits / 9], -1)
        outputs = outputs_of(twins, 2 * random_outputs(seed, num_slots=12).class_logits)
        postprocess = Postprocessor(
            SMALL,
            class_threshold=0.6,
            stuff_class_threshold=0.4,
            pixel_threshold=pixel_threshold,
            overlap_threshold=overlap_threshold,
            class_exponent=exponents[0],
            mask_exponent=exponents[1],
            thing_area_limit=30 * stride,
            stuff_area_limit=70 * stride,
            output_stride=stride,
        )
        want = plain_map(postprocess, outputs)
        np.testing.assert_array_equal(postprocess(outputs).panoptic[0], want)
        labels |= set(np.unique(want))
        in_image = postprocess.label_map(postprocess.slot_map(outputs, (33, 17)))  # The padding counts all the same.
        np.testing.assert_array_equal(in_image, want[:33, :17])
    assert len(labels) > 6


def test_order_of_slots_changes_nothing():
    """Instances are numbered by rank, not by slot."""
    postprocess, outputs = Postprocessor(SMALL, **MASK_WISE, class_threshold=0.3), random_outputs(0)
    order = np.random.default_rng(0).permutation(12)
    permuted = outputs_of(
        tf.gather(outputs.mask_logits, order, axis=-1), tf.gather(outputs.class_logits, order, axis=1)
    )
    want = postprocess(outputs).panoptic
    assert len(np.unique(want)) > 3
    np.testing.assert_array_equal(postprocess(permuted).panoptic, want)


def test_the_better_of_two_equal_masks_is_pasted():
    """The other one keeps no pixel; which slot has the greater logit does not matter."""
    outputs = scene([[0, 0, 2]], [THING_8, THING_8, STUFF_5], confidence=[0.8, 0.9, 0.95])
    logits = outputs.mask_logits.numpy()
    logits[..., 1] = logits[..., 0] - 0.1
    outputs = outputs._replace(mask_logits=tf.constant(logits))
    prediction = Postprocessor(SMALL, **MASK_WISE)(outputs)
    # Slot 1 is ahead with 0.9 * 0.475 against 0.8 * 0.525, and behind if masks count more.
    np.testing.assert_array_equal(prediction.panoptic[0, ::4, ::4], [[8002, 8002, 5000]])
    np.testing.assert_array_equal(prediction.slot[0, ::4, ::4], [[1, 1, 2]])
    np.testing.assert_allclose(prediction.semantic_score[0, 0, 0], 0.9, rtol=1e-5)
    by_mask = Postprocessor(SMALL, **MASK_WISE, mask_exponent=2.0)(outputs)
    np.testing.assert_array_equal(by_mask.slot[0, ::4, ::4], [[0, 0, 2]])


def test_a_mask_under_a_better_one_is_dropped_by_the_overlap():
    """Slot 1 shares two of its three pixels with slot 0."""
    outputs = scene([[0, 0, 0, 1, 2]], [THING_8, THING_8, STUFF_5], confidence=[0.9, 0.8, 0.95])
    logits = outputs.mask_logits.numpy()
    logits[0, 0, 1:3, 1] = logits[0, 0, 1:3, 0]
    outputs = outputs._replace(mask_logits=tf.constant(logits))
    reasons = void_reasons(outputs, **MASK_WISE)
    assert reasons == [[None, None, None, "overlap_threshold", None]]
    lenient = {**MASK_WISE, "overlap_threshold": 0.3}
    assert void_reasons(outputs, **lenient) == [[None] * 5]


@pytest.mark.parametrize(
    "order, overlap_threshold, area",
    [([0, 1], 0.5, [8, 0]), ([0, 1], 0.49, [8, 2]), ([1, 0], 0.5, [6, 4]), ([1, 0], 0.75, [0, 4]), ([], 0.0, [0, 0])],
)
def test_a_mask_must_keep_more_than_the_share(order, overlap_threshold, area):
    """Slot 0 claims 8 pixels and slot 1 claims 4; they share 2."""
    pixels, candidates = tf.constant([[6, 1], [1, 2]]), tf.constant(order, tf.int32)
    np.testing.assert_array_equal(mask_pasting._accepted_area(pixels, candidates, overlap_threshold), area)


def test_thresholds_of_things_and_stuff():
    """Both kinds of post-processing know them."""
    outputs = scene([[0, 1, 2, 3]], [THING_8, THING_8, STUFF_5, STUFF_5], confidence=[0.7, 0.5, 0.4, 0.3])
    for options in ({}, MASK_WISE):
        reasons = void_reasons(outputs, **options, class_threshold=0.6, stuff_class_threshold=0.35)
        assert reasons == [[None, "class_threshold", None, "no_object"]]


def test_pixels_that_no_mask_claims_are_void():
    outputs = scene([[0, 1]], [THING_8, STUFF_5])
    vague = outputs._replace(mask_logits=tf.constant([[[[0.0, 1e-9]] * 2]]))
    assert void_reasons(vague, **MASK_WISE, pixel_threshold=0.6) == [["pixel_threshold"] * 2]


def test_numbers_that_cannot_be_are_refused():
    for bad in ({"overlap_threshold": 1.1}, {"mask_exponent": -1.0}, {"stuff_class_threshold": 2.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Postprocessor(SMALL, **{**MASK_WISE, **bad})
    with pytest.raises(ValueError, match="split_connectivity 8 must be 1 or 2"):
        Postprocessor(SMALL, **MASK_WISE, split_min_area=9, split_connectivity=8)
    with pytest.raises(ValueError, match=r"pixel_threshold 0\.3 must be at least 1/3"):
        Postprocessor(SMALL, **MASK_WISE, pixel_threshold=0.3)


def test_arguments_make_the_same_post_processor():
    """They are written into exports; those of a pixel-wise one are as in earlier versions."""
    strided = Postprocessor(SMALL, **MASK_WISE, stuff_class_threshold=0.5, output_stride=2, split_min_area=7)
    again = Postprocessor(SMALL, **strided.arguments)
    assert (again.thresholds, again.output_stride) == (strided.thresholds, 2)
    assert list(Postprocessor(SMALL, thing_area_limit=1, stuff_area_limit=2).arguments) == [
        "class_threshold",
        "pixel_threshold",
        "thing_area_limit",
        "stuff_area_limit",
    ]
