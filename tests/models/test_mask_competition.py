"""The shortened reading of one image against the post-processor's maps, and what it leaves out."""

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.models import mask_competition
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
                return postprocessor.read_image(outputs_of(mask_logits, class_logits), SIZE, (height, width))

            functions[key] = function
        height, width = visible
        return functions[key](outputs.mask_logits, outputs.class_logits, tf.constant(height), tf.constant(width))

    return read


@pytest.fixture(scope="module")
def whole_in_graph():
    functions = {}

    def read(postprocessor, key, outputs):
        if key not in functions:
            functions[key] = tf.function(lambda *logits: postprocessor(outputs_of(*logits), SIZE), autograph=False)
        return functions[key](outputs.mask_logits, outputs.class_logits)

    return read


@pytest.mark.parametrize("visible", VISIBLE)
@pytest.mark.parametrize("class_threshold", [0.0, 0.5, 0.8, 1.0])
def test_it_is_the_visible_part_of_the_whole_map(read_in_graph, whole_in_graph, visible, class_threshold):
    for seed in range(3):
        outputs = random_outputs(seed, smooth=seed % 3 != 0)
        options = {"class_threshold": class_threshold, "pixel_threshold": 0.4}
        postprocess = Postprocessor(SMALL, thing_area_limit=300, stuff_area_limit=700, **options)
        whole = whole_in_graph(postprocess, class_threshold, outputs)
        slot_map = read_in_graph(postprocess, class_threshold, outputs, visible)
        slot = slot_map.slot.numpy()
        panoptic = np.where(slot >= 0, slot_map.label.numpy()[slot], SMALL.void)
        wanted, instance_score, semantic_score = (
            field[0, : visible[0], : visible[1]].numpy()
            for field in (whole.panoptic, whole.instance_score, whole.semantic_score)
        )
        np.testing.assert_array_equal(panoptic, wanted)
        np.testing.assert_allclose(slot_map.confidence[slot >= 0], instance_score[slot >= 0], rtol=1e-5)
        np.testing.assert_array_equal(slot_map.class_confidence.numpy()[slot[slot >= 0]], semantic_score[slot >= 0])


def test_pixels_in_the_padding_count():
    """A thing of which few pixels are in the image is kept or not by all that it has."""
    logits = np.zeros([1, 5, 7, 2], np.float32)
    logits[0, :, :, 1] = 50.0
    logits[0, 2, :, 0] = 100.0
    outputs = outputs_of(tf.constant(logits), tf.constant([[[9.0, 0, 0, 0, 0], [0, 0, 9.0, 0, 0]]]))
    whole = Postprocessor(SMALL, thing_area_limit=1, stuff_area_limit=1)(outputs, (17, 25)).instance[0, :, 0] - 1
    rows = int((whole.numpy() == 0).sum())
    assert rows > 2
    first = int(np.flatnonzero(whole == 0)[0])
    for limit, kept in ((rows * 25, True), (rows * 25 + 1, False)):
        postprocess = Postprocessor(SMALL, thing_area_limit=limit, stuff_area_limit=1)
        for visible in ((first + 1, 25), (17, 3), (first + 2, 2)):
            slot = postprocess.read_image(outputs, (17, 25), visible).slot.numpy()
            assert (slot[first] == (0 if kept else -1)).all()


def test_masks_that_cannot_win_are_not_resized(monkeypatch):
    """The second of the dropped slots is above all others between two logits, the third one nowhere."""
    logits = np.full([5, 5, 4], -10.0, np.float32)
    logits[:, :2, 0], logits[:, 2:, 1], logits[:, :, 2], logits[:, :, 3] = 10.0, 10.0, 9.0, -11.0
    resized = []
    upsampled = mask_competition._upsampled
    monkeypatch.setattr(mask_competition, "_upsampled", lambda x: resized.append(x.shape[-1]) or upsampled(x))
    winners = MaskCompetition(tf.constant(logits), tf.constant([True, False, False, False])).winners(17, 17)
    assert set(resized) == {1, 2}
    np.testing.assert_array_equal(
        winners.won.numpy()[:, [0, 4, 5, 7, 8, 16]], [[True, True, False, False, False, False]] * 17
    )


@pytest.mark.parametrize("slots", [3, 20])
def test_what_may_win_holds_all_winners(slots):
    generator = np.random.default_rng(0)
    for _ in range(20):
        logits = tf.constant(generator.normal(0, 1, [6, 9, slots]).astype(np.float32))
        winners = set(np.unique(tf.argmax(mask_competition._upsampled(logits), axis=-1)))
        assert winners <= set(np.flatnonzero(mask_competition._may_win(logits)))


def test_sizes_that_do_not_fit_are_refused():
    postprocess = Postprocessor(SMALL, thing_area_limit=0, stuff_area_limit=0)
    with pytest.raises(ValueError, match=r"mask logits for an input of \(65, 97\), but size is \(65, 65\)"):
        postprocess.read_image(random_outputs(0), (65, 65), (65, 65))
