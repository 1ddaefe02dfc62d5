"""Panoptic maps from logits: the reference's maps, and each rule by hand."""

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.models.postprocess import Postprocessor
from maxdl_tf.structs import PanopticOutputs
from tests.helpers import shared_golden

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


@pytest.fixture(scope="module", params=["e_post_s_rect_97x161", "e_post_s_small_limits_129", "e_post_s_thresholds_257"])
def golden(request):
    return shared_golden(request.param)


def golden_call(golden):
    info = golden.info
    options = ("class_threshold", "pixel_threshold", "thing_area_limit", "stuff_area_limit")
    size = tuple(np.broadcast_to(info["crop"], 2).tolist())
    outputs = (tf.constant(golden["in/mask_logits"]), tf.constant(golden["in/class_logits"]))
    return Postprocessor(COCO, **{name: info[name] for name in options}), outputs, size


def outputs_of(mask_logits, class_logits):
    return PanopticOutputs(pixel_feature=None, mask_logits=mask_logits, class_logits=class_logits, semantic_logits=None)


def assert_is_golden(prediction, golden):
    for name, reference in (
        ("panoptic", "panoptic_pred"),
        ("semantic", "semantic_pred"),
        ("instance", "instance_pred"),
    ):
        np.testing.assert_array_equal(getattr(prediction, name), golden["out/" + reference], err_msg=name)
        assert getattr(prediction, name).dtype == tf.int32
    for name, reference in (("instance_score", "instance_scores"), ("semantic_score", "semantic_scores")):
        np.testing.assert_allclose(getattr(prediction, name), golden["out/" + reference], atol=2e-6, err_msg=name)


def test_maps_of_the_reference(golden):
    postprocess, outputs, size = golden_call(golden)
    assert_is_golden(postprocess(outputs_of(*outputs), size), golden)


def test_maps_of_the_reference_in_a_graph_that_knows_no_sizes(golden):
    postprocess, outputs, size = golden_call(golden)
    slots, classes = outputs[1].shape[1:]

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, None, slots]),
            tf.TensorSpec([None, slots, classes]),
            tf.TensorSpec([2], tf.int32),
        ]
    )
    def graph(mask_logits, class_logits, size):
        return postprocess(outputs_of(mask_logits, class_logits), tuple(tf.unstack(size)))

    assert_is_golden(graph(*outputs, tf.constant(size)), golden)


def test_compiles_with_xla():
    golden = shared_golden("e_post_s_rect_97x161")
    postprocess, outputs, size = golden_call(golden)
    graph = tf.function(lambda *outputs: postprocess(outputs_of(*outputs), size), jit_compile=True)
    assert_is_golden(graph(*outputs), golden)


def scene(slot_of_pixel, classes, confidence=0.95, sharpness=20.0):
    """One image whose pixel (y, x) belongs to slot slot_of_pixel[y][x]; slot n is of class classes[n]."""
    num_slots = len(classes)
    slot = np.array(slot_of_pixel)
    probability = np.full([1, num_slots, 5], 1e-9)
    confidence = np.broadcast_to(confidence, num_slots)
    for n, place in enumerate(classes):
        probability[0, n, place] = confidence[n]
        probability[0, n, 4] = 1 - confidence[n]
    return outputs_of(
        tf.one_hot(slot[np.newaxis], num_slots, sharpness), tf.constant(np.log(probability), dtype=tf.float32)
    )


def panoptic(outputs, size, thing_area_limit=0, stuff_area_limit=0, **options):
    postprocess = Postprocessor(SMALL, thing_area_limit=thing_area_limit, stuff_area_limit=stuff_area_limit, **options)
    return postprocess(outputs, size).panoptic[0].numpy()


def test_things_are_told_apart_and_stuff_is_merged():
    outputs = scene([[0, 1, 2, 3]], [THING_8, THING_8, STUFF_5, STUFF_5])
    np.testing.assert_array_equal(panoptic(outputs, (1, 4)), [[8001, 8002, 5000, 5000]])


def test_void_wins_by_its_share_only():
    """A slot that is more void than anything is still of its best class; the threshold drops it."""
    outputs = scene([[0, 1]], [THING_8, STUFF_5], confidence=[0.3, 0.9])
    np.testing.assert_array_equal(panoptic(outputs, (1, 2)), [[VOID, 5000]])
    np.testing.assert_array_equal(panoptic(outputs, (1, 2), class_threshold=0.2), [[8001, 5000]])


