"""Panoptic maps from logits: the reference's maps, and each rule by hand."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.models.postprocess import Postprocessor
from maxdl_tf.structs import VOID_REASONS, PanopticOutputs
from tests.helpers import any_golden, shared_golden

COCO = DatasetInfo("coco", tuple(SegmentClass(i, str(i), i <= 80, (0, 0, 0), i) for i in range(1, 134)))
# Things 3, 8 and stuff 5, 6; another divisor and void than COCO's.
SMALL = DatasetInfo(
    "small",
    tuple(SegmentClass(i, str(i), i in (3, 8), (0, 0, 0), i) for i in (8, 3, 6, 5)),
    label_divisor=1000,
    ignore_label=9,
)
THING_8, STUFF_5, STUFF_6 = 1, 2, 3  # Places in SMALL.class_order, (3, 8, 5, 6).
VOID = 9000


# The last one, the first image of the first, is part of this repository.
GOLDENS = ("e_post_s_rect_97x161", "e_post_s_small_limits_129", "e_post_s_thresholds_257", "e_post_one_image")


@pytest.fixture(scope="module", params=GOLDENS)
def golden(request):
    return any_golden(request.param)


def golden_call(golden):
    info = golden.info
    options = ("class_threshold", "pixel_threshold", "thing_area_limit", "stuff_area_limit")
    outputs = (tf.constant(golden["in/mask_logits"]), tf.constant(golden["in/class_logits"]))
    return Postprocessor(COCO, **{name: info[name] for name in options}), outputs


def outputs_of(mask_logits, class_logits):
    return PanopticOutputs(pixel_feature=None, mask_logits=mask_logits, class_logits=class_logits, semantic_logits=None)


def assert_is_golden(prediction, golden):
    np.testing.assert_array_equal(prediction.panoptic, golden["out/panoptic_pred"])
    assert prediction.panoptic.dtype == tf.int32
    accepted = golden["out/panoptic_pred"] != COCO.void
    for name, reference in (("instance_score", "instance_scores"), ("semantic_score", "semantic_scores")):
        got, wanted = (
            np.asarray(scores)[accepted] for scores in (getattr(prediction, name), golden["out/" + reference])
        )
        np.testing.assert_allclose(got, wanted, atol=2e-6, err_msg=name)


def test_maps_of_the_reference(golden):
    postprocess, outputs = golden_call(golden)
    assert_is_golden(postprocess(outputs_of(*outputs)), golden)


def test_maps_of_the_reference_in_a_graph_of_any_batch_size(golden):
    postprocess, outputs = golden_call(golden)

    @tf.function(input_signature=[tf.TensorSpec([None, *output.shape[1:]]) for output in outputs])
    def graph(mask_logits, class_logits):
        return postprocess(outputs_of(mask_logits, class_logits))

    assert_is_golden(graph(*outputs), golden)


def test_the_winner_of_each_pixel_is_the_references(golden):
    """The reference's map of classes has no thresholds; its map of slots is that of kept slots."""
    postprocess, outputs = golden_call(golden)
    for i in range(len(outputs[0])):
        slot_map = postprocess.slot_map(outputs_of(*(output[i : i + 1] for output in outputs)))
        slot = slot_map.slot.numpy()
        np.testing.assert_array_equal(slot_map.class_id.numpy()[slot], golden["out/semantic_pred"][i])
        is_kept = slot_map.class_confidence.numpy()[slot] >= postprocess.thresholds["class_threshold"]
        np.testing.assert_array_equal(slot[is_kept] + 1, golden["out/instance_pred"][i][is_kept])


def scene(slot_of_cell, classes, confidence=0.95, sharpness=200.0):
    """One image whose logit (y, x) is of slot slot_of_cell[y][x]; slot n is of class classes[n]."""
    num_slots = len(classes)
    slot = np.array(slot_of_cell)
    probability = np.full([1, num_slots, 5], 1e-9)
    confidence = np.broadcast_to(confidence, num_slots)
    for n, place in enumerate(classes):
        probability[0, n, place] = confidence[n]
        probability[0, n, 4] = 1 - confidence[n]
    return outputs_of(
        tf.one_hot(slot[np.newaxis], num_slots, sharpness), tf.constant(np.log(probability), dtype=tf.float32)
    )


def postprocessor(thing_area_limit=0, stuff_area_limit=0, **options):
    return Postprocessor(SMALL, thing_area_limit=thing_area_limit, stuff_area_limit=stuff_area_limit, **options)


def panoptic(outputs, *limits, **options):
    """The label map, where the logits are."""
    return postprocessor(*limits, **options)(outputs).panoptic[0, ::4, ::4].numpy()


