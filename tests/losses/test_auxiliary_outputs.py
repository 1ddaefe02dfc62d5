"""Auxiliary outputs: the terms of the final output again, under its matching. And the strides of the outputs."""

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.losses.assignment import scipy_assign
from maxdl_tf.losses.output_terms import FlatOutput
from maxdl_tf.losses.panoptic import PanopticLoss
from maxdl_tf.structs import AuxiliaryOutputs
from tests.losses.scenes import COCO, loss_and_gradients, random_scene

ALL_PIXELS = {"pixel_contrastive_weight": 1.0, "pixel_contrastive_samples": 117}
TERMS = ("pq_style_dice", "pq_style_class", "mask_id", "instance_discrimination", "pixel_contrastive")


def scene_with_auxiliary(*seeds):
    outputs, targets = random_scene(COCO)
    others = [random_scene(COCO, seed)[0] for seed in seeds]
    return outputs._replace(auxiliary=tuple(AuxiliaryOutputs(*other[:3]) for other in others)), targets


def test_an_auxiliary_output_equal_to_the_final_one_costs_the_same():
    outputs, targets = scene_with_auxiliary(0, 0)  # The seed of the final output.
    calls = []

    def assign(*arguments):
        calls.append(1)
        return scipy_assign(*arguments)

    losses = PanopticLoss(COCO, auxiliary_outputs=True, assign=assign, **ALL_PIXELS)(outputs, targets)
    for term in TERMS:
        np.testing.assert_allclose(getattr(losses, f"auxiliary_{term}"), 2 * getattr(losses, term), rtol=1e-5)
    final = sum(getattr(losses, term) for term in TERMS)
    np.testing.assert_allclose(losses.total, 3 * final + losses.semantic, rtol=1e-5)
    assert len(calls) == 1


def test_the_final_output_assigns_slots_and_weights():
    """Gradients of an auxiliary output reach it alone, and what is fixed does not depend on its logits."""
    outputs, targets = scene_with_auxiliary(7)
    loss = PanopticLoss(COCO, auxiliary_outputs=True)
    masks = loss.target_masks(targets)
    terms = loss.output_terms
    matching = terms.match(FlatOutput.of(outputs, masks), masks)
    auxiliary = outputs.auxiliary[0]
    # The cross entropy of classes has the final output's weights, so it is linear in them whatever the masks are.
    other_masks = auxiliary._replace(mask_logits=-auxiliary.mask_logits)
    found = [terms(FlatOutput.of(output, masks), masks, matching) for output in (auxiliary, other_masks)]
    np.testing.assert_array_equal(found[0]["pq_style_class"], found[1]["pq_style_class"])
    other_classes = auxiliary._replace(class_logits=-auxiliary.class_logits)
    found.append(terms(FlatOutput.of(other_classes, masks), masks, matching))
    np.testing.assert_array_equal(found[0]["pq_style_dice"], found[2]["pq_style_dice"])

    for term in ("pq_style_dice", "pq_style_class", "mask_id"):
        _, gradients = loss_and_gradients(loss, outputs, targets, of=f"auxiliary_{term}")
        assert any(tf.reduce_any(gradient != 0) for gradient in gradients.auxiliary[0]), term
        assert not any(tf.reduce_any(gradient != 0) for gradient in gradients[:4]), term


def test_terms_name_what_is_computed():
    assert PanopticLoss(COCO).terms == ("total", *TERMS[:4], "semantic")
    kmax = PanopticLoss(COCO, instance_discrimination_weight=0.0, auxiliary_outputs=True, **ALL_PIXELS)
    names = ("pq_style_dice", "pq_style_class", "mask_id", "pixel_contrastive")
    assert kmax.terms == ("total", *names, "semantic", *(f"auxiliary_{name}" for name in names))
    assert "instance_discrimination_accuracy" not in [metric.name for metric in kmax.metrics]
    # In inference the model returns none.
    losses = kmax(*random_scene(COCO))
    assert not np.any([getattr(losses, f"auxiliary_{name}") for name in names])


def test_unexpected_auxiliary_outputs_are_refused():
    with pytest.raises(ValueError, match="2 auxiliary outputs; build the loss with auxiliary_outputs=True"):
        PanopticLoss(COCO)(*scene_with_auxiliary(1, 2))


def test_labels_are_read_at_the_strides_of_the_outputs():
    """Labels enlarged by 2, without interpolation, are the same labels at twice the stride."""
    outputs, targets = random_scene(COCO)

    def enlarged(label):
        return tf.repeat(tf.repeat(label, 2, axis=1), 2, axis=2)[:, :-1, :-1]

    large = targets._replace(
        **{name: enlarged(getattr(targets, name)) for name in ("semantic", "semantic_weight", "thing_id_mask")}
    )
    losses = PanopticLoss(COCO)(outputs, targets)
    of_large = PanopticLoss(COCO, output_stride=8, semantic_stride=8)(outputs, large)
    for name, got, want in zip(losses._fields, of_large, losses):
        np.testing.assert_array_equal(got, want, err_msg=name)
    with pytest.raises(ValueError, match=r"semantic_logits .* at stride 4"):
        PanopticLoss(COCO, output_stride=8)(outputs, large)


@pytest.mark.parametrize("zeros_count", [True, False])
def test_the_semantic_loss_may_be_that_of_the_hardest_pixels(zeros_count):
    outputs, targets = random_scene(COCO)
    every, hardest = (PanopticLoss(COCO, semantic_top_share=share, zeros_count=zeros_count) for share in (1.0, 0.2))
    label, weight = (label.numpy()[:, ::4, ::4].reshape(2, -1) for label in (targets.semantic, targets.semantic_weight))
    log_probability = tf.nn.log_softmax(outputs.semantic_logits).numpy().reshape(2, -1, 134)
    losses = -weight * (label > 0) * np.take_along_axis(log_probability, label[..., np.newaxis], axis=2)[..., 0]
    want = np.sort(losses, axis=1)[:, -23:].mean(axis=1)  # A fifth of 117.
    np.testing.assert_allclose(hardest(outputs, targets).semantic, want, rtol=1e-5)
    assert (hardest(outputs, targets).semantic > every(outputs, targets).semantic).numpy().all()
    gradient = loss_and_gradients(hardest, outputs, targets, of="semantic")[1].semantic_logits
    assert (tf.reduce_any(gradient != 0, axis=-1).numpy().sum(axis=(1, 2)) == 23).all()
    poisoned = outputs._replace(semantic_logits=outputs.semantic_logits * np.nan)
    assert np.isnan(hardest(poisoned, targets).semantic).all()
    with pytest.raises(ValueError, match="semantic_top_share 0"):
        PanopticLoss(COCO, semantic_top_share=0.0)
