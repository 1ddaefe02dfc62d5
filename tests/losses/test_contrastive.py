"""The pixel-contrastive loss: which pixels are drawn, what the loss means, and where its gradient flows."""

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.losses.contrastive import pixel_contrastive_loss, sample_pixels
from maxdl_tf.losses.panoptic import PanopticLoss
from maxdl_tf.losses.target_masks import TargetMasks
from tests.losses.scenes import COCO, loss_and_gradients, perfect_outputs, random_scene

PIXELS = 117  # Of the outputs of `random_scene`.


def masks_of(rows, void=()) -> TargetMasks:
    """Masks of images whose pixels belong to these rows, -1 for crowd, except for the void ones."""
    rows = np.array(rows, np.int32)
    area = np.stack([(rows == row).sum(axis=1) for row in range(4)], axis=1).astype(np.float32)
    non_void = np.ones(rows.shape, np.float32)
    non_void[:, list(void)] = 0
    return TargetMasks(tf.constant(rows), None, tf.constant(non_void), tf.constant(area), None, None)


def random_features(*shape, seed=0):
    return tf.math.l2_normalize(tf.constant(np.random.default_rng(seed).normal(size=shape), tf.float32), axis=-1)


def contrastive_loss(**options):
    return PanopticLoss(COCO, **{"pixel_contrastive_weight": 1.0, "pixel_contrastive_samples": 30, **options})


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.5])
def test_pixels_are_drawn_by_the_area_of_their_mask(temperature):
    row, images = [0, 0, 0, 0, 1, 1, 2, -1, -1], 20_000
    uniform = tf.random.stateless_uniform([images, len(row)], (1, 2))
    first = sample_pixels(masks_of([row] * images, void=[8]), uniform, 1, temperature)[:, 0]
    # Crowd pixels weigh as a mask of one pixel. Void pixels are not drawn while there are others.
    weight = np.array([4, 4, 4, 4, 2, 2, 1, 1, np.inf]) ** -temperature * [1, 1, 1, 1, 1, 1, 1, 1, 0]
    expected = weight / weight.sum()
    deviation = np.sqrt(expected * (1 - expected) / images)
    np.testing.assert_allclose(np.bincount(first, minlength=9) / images, expected, atol=4 * deviation.max())


def test_a_sample_has_no_pixel_twice_and_void_pixels_last():
    uniform = tf.random.stateless_uniform([50, 9], (1, 2))
    sample = sample_pixels(masks_of([[0, 0, 1, 1, 1, -1, -1, -1, -1]] * 50, void=[6, 7, 8]), uniform, 9, 1.5).numpy()
    assert (np.sort(sample, axis=1) == np.arange(9)).all()
    assert (np.sort(sample[:, 6:], axis=1) == [6, 7, 8]).all()


@pytest.mark.parametrize("zeros_count", [True, False])
def test_loss_and_gradient_are_those_of_the_definition(zeros_count):
    """Written with all pairs of samples, of which crowd and void pixels are negatives only."""
    rows = np.array([[0, 0, 1, 2, 2, 2, -1, 0], [3, 3, 3, 3, 3, 3, 3, -1]])
    masks, sample = masks_of(rows), tf.constant([[7, 3, 0, 6, 4, 5], [7, 0, 1, 2, 3, 4]])
    feature = random_features(2, 8, 5)

    def by_definition(feature):
        losses = []
        for image in range(2):
            f = tf.gather(feature[image], sample[image])
            row = rows[image][sample[image].numpy()]
            same = ((row[:, np.newaxis] == row) & (row >= 0)).astype(np.float32)
            target = same / np.maximum(same.sum(axis=1, keepdims=True), 1)
            of_pixel = -tf.reduce_sum(target * tf.nn.log_softmax(f @ tf.transpose(f) / 0.3), axis=1)
            losses.append(tf.reduce_sum(of_pixel) / (row >= 0).sum())
        return tf.stack(losses)

    weights = tf.constant([1.0, 3.0])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(feature)
        got = pixel_contrastive_loss(masks, feature, sample, 0.3, zeros_count)
        want = by_definition(feature)
        got_sum, want_sum = tf.reduce_sum(weights * got), tf.reduce_sum(weights * want)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    gradient = tape.gradient(want_sum, feature)
    np.testing.assert_allclose(tf.convert_to_tensor(tape.gradient(got_sum, feature)), gradient, rtol=1e-4, atol=1e-6)
    assert tf.reduce_any(gradient[0, 6] != 0)  # A crowd pixel is pushed away from the others.
    assert not tf.reduce_any(gradient[0, 2] != 0)  # It is not in the sample.