def test_pixels_won_by_a_dropped_slot_are_void_not_the_runners_up():
    outputs = scene([[0, 1, 1]], [THING_8, STUFF_5], confidence=[0.9, 0.5])
    prediction = Postprocessor(SMALL, thing_area_limit=0, stuff_area_limit=0)(outputs, (1, 3))
    np.testing.assert_array_equal(prediction.panoptic[0], [[8001, VOID, VOID]])
    np.testing.assert_array_equal(prediction.instance[0], [[1, 1, 1]])
    np.testing.assert_array_equal(prediction.semantic[0], [[8, 5, 5]])


def test_pixels_that_hesitate_are_void():
    outputs = scene([[0, 1, 2]], [THING_8, STUFF_5, STUFF_6])
    hesitant = outputs._replace(mask_logits=outputs.mask_logits * [[[[1.0], [0.01], [1.0]]]])
    np.testing.assert_array_equal(panoptic(hesitant, (1, 3)), [[8001, VOID, 6000]])
    np.testing.assert_array_equal(panoptic(hesitant, (1, 3), pixel_threshold=0.3), [[8001, 5000, 6000]])


def test_small_segments_are_void():
    slot = [[0, 0, 0, 1, 1, 2, 2, 3, 3]]  # A thing of 3, a thing of 2, a stuff class of 2 + 2 pixels.
    outputs = scene(slot, [THING_8, THING_8, STUFF_5, STUFF_5])
    thing = [8001] * 3
    np.testing.assert_array_equal(panoptic(outputs, (1, 9), 3, 4), [thing + [VOID] * 2 + [5000] * 4])
    np.testing.assert_array_equal(panoptic(outputs, (1, 9), 3, 5), [thing + [VOID] * 6])
    np.testing.assert_array_equal(panoptic(outputs, (1, 9), 2, 4), [[*thing, 8002, 8002] + [5000] * 4])


def test_nothing_kept():
    outputs = scene([[0, 1], [1, 0]], [THING_8, STUFF_5], confidence=0.5)
    prediction = Postprocessor(SMALL, thing_area_limit=0, stuff_area_limit=0)(outputs, (5, 5))
    assert (prediction.panoptic.numpy() == VOID).all() and (prediction.instance.numpy() == 1).all()
    assert not prediction.instance_score.numpy().any() and not prediction.semantic_score.numpy().any()
    assert set(np.unique(prediction.semantic)) == {5, 8}


def test_logits_are_resized_before_they_compete():
    """Between a strong and a weak slot the border is nearer to the weak one."""
    outputs = scene([[0, 1]], [THING_8, STUFF_5])
    outputs = outputs._replace(mask_logits=outputs.mask_logits * [1.0, 0.25])
    np.testing.assert_array_equal(panoptic(outputs, (1, 5)), [[8001, 8001, 8001, 8001, 5000]])


def test_order_of_slots_only_renumbers():
    golden = shared_golden("e_post_s_rect_97x161")
    postprocess, (mask_logits, class_logits), size = golden_call(golden)
    order = np.random.default_rng(0).permutation(mask_logits.shape[-1])
    permuted = outputs_of(tf.gather(mask_logits, order, axis=-1), tf.gather(class_logits, order, axis=1))
    prediction = postprocess(permuted, size)
    new_number = np.concatenate([[0], np.argsort(order) + 1])
    want = golden["out/panoptic_pred"]
    np.testing.assert_array_equal(prediction.panoptic, want // 256 * 256 + new_number[want % 256])
    np.testing.assert_array_equal(prediction.semantic, golden["out/semantic_pred"])


def test_a_batch_is_its_images():
    golden = shared_golden("e_post_s_small_limits_129")
    postprocess, outputs, size = golden_call(golden)
    together = postprocess(outputs_of(*outputs), size)
    for i in range(len(outputs[0])):
        alone = postprocess(outputs_of(*(output[i : i + 1] for output in outputs)), size)
        np.testing.assert_array_equal(alone.panoptic[0], together.panoptic[i])


def test_what_does_not_fit_is_refused():
    outputs = scene([[0, 1]], [THING_8, STUFF_5])
    with pytest.raises(ValueError, match="another data set"):
        Postprocessor(COCO, thing_area_limit=0, stuff_area_limit=0)(outputs, (1, 2))
    many = outputs_of(tf.zeros([1, 1, 1, 1000]), tf.zeros([1, 1000, 5]))
    with pytest.raises(ValueError, match="label_divisor 1000"):
        panoptic(many, (1, 1))
    for bad in ({"class_threshold": 1.5}, {"pixel_threshold": -0.1}, {"thing_area_limit": -1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Postprocessor(SMALL, **{"thing_area_limit": 0, "stuff_area_limit": 0, **bad})
