"""Whole kMaX-DeepLabs of the published topology, narrow, against the reference."""

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.losses.panoptic import PanopticLoss
from maxdl_tf.training.optimizers import Optimizers, PolySchedule
from tests.helpers import shared_golden
from tests.losses.reference_quirks import contrastive_gradient_without_target, crowd_gradient
from tests.losses.scenes import COCO, golden_targets
from tests.models.golden_models import FILES, golden_model, load_golden_weights
from tests.models.test_golden_models import OUTPUTS

NAMES = ["kmax_r50", "kmax_convnext"]


@pytest.fixture(scope="module", params=NAMES)
def loaded(request):
    model = golden_model(request.param)
    return request.param, model, load_golden_weights(model, request.param)


def test_inference(loaded):
    name, model, _ = loaded
    golden = shared_golden(f"{FILES[name]}_eval")
    image = tf.constant(golden["in/image"], tf.float32)
    outputs = model(image, training=False)
    assert outputs.auxiliary == ()
    values = {key: getattr(outputs, field) for field, key in OUTPUTS.items()}

    features, _, _ = model.backbone(image / 127.5 - 1.0, training=False)
    endpoints = features | {f"res{key[-1]}": model.backbone.activate(value) for key, value in features.items()}
    pixels = model.pixel_decoder(features, training=False)
    endpoints |= {f"decoder_stage{number}": pixel for number, pixel in enumerate(pixels[:-1], start=1)}
    endpoints["decoder_output"] = pixels[-1]
    memories, auxiliary = model.transformer_decoder(pixels, training=False)
    endpoints |= dict(zip(("transformer_class_feature", "transformer_mask_feature"), memories))
    values |= {f"endpoint/{key}": value for key, value in endpoints.items()}
    for number, predicted in enumerate(auxiliary):
        values |= {f"aux/{number}/{OUTPUTS[field]}": value for field, value in predicted._asdict().items()}
        chosen = tf.argmax(predicted.mask_logits, axis=-1)
        np.testing.assert_array_equal(chosen, golden[f"assign/aux/{number}"])

    expected = {key for key in golden.group("out") if not key.endswith(("_pred", "_scores"))}
    assert set(values) == expected
    for key, value in values.items():
        error = float(np.abs(value - golden[f"out/{key}"]).max())
        # The first classes do not depend on the image, so their measure is 0.
        assert error <= max(10 * float(golden[f"sens/{key}"]), 1e-5), f"{key}: {error:.3g}"


def test_training(loaded):
    name, model, variables = loaded
    golden = shared_golden(f"{FILES[name]}_train")
    before = {key: variable.numpy() for key, variable in variables.items() if not variable.trainable}
    outputs = model(tf.constant(golden["in/image"]), training=True)
    values = {key: getattr(outputs, field) for field, key in OUTPUTS.items()}
    values["semantic_logits"] = values["semantic_logits"][:1]
    for number in (0, 5):
        resized = outputs.auxiliary[number]._asdict().items()
        values |= {f"aux_resized/{number}/{OUTPUTS[field]}": value[:1] for field, value in resized}
    for key in values.keys() & golden.group("out").keys():
        error = float(np.abs(values[key] - golden[f"out/{key}"]).max())
        sens = golden.group("sens").get(key, golden.group("sens").get(key.replace("aux_resized", "aux")))
        assert error <= 10 * float(sens), f"{key}: {error:.3g}"
    after = golden.group("after")
    assert sorted(after) == sorted(before)
    for key, expected in after.items():
        np.testing.assert_allclose(variables[key], expected, rtol=1e-3, atol=1e-5, err_msg=key)
        variables[key].assign(before[key])


