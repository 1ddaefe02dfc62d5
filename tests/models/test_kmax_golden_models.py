"""Whole kMaX-DeepLabs of the published topology, narrow, against the reference."""

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import shared_golden
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
