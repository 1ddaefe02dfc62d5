"""The shortcuts of the mask competition against the plain rules."""

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.models import mask_bands, mask_competition
from maxdl_tf.models.mask_competition import MaskCompetition
from maxdl_tf.models.postprocess import Postprocessor
from tests.models.test_postprocess import SMALL, outputs_of

SIZE = (65, 97)
VISIBLE = [(65, 97), (65, 60), (40, 97), (1, 97), (65, 1), (33, 49), (64, 96), (17, 4)]


def random_outputs(seed, num_slots=12, smooth=True):
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 4, [1, 5, 7, num_slots]).astype(np.float32)
    low = (17, 25)
    logits = tf.image.resize(logits, low, "bicubic") if smooth else generator.normal(0, 4, [1, *low, num_slots])
    return outputs_of(tf.cast(logits, tf.float32), tf.constant(generator.normal(0, 2, [1, num_slots, 5]), tf.float32))


@pytest.fixture(scope="module")
def read_in_graph():
    """Traced once for all sizes, as in a SavedModel."""
    functions = {}

    def read(postprocessor, key, outputs, visible):
        if key not in functions:

            @tf.function(autograph=False)
            def function(mask_logits, class_logits, height, width):
                return postprocessor.slot_map(outputs_of(mask_logits, class_logits), (height, width))

            functions[key] = function
        height, width = visible
        return functions[key](outputs.mask_logits, outputs.class_logits, tf.constant(height), tf.constant(width))

    return read


def plain_map(postprocessor, outputs):
    """The label map and scores of the whole input by the rules, with all masks resized and no shortcut."""
    thresholds = postprocessor.thresholds
    logits = mask_bands.upsampled(outputs.mask_logits[0], 4).numpy()
    probability = tf.nn.softmax(outputs.class_logits[0]).numpy()[:, :-1]
    place, confidence = probability.argmax(axis=1), probability.max(axis=1)
    kept = np.flatnonzero(confidence >= thresholds["class_threshold"])
    slot = logits.argmax(axis=-1)
    with np.errstate(divide="ignore"):  # Where no slot is kept.
        share = np.exp(logits.max(axis=-1)) / np.exp(logits[..., kept].astype(np.float64)).sum(axis=-1)
    slot = np.where(np.isin(slot, kept) & (share > thresholds["pixel_threshold"]), slot, -1)
    label = np.full([len(place)], SMALL.void)
    for n in kept:
        is_thing = place[n] < len(SMALL.thing_ids)
        area = (slot == n).sum() if is_thing else np.isin(slot, np.flatnonzero(place == place[n])).sum()
        if area >= thresholds["thing_area_limit" if is_thing else "stuff_area_limit"]:
            label[n] = SMALL.class_order[place[n]] * SMALL.label_divisor + (n + 1) * is_thing
    return np.where(slot >= 0, label[slot], SMALL.void), share, confidence


@pytest.mark.parametrize("visible", VISIBLE)
@pytest.mark.parametrize("class_threshold", [0.0, 0.5, 0.8, 1.0])
def test_shortcuts_change_nothing(read_in_graph, visible, class_threshold):
    for seed in range(3):
        outputs = random_outputs(seed, smooth=seed % 3 != 0)
        options = {"class_threshold": class_threshold, "pixel_threshold": 0.4}
        postprocess = Postprocessor(SMALL, thing_area_limit=300, stuff_area_limit=700, **options)
        slot_map = read_in_graph(postprocess, class_threshold, outputs, visible)
        panoptic, confidence, class_confidence = plain_map(postprocess, outputs)
        here = np.s_[: visible[0], : visible[1]]
        np.testing.assert_array_equal(postprocess.label_map(slot_map), panoptic[here])
        accepted = panoptic[here] != SMALL.void
        np.testing.assert_allclose(slot_map.confidence[accepted], confidence[here][accepted], rtol=1e-5)
        np.testing.assert_allclose(slot_map.class_confidence, class_confidence, rtol=1e-6)


def test_pixels_in_the_padding_count():
    """A thing of which few pixels are in the image is kept or not by all that it has."""
    logits = np.zeros([1, 5, 7, 2], np.float32)
    logits[0, :, :, 1] = 50.0
    logits[0, 2, :, 0] = 100.0
    outputs = outputs_of(tf.constant(logits), tf.constant([[[9.0, 0, 0, 0, 0], [0, 0, 9.0, 0, 0]]]))
    whole = Postprocessor(SMALL, thing_area_limit=1, stuff_area_limit=1).slot_map(outputs)
    with_thing = np.flatnonzero((whole.slot[:, 0] == 0) & (whole.void_reason[:, 0] == 0))
    rows, first = len(with_thing), int(with_thing[0])
    assert rows > 2
    for limit, kept in ((rows * 25, True), (rows * 25 + 1, False)):
        postprocess = Postprocessor(SMALL, thing_area_limit=limit, stuff_area_limit=1)
        for visible in ((first + 1, 25), (17, 3), (first + 2, 2)):
            slot_map = postprocess.slot_map(outputs, visible)
            assert (slot_map.slot[first].numpy() == 0).all()
            assert ((slot_map.void_reason[first].numpy() == 0) == kept).all()


def test_masks_that_cannot_win_are_not_resized(monkeypatch):
    """The second of the dropped slots is above all others between two logits, the third one nowhere."""
    logits = np.full([5, 5, 4], -10.0, np.float32)
    logits[:, :2, 0], logits[:, 2:, 1], logits[:, :, 2], logits[:, :, 3] = 10.0, 10.0, 9.0, -11.0
    resized = []
    upsampled = mask_bands.upsampled
    monkeypatch.setattr(mask_bands, "upsampled", lambda x, stride: resized.append(x.shape[-1]) or upsampled(x, stride))
    winners = MaskCompetition(tf.constant(logits), tf.constant([True, False, False, False]), 4).winners(17, 17)
    assert set(resized) == {1, 2}
    np.testing.assert_array_equal(winners.slot.numpy()[:, [0, 4, 5, 7, 8, 16]], [[0, 0, 2, 2, 1, 1]] * 17)


@pytest.mark.parametrize("slots", [3, 20])
def test_what_may_win_holds_all_winners(slots):
    generator = np.random.default_rng(0)
    for _ in range(20):
        logits = tf.constant(generator.normal(0, 1, [6, 9, slots]).astype(np.float32))
        winners = set(np.unique(tf.argmax(mask_bands.upsampled(logits, 4), axis=-1)))
        assert winners <= set(np.flatnonzero(mask_competition._may_win(logits)))
