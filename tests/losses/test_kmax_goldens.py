"""The losses of kMaX-DeepLab against the reference's: sample, matching, every term of every output, every gradient.

The goldens of the loss alone have no `sens`. Their terms may differ by 2e-6 of the term, and gradients by 2e-6 of the
largest value: they are sums of up to a few thousand float32 numbers, rounded to 6e-8 and added in another order.
"""

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.layers.resize import resize_bilinear
from maxdl_tf.losses.assignment import scipy_assign
from maxdl_tf.losses.contrastive import sample_pixels
from maxdl_tf.losses.output_terms import FlatOutput, OutputTerms
from maxdl_tf.losses.panoptic import PanopticLoss
from maxdl_tf.structs import AuxiliaryOutputs, PanopticOutputs
from tests.helpers import shared_golden
from tests.losses.reference_quirks import contrastive_gradient_without_target, crowd_gradient, reference_assign
from tests.losses.scenes import COCO, class_table, golden_targets, loss_and_gradients

# The reference's Cityscapes has the ids 0..18 and void 255; ours adds 1 and has void 0.
CITYSCAPES = class_table(things=range(12, 20), stuff=range(1, 12))
CASES = {
    "k_loss_contrastive": (COCO, {}),
    "k_loss_cityscapes": (CITYSCAPES, {"output_stride": 2, "semantic_stride": 32, "semantic_top_share": 0.2}),
    "k_tiny_r50_train": (COCO, {}),
    "k_tiny_convnext_train": (COCO, {}),
}
FIELDS = {
    "pixel_feature": "pixel_space_normalized_feature",
    "mask_logits": "pixel_space_mask_logits",
    "class_logits": "transformer_class_logits",
}
TERMS = {
    "pq_style_dice": "pq_style_loss_mask_dice_term",
    "pq_style_class": "pq_style_loss_class_term",
    "mask_id": "mask_id_cross_entropy_loss",
    "pixel_contrastive": "instance_discrimination_loss",
}
TOLERANCE = 2e-6


class Case:
    """A golden with the loss of its configuration and the inputs of the loss."""

    def __init__(self, name):
        self.golden = golden = shared_golden(name)
        info, options = CASES[name]
        self.is_whole_model = name.startswith("k_tiny")
        self.num_auxiliary = len(golden["sample/indices"]) - 1
        self.targets = golden_targets(golden)
        self.outputs = self._whole_model() if self.is_whole_model else self._predictions()
        if info is CITYSCAPES:
            self._count_ids_from_1()
        # `uniform` serves the recorded numbers output by output, in the reference's order.
        self.samples, self.area_temperature = (golden.info[key] for key in ("sample_k", "sample_temperature"))
        uniform = iter(golden["sample/uniform"])
        self.loss = PanopticLoss(
            info,
            instance_discrimination_weight=0.0,
            pixel_contrastive_weight=1.0,
            pixel_contrastive_samples=self.samples,
            pixel_contrastive_area_temperature=self.area_temperature,
            zeros_count=False,
            auxiliary_outputs=True,
            assign=lambda *_: tf.constant(golden["match/slot"]),
            uniform=lambda shape: tf.constant(next(uniform)),
            **options,
        )
        self.masks = self.loss.target_masks(self.targets)

    def _predictions(self):
        golden = self.golden
        auxiliary = tuple(
            AuxiliaryOutputs(*(tf.constant(golden[f"pred/aux/{i}/{key}"]) for key in FIELDS.values()))
            for i in range(self.num_auxiliary)
        )
        final = [tf.constant(golden["pred/" + key]) for key in (*FIELDS.values(), "semantic_logits")]
        return PanopticOutputs(*final, auxiliary=auxiliary)

    def _whole_model(self):
        """Resizes the auxiliary outputs; only the first image has semantic logits."""
        golden = self.golden
        final = [tf.constant(golden["out/" + key]) for key in FIELDS.values()]
        size = final[1].shape[1:3]
        auxiliary = tuple(
            AuxiliaryOutputs(
                *(
                    resize_bilinear(tf.constant(golden[f"out/aux/{i}/{FIELDS[name]}"]), size)
                    for name in list(FIELDS)[:2]
                ),
                tf.constant(golden[f"out/aux/{i}/{FIELDS['class_logits']}"]),
            )
            for i in range(self.num_auxiliary)
        )
        semantic_logits = tf.repeat(golden["out/semantic_logits"], len(final[0]), axis=0)
        return PanopticOutputs(*final, semantic_logits, auxiliary=auxiliary)

    def _count_ids_from_1(self):
        targets, logits = self.targets, self.outputs.semantic_logits
        self.targets = targets._replace(
            semantic=tf.where(targets.semantic == 255, 0, targets.semantic + 1),
            thing_id_class=tf.where(targets.thing_id_class >= 0, targets.thing_id_class + 1, -1),
        )
        void = tf.fill([*logits.shape[:3], 1], -1e9)  # Void has a channel here, and none in the reference.
        self.outputs = self.outputs._replace(semantic_logits=tf.concat([void, logits], axis=-1))

    def every_output(self):
        """(prefix of the reference's terms, prefix of its predictions, output), the final one first."""
        yield "", "", self.outputs
        for i, output in enumerate(self.outputs.auxiliary):
            yield f"aux_{i}", f"aux/{i}/", output

    def assert_term(self, got, name):
        golden = self.golden
        images = 1 if self.is_whole_model and name in ("semantic_loss", "total_loss") else None
        want = golden["loss/" + name][:images]
        atol = TOLERANCE * want.min()
        if "loss_sens/" + name in golden:  # Which may be 0, but all terms are rounded.
            atol = 10 * max(golden["loss_sens/" + name], np.spacing(want.max()))
        np.testing.assert_allclose(got[:images], want, rtol=0, atol=atol, err_msg=name)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return Case(request.param)