class _Step:
    """A training step on the golden's batch, with the reference's matching, sample and gradients of empty targets."""

    def __init__(self, name, model, variables):
        self.golden, self.model = shared_golden(f"{FILES[name]}_train"), model
        golden = self.golden
        sampled = iter(golden["sample/uniform"])
        loss = PanopticLoss(
            COCO,
            instance_discrimination_weight=0.0,
            pixel_contrastive_weight=1.0,
            pixel_contrastive_samples=golden.info["sample_k"],
            pixel_contrastive_area_temperature=golden.info["sample_temperature"],
            zeros_count=False,
            auxiliary_outputs=True,
            assign=lambda *_: tf.constant(golden["match/slot"]),
            uniform=lambda shape: tf.constant(next(sampled)),
        )
        masks = loss.target_masks(golden_targets(golden))
        start = [variable.numpy() for variable in model.variables]
        with tf.GradientTape() as tape:
            outputs = model(tf.constant(golden["in/image"]), training=True)
            self.losses = loss(outputs, golden_targets(golden))
            total = tf.reduce_mean(self.losses.total)
            for output, indices in zip((outputs, *outputs.auxiliary), golden["sample/indices"]):
                at_crowds = crowd_gradient(masks, output.mask_logits)
                at_features = contrastive_gradient_without_target(masks, output.pixel_feature, tf.constant(indices))
                total += tf.reduce_sum(tf.stop_gradient(at_crowds) * output.mask_logits)
                total += tf.reduce_sum(tf.stop_gradient(at_features) * output.pixel_feature)
        self.gradients = tape.gradient(total, model.trainable_variables)
        for variable, value in zip(model.variables, start):
            variable.assign(value)
        self.names = [str(key) for key in golden["grad/names"]]
        position = {id(variable): i for i, variable in enumerate(model.trainable_variables)}
        self._order = [position[id(variables[key])] for key in self.names]

    def in_golden_order(self, values) -> list:
        """Values in the order of the model's trainable variables, reordered as in the golden."""
        return [values[i] for i in self._order]


@pytest.fixture(scope="module")
def step(loaded):
    return _Step(*loaded)


def test_losses_and_gradients(step):
    golden = step.golden
    np.testing.assert_allclose(step.losses.total, golden["loss/total_loss"], rtol=1e-5)
    gradients = step.in_golden_order(step.gradients)
    assert len(gradients) == len(step.gradients)
    expected, noise = golden["grad/norm_sum"][:, 0], golden["grad/noise"]
    first = golden["grad/first8"]
    for name, gradient, norm, changed, values in zip(step.names, gradients, expected, noise, first):
        # What the reference's gradient changes by when the image changes in the last place; 1e-5 for float32 sums.
        limit = 10 * changed + 2e-5 * norm + 1e-5
        assert abs(tf.norm(gradient).numpy() - norm) <= limit, name
        got = gradient.numpy().ravel()[:8]
        assert np.abs(got - values[: len(got)]).max() <= limit, name


def test_one_step_of_adamw(step):
    """From step 7000 with empty slots: every number moves by about the same, whatever its gradient."""
    golden = step.golden
    schedule = PolySchedule(5e-4, steps=150_000, warmup_steps=5000)
    optimizers = Optimizers(step.model, schedule, backbone_multiplier=0.1, weight_decay=0.05)
    for optimizer in (optimizers.base, optimizers.backbone):
        optimizer.iterations.assign(7000)
    rates = [float(rate) for rate in optimizers.learning_rates(7000).values()]
    np.testing.assert_allclose(rates, golden["step/lr"], rtol=1e-5)
    in_backbone = {id(variable) for variable in step.model.backbone_variables}
    ours = step.in_golden_order([id(variable) in in_backbone for variable in step.model.trainable_variables])
    assert ours == golden["grad/is_backbone_lr"].tolist()
    before = [variable.numpy() for variable in optimizers.variables]
    optimizers.apply(step.gradients)
    moved = [np.linalg.norm(variable.numpy() - start) for variable, start in zip(optimizers.variables, before)]
    errors = np.abs(np.array(step.in_golden_order(moved)) / golden["step/delta_norm"] - 1)
    # Gradients that are zero but for rounding move either way.
    certain = golden["grad/norm_sum"][:, 0] > 1000 * golden["grad/noise"]
    assert certain.mean() > 0.9
    assert np.median(errors[certain]) < 1e-5 and errors[certain].max() < 1e-2, step.names[(errors * certain).argmax()]
