"""The losses against the reference's: targets, matching, every term, every gradient."""

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.losses.assignment import scipy_assign
from maxdl_tf.losses.matching import class_probability_and_dice, match
from maxdl_tf.losses.panoptic import PanopticLoss
from maxdl_tf.losses.target_masks import TargetMaskBuilder, flatten_pixels, sum_over_rows
from maxdl_tf.structs import PanopticOutputs
from tests.helpers import any_golden, shared_golden
from tests.losses.reference_quirks import crowd_gradient, reference_assign, square_assignment
from tests.losses.scenes import COCO, GOLDEN_OUTPUTS, golden_targets, loss_and_gradients

# The last one, the first image of the first, is part of this repository.
ALL = ("c_loss_typical", "c_loss_void_image", "c_loss_few_slots", "c_loss_init_ties", "c_loss_one_image")
TERMS = {
    "instance_discrimination": "instance_discrimination_loss",
    "pq_style_dice": "pq_style_loss_mask_dice_term",
    "pq_style_class": "pq_style_loss_class_term",
    "mask_id": "mask_id_cross_entropy_loss",
    "semantic": "semantic_loss",
    "total": "total_loss",
}


@pytest.fixture(scope="module", params=ALL)
def golden(request):
    return any_golden(request.param)


def outputs_of(golden):
    return PanopticOutputs(*(tf.constant(golden["pred/" + name]) for name in GOLDEN_OUTPUTS))


def reference_slots(golden):
    """The reference's slot of each valid row; -1 for rows without one."""
    permutation = golden["out/match/permutation"]
    has_slot = permutation.any(axis=-1) & (golden["out/gt/mask_non_void_mask"] > 0)
    return np.where(has_slot, permutation.argmax(axis=-1), -1).astype(np.int32)


def matching_inputs(golden):
    """(masks, overlap, slot probability, class logits), as `match` takes them."""
    outputs = outputs_of(golden)
    masks = TargetMaskBuilder(COCO)(golden_targets(golden))
    probability = tf.nn.softmax(flatten_pixels(outputs.mask_logits))
    overlap = sum_over_rows(probability, masks.row_of_pixel, masks.area.shape[1])
    return masks, overlap, probability, outputs.class_logits


def matching_of(golden, assign=scipy_assign):
    return match(*matching_inputs(golden), assign)


def similarity_of(golden):
    return tf.multiply(*class_probability_and_dice(*matching_inputs(golden))).numpy()


def assert_near(got, want, relative=1e-4):
    """Within `relative` of the largest value: gradients of pixels far from any mask are rounding noise."""
    np.testing.assert_allclose(got, want, rtol=relative, atol=relative * np.abs(want).max() + 1e-12)


def test_targets(golden):
    masks = TargetMaskBuilder(COCO)(golden_targets(golden))
    valid = golden["out/gt/mask_non_void_mask"] > 0
    np.testing.assert_array_equal(masks.valid, valid)
    np.testing.assert_array_equal(masks.area, golden["out/gt/mask_area"][..., 0])
    np.testing.assert_array_equal(masks.is_thing, golden["out/gt/pixel_thing_mask"])
    np.testing.assert_array_equal(masks.non_void, golden["out/gt/pixel_non_void_mask"])
    class_id = np.where(valid, np.array(COCO.class_order)[masks.class_index.numpy()], -1)
    np.testing.assert_array_equal(class_id, golden["out/gt/mask_semantic_map"])


def test_similarity(golden):
    valid = golden["out/gt/mask_non_void_mask"] > 0
    similarity = similarity_of(golden)
    np.testing.assert_allclose(similarity[valid], -golden["out/match/weights"][valid], rtol=1e-4, atol=1e-9)
    assert not similarity[~valid].any()


@pytest.mark.parametrize("name", ["c_loss_typical", "c_loss_void_image", "c_loss_few_slots", "c_loss_one_image"])
def test_exact_matching_is_the_references_where_that_can_resolve_similarities(name):
    golden = any_golden(name)
    np.testing.assert_array_equal(matching_of(golden).slot_of_row, reference_slots(golden))


