"""Losses and gradients are finite for crops that are nearly empty or far too full."""

import numpy as np
import tensorflow as tf

from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.data.targets import panoptic_targets
from maxdl_tf.losses.panoptic import PanopticLoss
from maxdl_tf.structs import PanopticOutputs

SIZE, OUTPUT_SIZE, BATCH_SIZE, SLOTS, MAX_THINGS, CHANNELS = 65, 17, 2, 7, 12, 8
BATCHES = 200
INFO = DatasetInfo(
    "degenerate",
    tuple(SegmentClass(i, str(i), is_thing, (0, 0, 0), i) for i, is_thing in ((1, True), (2, True), (4, False))),
)
THINGS, STUFF = (1, 2), 4


def empty(random):
    return np.full((SIZE, SIZE), STUFF * INFO.label_divisor)


def all_void(random):
    return np.full((SIZE, SIZE), INFO.void)


def all_crowd(random):
    return np.full((SIZE, SIZE), random.choice(THINGS) * INFO.label_divisor)


def one_thing(random):
    return all_crowd(random) + 1


def one_pixel_things(random):
    """On stuff or void. Few of them lie on pixels that the outputs, a quarter of the size, sample."""
    labels = random.choice([empty, all_void])(random)
    for instance in range(1, random.integers(2, 30)):
        labels[tuple(random.integers(0, SIZE, 2))] = random.choice(THINGS) * INFO.label_divisor + instance
    return labels


def one_pixel_that_the_outputs_have(random):
    labels = all_void(random)
    labels[tuple(4 * random.integers(0, OUTPUT_SIZE, 2))] = INFO.label_divisor + 1
    return labels


def one_pixel_with_a_class(random):
    labels = all_void(random)
    labels[tuple(random.integers(0, SIZE, 2))] = STUFF * INFO.label_divisor
    return labels


def two_hundred_objects(random):
    """More than the targets can hold, and more than there are slots."""
    return random.integers(1, 201, (SIZE, SIZE)) + INFO.label_divisor * random.choice(THINGS)


def more_things_than_slots(random):
    """As many as the targets can hold, each of them large."""
    instance = 1 + np.arange(SIZE) * MAX_THINGS // SIZE
    return np.tile(instance, (SIZE, 1)) + INFO.label_divisor * random.choice(THINGS)


def noise(random):
    classes = random.choice([INFO.ignore_label, *INFO.class_order], (SIZE, SIZE))
    is_thing = np.isin(classes, THINGS)
    return classes * INFO.label_divisor + np.where(is_thing, random.integers(0, 256, (SIZE, SIZE)), 0)


KINDS = (
    empty,
    all_void,
    all_crowd,
    one_thing,
    one_pixel_things,
    one_pixel_that_the_outputs_have,
    one_pixel_with_a_class,
    two_hundred_objects,
    more_things_than_slots,
    noise,
)


def mixture(random):
    """One kind left of a vertical line, another right of it."""
    left, right = (KINDS[i](random) for i in random.integers(0, len(KINDS), 2))
    column = random.integers(0, SIZE)
    return np.concatenate([left[:, :column], right[:, column:]], axis=1)


def random_outputs(random, scale: float) -> PanopticOutputs:
    def normal(*shape):
        return tf.constant(random.normal(0, scale, (BATCH_SIZE, *shape)), tf.float32)

    return PanopticOutputs(
        pixel_feature=tf.math.l2_normalize(normal(OUTPUT_SIZE, OUTPUT_SIZE, CHANNELS), axis=-1),
        mask_logits=normal(OUTPUT_SIZE, OUTPUT_SIZE, SLOTS),
        class_logits=normal(SLOTS, len(INFO.class_order) + 1),
        semantic_logits=normal(OUTPUT_SIZE, OUTPUT_SIZE, INFO.num_semantic_channels),
    )


def test_losses_and_gradients_of_degenerate_batches_are_finite():
    random = np.random.default_rng(5)
    loss = PanopticLoss(INFO)

    @tf.function(autograph=False)
    def losses_and_gradients(label_maps, outputs):
        targets = panoptic_targets(label_maps, INFO, small_instance_weight=3.0, max_things=MAX_THINGS)
        with tf.GradientTape() as tape:
            variables = outputs[:4]
            tape.watch(variables)
            losses = loss(PanopticOutputs(*variables), targets)
            total = tf.reduce_sum(losses.total)
        return losses, tape.gradient(total, variables)

    kinds = [*KINDS, mixture]
    not_finite, taught = [], set()
    for number in range(BATCHES):
        # Each kind meets each other kind; outputs range from near zero to certain.
        of_images = [kinds[number % len(kinds)], kinds[number // len(kinds) % len(kinds)]]
        label_maps = np.stack([kind(random) for kind in of_images]).astype(np.int32)
        scale = (0.01, 1.0, 100.0)[number % 3]
        losses, gradients = losses_and_gradients(tf.constant(label_maps), random_outputs(random, scale))
        values = {**losses._asdict(), **{f"gradient {i}": gradient for i, gradient in enumerate(gradients)}}
        spoiled = [name for name, value in values.items() if not np.isfinite(value).all()]
        if spoiled:
            not_finite.append((number, [kind.__name__ for kind in of_images], scale, spoiled))
        for kind, image_gradient in zip(of_images, gradients[1]):
            if np.any(image_gradient):
                taught.add(kind.__name__)
    assert not not_finite, not_finite
    # All kinds with masks have gradients, so the test has not compared zeros only.
    assert {"empty", "one_thing", "two_hundred_objects", "more_things_than_slots", "noise", "mixture"} <= taught