def void_reasons(outputs, *limits, **options):
    """The names of the reasons, where the logits are; None where the pixel belongs to its slot."""
    reasons = postprocessor(*limits, **options).slot_map(outputs).void_reason[::4, ::4].numpy()
    return [[None if reason == 0 else VOID_REASONS[reason - 1] for reason in row] for row in reasons]


def test_things_are_told_apart_and_stuff_is_merged():
    outputs = scene([[0, 1, 2, 3]], [THING_8, THING_8, STUFF_5, STUFF_5])
    np.testing.assert_array_equal(panoptic(outputs), [[8001, 8002, 5000, 5000]])


def test_void_wins_by_its_share_only():
    """A slot that is more void than anything is still of its best class; the threshold drops it."""
    outputs = scene([[0, 1]], [THING_8, STUFF_5], confidence=[0.3, 0.9])
    np.testing.assert_array_equal(panoptic(outputs), [[VOID, 5000]])
    assert void_reasons(outputs) == [["no_object", None]]
    np.testing.assert_array_equal(panoptic(outputs, class_threshold=0.2), [[8001, 5000]])


def test_pixels_won_by_a_dropped_slot_are_void_not_the_runners_up():
    outputs = scene([[0, 1, 1]], [THING_8, STUFF_5], confidence=[0.9, 0.6])
    np.testing.assert_array_equal(panoptic(outputs), [[8001, VOID, VOID]])
    assert void_reasons(outputs) == [[None, "class_threshold", "class_threshold"]]
    np.testing.assert_array_equal(postprocessor().slot_map(outputs).slot[:, ::4], [[0, 1, 1]])


def test_pixels_that_hesitate_are_void():
    outputs = scene([[0, 1, 2]], [THING_8, STUFF_5, STUFF_6])
    hesitant = outputs._replace(mask_logits=outputs.mask_logits * [[[[1.0], [0.001], [1.0]]]])
    np.testing.assert_array_equal(panoptic(hesitant), [[8001, VOID, 6000]])
    assert void_reasons(hesitant) == [[None, "pixel_threshold", None]]
    np.testing.assert_array_equal(panoptic(hesitant, pixel_threshold=0.3), [[8001, 5000, 6000]])


def test_small_segments_are_void():
    """Of 33 pixels, things have 11 and 8; a stuff class has 14 in two slots."""
    outputs = scene([[0, 0, 0, 1, 1, 2, 2, 3, 3]], [THING_8, THING_8, STUFF_5, STUFF_5])
    whole = postprocessor()(outputs).panoptic[0].numpy()
    assert {label: int((whole == label).sum()) for label in np.unique(whole)} == {5000: 14, 8001: 11, 8002: 8}
    thing, stuff = [8001] * 3, [5000] * 4
    np.testing.assert_array_equal(panoptic(outputs, 11, 14), [thing + [VOID] * 2 + stuff])
    np.testing.assert_array_equal(panoptic(outputs, 11, 15), [thing + [VOID] * 6])
    np.testing.assert_array_equal(panoptic(outputs, 8, 14), [[*thing, 8002, 8002, *stuff]])
    reasons = [[None] * 3 + ["thing_area_limit"] * 2 + ["stuff_area_limit"] * 4]
    assert void_reasons(outputs, 11, 15) == reasons


# Two slots in two parts each, apart from each other through stuff; the part of slot 1 below is the larger one.
SPLIT_SCENE = [[0, 0, 0, 2, 1, 1, 2, 0], [2] * 8, [1, 1, 1, 1, 2, 2, 2, 2]]


@pytest.mark.parametrize("kind", [{}, {"overlap_threshold": 0.0}])
def test_split_things(kind):
    """Largest parts keep their numbers, others have those behind the slots, with the class of their slot."""
    outputs = scene(SPLIT_SCENE, [THING_8, 0, STUFF_5], confidence=[0.95, 0.9, 0.92])
    first = panoptic(outputs, **kind)
    label = {value: name for name, value in {"a": first[0, 0], "b": first[2, 0], "s": 5000}.items()}
    assert ["".join(label[x] for x in row) for row in first] == ["aaasbbsa", "ssssssss", "bbbbssss"]
    assert panoptic(outputs, split_min_area=0, **kind).tolist() == [
        [*first[0, :4], 3004, 3004, 5000, 8005],
        [5000] * 8,
        first[2].tolist(),
    ]
    # The small part has 6 pixels of the input in either kind; the next one has 12 at least.
    reasons = void_reasons(outputs, split_min_area=7, **kind)
    assert reasons[0] == [None] * 7 + ["split_min_area"] and reasons[1:] == [[None] * 8] * 2
    assert void_reasons(outputs, split_min_area=6, **kind)[0] == [None] * 8
    prediction = postprocessor(split_min_area=0, **kind)(outputs)
    scores = [0.95] * 3 + [0.92, 0.9, 0.9, 0.92, 0.95]
    np.testing.assert_allclose(prediction.semantic_score[0, 0, ::4], scores, rtol=1e-5)
    np.testing.assert_array_equal(prediction.slot[0, 0, ::4], SPLIT_SCENE[0])