@pytest.mark.parametrize("name", ["c_loss_typical", "c_loss_void_image", "c_loss_init_ties", "c_loss_one_image"])
def test_the_references_matching_is_understood(name):
    """Rounding and ties included, so that tests under the reference's matching see no other difference."""
    golden = any_golden(name)
    np.testing.assert_array_equal(matching_of(golden, reference_assign).slot_of_row, reference_slots(golden))


@pytest.mark.parametrize("name", ["random_40", "integers_ties_10", "duplicate_rows_7", "all_equal_6"])
def test_the_references_ties_are_understood(name):
    golden = shared_golden("d_hungarian")
    for cost, assignment in zip(golden[name + "/cost"], golden[name + "/assignment"]):
        np.testing.assert_array_equal(square_assignment(cost), assignment.argmax(axis=1))


def test_exact_matching_beats_the_references_where_that_sees_ties():
    golden = shared_golden("c_loss_init_ties")
    exact = matching_of(golden)
    reference = matching_of(golden, assign=lambda *_: tf.constant(reference_slots(golden)))
    np.testing.assert_array_equal(exact.has_slot, reference.has_slot)
    totals = [(matching.matched * similarity_of(golden)).numpy().sum(axis=(1, 2)) for matching in (exact, reference)]
    assert (totals[0] > 1.1 * totals[1]).all()


@pytest.mark.parametrize("name", ["c_loss_typical", "c_loss_void_image", "c_loss_init_ties", "c_loss_one_image"])
def test_terms_and_gradients(name):
    golden = any_golden(name)
    loss = PanopticLoss(COCO, assign=lambda *_: tf.constant(reference_slots(golden)), zeros_count=False)
    losses, gradients = loss_and_gradients(loss, outputs_of(golden), golden_targets(golden))
    for term, reference_name in TERMS.items():
        np.testing.assert_allclose(getattr(losses, term), golden["out/" + reference_name], rtol=1e-4, err_msg=term)
    for gradient, reference_name in zip(gradients, GOLDEN_OUTPUTS):
        reference = golden["out/grad/" + reference_name]
        if reference_name == "pixel_space_mask_logits":
            masks = TargetMaskBuilder(COCO)(golden_targets(golden))
            reference = reference - crowd_gradient(masks, tf.constant(golden["pred/" + reference_name])).numpy()
        assert_near(gradient.numpy(), reference)


def test_terms_that_stay_the_same_with_more_masks_than_slots():
    golden = shared_golden("c_loss_few_slots")
    losses, gradients = loss_and_gradients(
        PanopticLoss(COCO, zeros_count=False), outputs_of(golden), golden_targets(golden)
    )
    for term in ("instance_discrimination", "pq_style_dice", "semantic"):
        np.testing.assert_allclose(getattr(losses, term), golden["out/" + TERMS[term]], rtol=1e-4, err_msg=term)
    assert_near(gradients.pixel_feature.numpy(), golden["out/grad/pixel_space_normalized_feature"])
    # The reference assigns the classes of masks without a slot to slot 0 and trains that towards void.
    assert_near(gradients.class_logits.numpy()[:, 1:], golden["out/grad/transformer_class_logits"][:, 1:])
    assert (golden["out/mask_id_cross_entropy_loss"] > 1e4).all() and (losses.mask_id.numpy() < 1.0).all()


@pytest.mark.parametrize("name", ["b_tiny_s_train", "b_tiny_l_train"])
def test_terms_on_the_outputs_of_a_whole_model(name):
    """With the reference's matching: most similarities of the untrained model are ties for it."""
    golden = shared_golden(name)
    outputs = PanopticOutputs(*(tf.constant(golden["out/" + key]) for key in GOLDEN_OUTPUTS))
    losses = PanopticLoss(COCO, assign=reference_assign, zeros_count=False)(outputs, golden_targets(golden))
    for term, reference_name in TERMS.items():
        np.testing.assert_allclose(getattr(losses, term), golden["loss/" + reference_name], rtol=1e-5, err_msg=term)