def test_sample(case):
    for uniform, indices in zip(case.golden["sample/uniform"], case.golden["sample/indices"]):
        sample = sample_pixels(case.masks, tf.constant(uniform), case.samples, case.area_temperature)
        np.testing.assert_array_equal(sample, indices)


def test_matching(case):
    # Many similarities of an untrained model are ties after the reference's rounding.
    terms = OutputTerms(assign=reference_assign if case.is_whole_model else scipy_assign)
    matching = terms.match(FlatOutput.of(case.outputs, case.masks), case.masks)
    np.testing.assert_array_equal(matching.slot_of_row, case.golden["match/slot"])


def test_terms_one_by_one_and_gradients(case):
    golden, terms = case.golden, case.loss.output_terms
    matching = terms.match(FlatOutput.of(case.outputs, case.masks), case.masks)
    checked = 0
    uniform = iter(golden["sample/uniform"])
    for prefix, _, output in case.every_output():
        found = terms(FlatOutput.of(output, case.masks), case.masks, matching, lambda shape: tf.constant(next(uniform)))
        for name, reference_name in TERMS.items():
            case.assert_term(found[name], prefix + reference_name)
            checked += 1
    losses, gradients = loss_and_gradients(case.loss, case.outputs, case.targets)
    case.assert_term(losses.semantic, "semantic_loss")
    case.assert_term(losses.total, "total_loss")
    assert checked + 1 == len(golden.group("loss")) - 1  # 29 terms with six auxiliary outputs.
    for name, reference_name in TERMS.items():
        of_auxiliary = sum(golden[f"loss/aux_{i}{reference_name}"] for i in range(case.num_auxiliary))
        np.testing.assert_allclose(getattr(losses, f"auxiliary_{name}"), of_auxiliary, rtol=1e-5)
    if not case.is_whole_model:
        check_gradients(case, gradients)


def check_gradients(case, gradients):
    golden, masks = case.golden, case.masks
    of_outputs = (gradients, *gradients.auxiliary)
    for number, ((_, prefix, output), gradient) in enumerate(zip(case.every_output(), of_outputs)):
        want = {name: golden[f"grad/{prefix}{key}"] for name, key in FIELDS.items()}
        sample = tf.constant(golden["sample/indices"][number])
        want["pixel_feature"] = want["pixel_feature"] - contrastive_gradient_without_target(
            masks, output.pixel_feature, sample
        )
        want["mask_logits"] = want["mask_logits"] - crowd_gradient(masks, output.mask_logits)
        for name, reference in want.items():
            assert_near(getattr(gradient, name), reference, f"{prefix}{name}")
    reference = golden["grad/semantic_logits"]
    assert_near(gradients.semantic_logits[..., -reference.shape[-1] :], reference, "semantic_logits")


def assert_near(got, want, name):
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * np.abs(want).max(), err_msg=name)


@pytest.mark.parametrize("name", ["k_tiny_r50_train", "k_tiny_convnext_train"])
def test_auxiliary_outputs_are_resized_as_the_references(name):
    case = Case(name)
    features, logits = case.outputs.auxiliary[0].pixel_feature, case.outputs.auxiliary[5].mask_logits
    golden = case.golden
    np.testing.assert_allclose(features[:1], golden["out/aux_resized/0/" + FIELDS["pixel_feature"]], atol=1e-6)
    np.testing.assert_allclose(logits[:1], golden["out/aux_resized/5/" + FIELDS["mask_logits"]], atol=1e-5)