def test_images_without_a_sampled_mask_cost_nothing():
    masks, sample = masks_of([[-1] * 6], void=[0, 1]), tf.constant([[0, 1, 2, 3]])
    feature = random_features(1, 6, 5)
    with tf.GradientTape() as tape:
        tape.watch(feature)
        loss = pixel_contrastive_loss(masks, feature, sample, 0.3)
    assert loss.numpy() == 0 and not np.any(tf.convert_to_tensor(tape.gradient(loss, feature)))


def test_features_that_separate_the_masks_have_the_least_loss():
    """That of a uniform choice among the sampled pixels of the own mask, since all of them are equally right."""
    _, targets = random_scene(COCO)
    loss = contrastive_loss(temperature=0.02, pixel_contrastive_samples=PIXELS)
    perfect = loss(perfect_outputs(COCO, targets), targets).pixel_contrastive.numpy()
    masks = loss.target_masks(targets)
    area, total = masks.area.numpy(), masks.in_row.numpy().sum(axis=1)
    np.testing.assert_allclose(perfect, (area * np.log(np.maximum(area, 1))).sum(axis=1) / total, rtol=1e-4)
    assert (loss(random_scene(COCO)[0], targets).pixel_contrastive.numpy() > perfect + 1).all()


def test_gradients_flow_to_the_features_only():
    outputs, targets = random_scene(COCO)
    loss = contrastive_loss(pixel_contrastive_samples=PIXELS)
    gradients = loss_and_gradients(loss, outputs, targets, of="pixel_contrastive")[1]
    assert [bool(tf.reduce_any(gradient != 0)) for gradient in gradients[:4]] == [True, False, False, False]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_equal_seeds_draw_equal_samples(jit_compile):
    outputs, targets = random_scene(COCO)
    loss = contrastive_loss(pq_style_weight=0.0, mask_id_weight=0.0)

    @tf.function(autograph=False, jit_compile=jit_compile)
    def draw(seed):
        return loss(outputs, targets, seed).pixel_contrastive

    seeds = [tf.constant(seed) for seed in ([1, 2], [1, 2], [2, 2], [1, 3])]
    first, again, *others = (draw(seed).numpy() for seed in seeds)
    assert (again == first).all() and all((other != first).all() for other in others)


def test_without_a_seed_each_call_draws_anew():
    scene, loss = random_scene(COCO), contrastive_loss()
    assert (loss(*scene).pixel_contrastive != loss(*scene).pixel_contrastive).numpy().all()


def test_of_a_smaller_image_all_pixels_are_drawn():
    scene = random_scene(COCO)
    losses = [contrastive_loss(pixel_contrastive_samples=samples)(*scene) for samples in (PIXELS, PIXELS + 1, 4096)]
    for loss in losses[1:]:  # In another order.
        np.testing.assert_allclose(loss.pixel_contrastive, losses[0].pixel_contrastive, rtol=1e-5)
    uniform = tf.random.stateless_uniform([2, 9], (1, 2))
    draw = tf.function(sample_pixels, input_signature=None, jit_compile=True)
    sample = draw(masks_of([[0, 0, 0, 0, 1, 1, 2, -1, -1]] * 2), uniform, 20, 1.5)
    np.testing.assert_array_equal(np.sort(sample), [range(9)] * 2)


def test_numbers_out_of_range_are_refused():
    for bad in ({"pixel_contrastive_samples": 0}, {"pixel_contrastive_area_temperature": -1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            contrastive_loss(**bad)