def test_parts_that_the_label_divisor_cannot_number_are_void():
    """Of the five parts behind the first of slot 0, the two largest have numbers."""
    table = dataclasses.replace(SMALL, label_divisor=5)
    outputs = scene([[0, 0, 0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0]], [THING_8, STUFF_5])
    read = Postprocessor(table, thing_area_limit=0, stuff_area_limit=0, split_min_area=0)
    slot_map = read.slot_map(outputs)
    assert slot_map.label.shape == slot_map.class_id.shape == 4
    stuff, void = 5 * 5, SMALL.ignore_label * 5
    row = [43, 43, 43, stuff, void, stuff, 44, 44, stuff, void, stuff, 41, 41, 41, 41]
    assert read(outputs).panoptic[0, 0, ::4].numpy().tolist() == row


def test_parts_do_not_connect_through_the_padding():
    """A batch and an image alone have the same map; whatever the padding is, it is neither stuff nor a bridge."""
    outputs = scene([[0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]], [THING_8, STUFF_5])
    outputs = outputs_of(*(tf.repeat(x, 2, axis=0) for x in (outputs.mask_logits, outputs.class_logits)))
    for kind in ({}, {"overlap_threshold": 0.0}):
        read = postprocessor(split_min_area=0, **kind)
        sizes = [[1, 13], [9, 10]]
        batch = read(outputs, tf.constant(sizes))
        labels = set()
        for index, (height, width) in enumerate(sizes):
            image = outputs_of(*(x[index : index + 1] for x in (outputs.mask_logits, outputs.class_logits)))
            wanted = read.label_map(read.slot_map(image, (height, width)))
            np.testing.assert_array_equal(batch.panoptic[index, :height, :width], wanted)
            assert not batch.panoptic[index, height:].numpy().any() and batch.panoptic.shape == (2, 9, 13)
            labels |= {(index, label) for label in np.unique(wanted).tolist()}
        assert labels == {(0, 8001), (0, 8003), (0, 5000), (1, 8001), (1, 5000)}


def test_nothing_kept():
    outputs = scene([[0, 1], [1, 0]], [THING_8, STUFF_5], confidence=0.5)
    assert (postprocessor()(outputs).panoptic.numpy() == VOID).all()
    slot_map = postprocessor().slot_map(outputs)
    np.testing.assert_array_equal(slot_map.slot[::4, ::4], [[0, 1], [1, 0]])
    assert (slot_map.void_reason.numpy() > 0).all()


def test_logits_are_resized_before_they_compete():
    """Between a strong and a weak slot the border is nearer to the weak one."""
    outputs = scene([[0, 1]], [THING_8, STUFF_5])
    outputs = outputs._replace(mask_logits=outputs.mask_logits * [1.0, 0.25])
    np.testing.assert_array_equal(postprocessor()(outputs).panoptic[0], [[8001, 8001, 8001, 8001, 5000]])


def test_order_of_slots_only_renumbers():
    golden = shared_golden("e_post_s_rect_97x161")
    postprocess, (mask_logits, class_logits) = golden_call(golden)
    order = np.random.default_rng(0).permutation(mask_logits.shape[-1])
    permuted = outputs_of(tf.gather(mask_logits, order, axis=-1), tf.gather(class_logits, order, axis=1))
    new_number = np.concatenate([[0], np.argsort(order) + 1])
    want = golden["out/panoptic_pred"]
    np.testing.assert_array_equal(postprocess(permuted).panoptic, want // 256 * 256 + new_number[want % 256])


def test_what_does_not_fit_is_refused():
    outputs = scene([[0, 1]], [THING_8, STUFF_5])
    with pytest.raises(ValueError, match="another data set"):
        Postprocessor(COCO, thing_area_limit=0, stuff_area_limit=0)(outputs)
    many = outputs_of(tf.zeros([1, 1, 1, 1000]), tf.zeros([1, 1000, 5]))
    with pytest.raises(ValueError, match="label_divisor 1000"):
        panoptic(many)
    for bad in ({"class_threshold": 1.5}, {"pixel_threshold": -0.1}, {"thing_area_limit": -1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Postprocessor(SMALL, **{"thing_area_limit": 0, "stuff_area_limit": 0, **bad})
