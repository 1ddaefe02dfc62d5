"""The meaning of the losses: invariances, flow of gradients, and extreme images."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import linear_sum_assignment

from maxdl_tf.losses.assignment import scipy_assign
from maxdl_tf.losses.panoptic import PanopticLoss
from maxdl_tf.losses.target_masks import TargetMaskBuilder, flatten_pixels
from maxdl_tf.losses.terms import mean_of_counted
from maxdl_tf.structs import PanopticOutputs
from tests.losses.scenes import COCO, ODD, class_table, loss_and_gradients, perfect_outputs, random_scene

TERMS = ("pq_style_dice", "pq_style_class", "mask_id", "instance_discrimination", "semantic")


def assert_equal_losses(losses, others):
    for name, value, other in zip(losses._fields, losses, others):
        np.testing.assert_allclose(value, other, rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("dataset_info", [COCO, ODD], ids=["coco", "odd"])
def test_order_of_slots_is_free(dataset_info):
    outputs, targets = random_scene(dataset_info)
    order = np.random.default_rng(1).permutation(outputs.mask_logits.shape[-1])
    permuted = outputs._replace(
        mask_logits=tf.gather(outputs.mask_logits, order, axis=-1),
        class_logits=tf.gather(outputs.class_logits, order, axis=1),
    )
    loss = PanopticLoss(dataset_info)
    assert_equal_losses(loss(permuted, targets), loss(outputs, targets))


def test_order_of_things_is_free():
    outputs, targets = random_scene(ODD)
    order = np.array([2, 0, 3, 1, *range(4, 12)])  # New number of each thing.
    thing_id = targets.thing_id_mask.numpy()
    renumbered = targets._replace(
        thing_id_mask=tf.constant(np.where(thing_id >= 0, order[thing_id], -1), tf.int32),
        thing_id_class=tf.gather(targets.thing_id_class, np.argsort(order), axis=1),
    )
    loss = PanopticLoss(ODD)
    assert_equal_losses(loss(outputs, renumbered), loss(outputs, targets))


def test_numbers_of_classes_are_names_only():
    """The odd table with its ids put 1.., things first, is the same problem."""
    outputs, targets = random_scene(ODD)
    plain = class_table(things=(1, 2, 3), stuff=(4, 5))
    new_id = np.full(14, -1)
    new_id[list(ODD.class_order)] = plain.class_order
    new_id[ODD.ignore_label] = 0
    renamed = targets._replace(
        semantic=tf.gather(tf.constant(new_id, tf.int32), targets.semantic),
        thing_id_class=tf.where(
            targets.thing_id_class >= 0, tf.gather(tf.constant(new_id, tf.int32), abs(targets.thing_id_class)), -1
        ),
    )
    channel = [ODD.ignore_label, *ODD.class_order]
    # Channels that no id uses are out of the softmax in one table and must be in the other.
    unused = tf.constant([0.0 if i in channel else -1e9 for i in range(14)])
    losses = PanopticLoss(ODD)(outputs._replace(semantic_logits=outputs.semantic_logits + unused), targets)
    semantic_logits = tf.gather(outputs.semantic_logits, channel, axis=-1)
    assert_equal_losses(PanopticLoss(plain)(outputs._replace(semantic_logits=semantic_logits), renamed), losses)


@pytest.mark.parametrize("dataset_info", [COCO, ODD], ids=["coco", "odd"])
def test_perfect_prediction_costs_nearly_nothing(dataset_info):
    _, targets = random_scene(dataset_info)
    outputs = perfect_outputs(dataset_info, targets)
    loss = PanopticLoss(dataset_info, temperature=0.05)
    losses = loss(outputs, targets)
    for term in TERMS:
        assert (abs(getattr(losses, term).numpy()) < 1e-4).all(), term
    for metric in (*(metric.name for metric in loss.metrics), "has_masks", "has_things"):
        np.testing.assert_allclose(getattr(losses, metric), 1.0, atol=1e-4)

    random_losses = PanopticLoss(dataset_info)(random_scene(dataset_info)[0], targets)
    for term in TERMS:
        assert (getattr(random_losses, term).numpy() > 1e-2).all(), term


def test_gradients_flow_to_what_a_term_is_about_and_nowhere_else():
    outputs, targets = random_scene(COCO)
    loss = PanopticLoss(COCO)
    reached = {
        "pq_style_dice": {"mask_logits"},
        "pq_style_class": {"class_logits"},
        "mask_id": {"mask_logits"},
        "instance_discrimination": {"pixel_feature"},
        "semantic": {"semantic_logits"},
        "total": set(outputs._fields[:4]),
        "matched_class_probability": set(),
        "matched_dice": set(),
        "mask_id_accuracy": set(),
        "instance_discrimination_accuracy": set(),
    }
    for field, want in reached.items():
        _, gradients = loss_and_gradients(loss, outputs, targets, of=field)
        assert {
            name for name, gradient in list(gradients._asdict().items())[:4] if tf.reduce_any(gradient != 0)
        } == want, field


def test_instance_discrimination_gradient_flows_through_the_mean_features():
    """Stuff pixels belong to no thing, but to the mean feature of their class, from which things must differ."""
    outputs, targets = random_scene(COCO)
    _, gradients = loss_and_gradients(PanopticLoss(COCO), outputs, targets, of="instance_discrimination")
    semantic = targets.semantic.numpy()[:, ::4, ::4]
    per_pixel = abs(gradients.pixel_feature.numpy()).sum(axis=-1)
    assert (per_pixel[semantic > 80] > 0).all()
    assert not per_pixel[semantic == 0].any()


def _empty_targets(targets, kind):
    semantic, thing_id = targets.semantic.numpy(), targets.thing_id_mask.numpy()
    thing_class = np.full_like(targets.thing_id_class, -1)
    if kind == "no thing":
        semantic, thing_id = np.where(semantic > 80, semantic, 100), np.full_like(thing_id, -1)
    elif kind == "all crowd":
        semantic, thing_id = np.full_like(semantic, 3), np.full_like(thing_id, -1)
    elif kind == "all void":
        semantic, thing_id = np.zeros_like(semantic), np.full_like(thing_id, -1)
    elif kind == "things vanish when strided":
        thing_id, semantic = np.full_like(thing_id, -1), np.zeros_like(semantic)
        thing_id[:, 1, 1], semantic[:, 1, 1], thing_class[:, 0] = 0, 5, 5
    return targets._replace(
        semantic=tf.constant(semantic), thing_id_mask=tf.constant(thing_id), thing_id_class=tf.constant(thing_class)
    )


@pytest.mark.parametrize("kind", ["no thing", "all crowd", "all void", "things vanish when strided"])
def test_images_without_objects(kind):
    outputs, targets = random_scene(COCO)
    targets = _empty_targets(targets, kind)
    losses, gradients = loss_and_gradients(PanopticLoss(COCO), outputs, targets)
    for name, value in {**losses._asdict(), **gradients._asdict()}.items():
        assert np.isfinite(value).all(), name
    assert not losses.instance_discrimination.numpy().any() and not losses.has_things.numpy().any()
    if kind != "no thing":
        assert not losses.mask_id.numpy().any() and not losses.pq_style_dice.numpy().any()
        assert not losses.has_masks.numpy().any()
        # All slots are trained towards void: strongly on void, weakly on crowd.
        void_probability = tf.nn.softmax(outputs.class_logits)[..., -1]
        cross_entropy = -tf.reduce_mean(tf.math.log(void_probability), axis=1)
        share = 1e-5 if kind == "all crowd" else 1.0
        np.testing.assert_allclose(losses.pq_style_class, 3.0 * 0.25 * share * cross_entropy, rtol=1e-3)


def test_crowd_pixels_train_no_mask_but_the_semantic_branch():
    outputs, targets = random_scene(COCO)
    crowd = (targets.semantic.numpy() < 81) & (targets.semantic.numpy() > 0) & (targets.thing_id_mask.numpy() < 0)
    crowd = crowd[:, ::4, ::4]
    assert crowd.any()
    _, gradients = loss_and_gradients(PanopticLoss(COCO, pq_style_weight=0.0), outputs, targets)
    assert not gradients.mask_logits.numpy()[crowd].any()
    assert not gradients.pixel_feature.numpy()[crowd].any()
    assert gradients.semantic_logits.numpy()[crowd].any(axis=-1).all()


def test_masks_without_a_slot_are_left_alone():
    outputs, targets = random_scene(COCO, slots=2)  # Four things and stuff.

    def assign(similarity, valid):  # Thing 0 to slot 0, thing 1 to slot 1.
        return tf.tile(tf.constant([[0, 1] + [-1] * (similarity.shape[1] - 2)]), [similarity.shape[0], 1])

    losses, gradients = loss_and_gradients(PanopticLoss(COCO, assign=assign), outputs, targets, of="mask_id")
    assert (losses.total.numpy() < 50).all()
    thing_id = targets.thing_id_mask.numpy()[:, ::4, ::4]
    trained = gradients.mask_logits.numpy().any(axis=-1)
    np.testing.assert_array_equal(trained, (thing_id == 0) | (thing_id == 1))
    assert (losses.mask_id_accuracy.numpy() < 0.8).all()  # Pixels without a slot count as wrong.


def test_nan_stays_nan():
    outputs, targets = random_scene(COCO)
    mask_logits = outputs.mask_logits.numpy()
    mask_logits[0, 0, 0, 0] = np.nan
    losses = PanopticLoss(COCO)(outputs._replace(mask_logits=tf.constant(mask_logits)), targets)
    assert np.isnan(losses.total[0]) and np.isfinite(losses.total[1])


@pytest.mark.parametrize(
    "off, poisoned, zero",
    [
        ("instance_discrimination_weight", {"pixel_feature"}, {"instance_discrimination"}),
        ("semantic_weight", {"semantic_logits"}, {"semantic"}),
        ("pq_style_weight", {"class_logits"}, {"pq_style_dice", "pq_style_class"}),
    ],
)
def test_weight_0_switches_a_term_off(off, poisoned, zero):
    outputs, targets = random_scene(COCO)
    full = PanopticLoss(COCO)(outputs, targets)
    # A term that is switched off is not computed: NaN in its input has no effect (class logits still steer matching).
    if poisoned != {"class_logits"}:
        outputs = outputs._replace(**{name: getattr(outputs, name) * np.nan for name in poisoned})
    losses = PanopticLoss(COCO, **{off: 0.0})(outputs, targets)
    for term in TERMS:
        np.testing.assert_allclose(getattr(losses, term), 0 if term in zero else getattr(full, term), rtol=1e-6)
    np.testing.assert_allclose(losses.total, sum(getattr(losses, term) for term in TERMS), rtol=1e-6)


def test_no_matching_where_no_term_needs_it():
    outputs, targets = random_scene(COCO)
    calls = []

    def assign(*arguments):
        calls.append(1)
        return scipy_assign(*arguments)

    PanopticLoss(COCO, pq_style_weight=0.0, mask_id_weight=0.0, assign=assign)(outputs, targets)
    assert not calls
    PanopticLoss(COCO, pq_style_weight=0.0, assign=assign)(outputs, targets)
    assert len(calls) == 1


def test_weights_scale_their_terms():
    outputs, targets = random_scene(COCO)
    weights = {
        "pq_style_weight": 6.0,
        "instance_discrimination_weight": 3.0,
        "mask_id_weight": 0.15,
        "semantic_weight": 0.5,
    }
    full, scaled = PanopticLoss(COCO)(outputs, targets), PanopticLoss(COCO, **weights)(outputs, targets)
    for term, factor in zip(TERMS, (2.0, 2.0, 0.5, 3.0, 0.5)):
        np.testing.assert_allclose(getattr(scaled, term), factor * getattr(full, term), rtol=1e-6)
    only_positive = PanopticLoss(COCO, positive_weight=1.0)(outputs, targets)
    np.testing.assert_allclose(only_positive.pq_style_dice, full.pq_style_dice / 0.75, rtol=1e-6)


def test_small_types_are_computed_in_float32():
    outputs, targets = random_scene(COCO)
    half = tf.nest.map_structure(lambda output: tf.cast(output, tf.bfloat16), outputs)
    rounded = tf.nest.map_structure(lambda output: tf.cast(output, tf.float32), half)
    losses = PanopticLoss(COCO)(half, targets)
    assert all(value.dtype == tf.float32 for value in losses)
    assert_equal_losses(losses, PanopticLoss(COCO)(rounded, targets))


def test_a_graph_with_unknown_sizes_agrees_with_eager_execution():
    outputs, targets = random_scene(ODD)
    loss = PanopticLoss(ODD)

    def loose(tensor, known):
        return tf.TensorSpec(
            [None] * (len(tensor.shape) - known) + tensor.shape[len(tensor.shape) - known :], tensor.dtype
        )

    signature = [
        PanopticOutputs(
            *(loose(t, 2 if name == "class_logits" else 1) for name, t in list(outputs._asdict().items())[:5])
        ),
        type(targets)(*(loose(t, 1 if name == "thing_id_class" else 0) for name, t in targets._asdict().items())),
    ]
    graph = tf.function(lambda o, t: loss(o, t), input_signature=signature)
    assert_equal_losses(graph(outputs, targets), loss(outputs, targets))


def test_missing_semantic_branch():
    outputs, targets = random_scene(COCO)
    outputs = outputs._replace(semantic_logits=None)
    losses = PanopticLoss(COCO, semantic_weight=0.0)(outputs, targets)
    assert not losses.semantic.numpy().any() and np.isfinite(losses.total).all()
    with pytest.raises(ValueError, match="no semantic branch"):
        PanopticLoss(COCO)(outputs, targets)


def test_what_does_not_fit_is_refused():
    outputs, targets = random_scene(COCO)
    with pytest.raises(ValueError, match="num_classes=133"):
        PanopticLoss(COCO)(outputs._replace(class_logits=outputs.class_logits[..., :-1]), targets)
    with pytest.raises(ValueError, match="num_semantic_channels=134"):
        PanopticLoss(COCO)(outputs._replace(semantic_logits=outputs.semantic_logits[..., :-1]), targets)
    with pytest.raises(ValueError, match="at stride 4"):
        PanopticLoss(COCO)(outputs._replace(mask_logits=outputs.mask_logits[:, :-1]), targets)
    for bad in ({"mask_id_weight": -1.0}, {"positive_weight": 1.5}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            PanopticLoss(COCO, **bad)
    with pytest.raises(ValueError, match="nothing to learn"):
        PanopticLoss(COCO, pq_style_weight=0, mask_id_weight=0, semantic_weight=0, instance_discrimination_weight=0)


def test_the_sum_form_is_two_plain_terms():
    """Matched by class probability + Dice; the mean over slots of both losses, neither weighted by the other."""
    outputs, targets = random_scene(ODD)
    loss = PanopticLoss(ODD, pq_style="sum", negatives=False, pq_style_weight=1.0)
    losses = loss(outputs, targets)
    masks = TargetMaskBuilder(ODD)(targets)
    slot_probability = tf.nn.softmax(flatten_pixels(outputs.mask_logits)).numpy()
    class_probability = tf.nn.softmax(outputs.class_logits).numpy()
    slots = class_probability.shape[1]
    for image in range(len(class_probability)):
        rows = np.flatnonzero(masks.valid[image])
        inside = (masks.row_of_pixel[image].numpy()[:, np.newaxis] == rows).astype(np.float32)
        overlap = inside.T @ slot_probability[image]
        area = slot_probability[image].T @ masks.non_void[image].numpy()
        dice = 2 * overlap / (inside.sum(0)[:, np.newaxis] + area)
        probability = class_probability[image][:, masks.class_index[image].numpy()[rows]].T
        row, slot = linear_sum_assignment(-(probability + dice))
        class_term = -np.log(probability[row, slot]).sum() / slots
        np.testing.assert_allclose(losses.pq_style_class[image], 0.75 * class_term, rtol=1e-4)
        np.testing.assert_allclose(losses.matched_dice[image], dice[row, slot].mean(), rtol=1e-4)
        area = slot_probability[image].T @ masks.in_row[image].numpy()
        smooth = (2 * overlap + 1) / (inside.sum(0)[:, np.newaxis] + area + 1)
        np.testing.assert_allclose(losses.pq_style_dice[image], 0.75 * (1 - smooth[row, slot]).sum() / slots, rtol=1e-4)


@pytest.mark.parametrize("pq_style", ["product", "sum"])
def test_without_negatives_only_slots_with_a_mask_are_taught(pq_style):
    outputs, targets = random_scene(ODD)
    loss = PanopticLoss(ODD, pq_style=pq_style, negatives=False)
    gradient = loss_and_gradients(loss, outputs, targets, of="pq_style_class")[1].class_logits
    taught = tf.reduce_any(gradient != 0, axis=-1).numpy().sum(axis=1)
    masks = TargetMaskBuilder(ODD)(targets)
    np.testing.assert_array_equal(taught, np.minimum(masks.valid.numpy().sum(axis=1), outputs.class_logits.shape[1]))


def test_negatives_add_to_the_class_term_and_change_nothing_else():
    outputs, targets = random_scene(ODD, slots=16)
    with_negatives, without = (PanopticLoss(ODD, negatives=negatives)(outputs, targets) for negatives in (True, False))
    assert (with_negatives.pq_style_class > without.pq_style_class).numpy().all()
    for name in ("pq_style_dice", "mask_id", "instance_discrimination", "semantic", "matched_dice"):
        np.testing.assert_array_equal(getattr(with_negatives, name), getattr(without, name), err_msg=name)


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="pq_style 'quotient' must be one of product, sum"):
        PanopticLoss(ODD, pq_style="quotient")


def nearly_perfect(margin: float, slots: int = 128):
    """float32 logits [1, pixels, slots] whose right slot leads by `margin`, and int32 [1, pixels], the right slots."""
    rng = np.random.default_rng(0)
    slot = rng.integers(0, slots, 900)
    logits = rng.normal(0, 0.3, (len(slot), slots))
    logits[np.arange(len(slot)), slot] = logits.max(axis=1) + margin
    return tf.constant(logits[np.newaxis], tf.float32), tf.constant(slot[np.newaxis], tf.int32)


def test_means_do_not_depend_on_which_losses_are_rounded_to_0():
    """The better the prediction, the smaller the loss and its gradient, also where float32 rounds losses to 0."""
    sizes = {True: [], False: []}
    for margin in np.arange(18.0, 24.1, 0.25):
        logits, slot = nearly_perfect(margin)
        for zeros_count, found in sizes.items():
            with tf.GradientTape() as tape:
                tape.watch(logits)
                cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=slot, logits=logits)
                (loss,) = mean_of_counted(cross_entropy, tf.ones_like(cross_entropy), zeros_count)
            found.append((float(loss), float(tf.norm(tape.gradient(loss, logits)))))
    (losses, gradients), (_, reference_gradients) = (np.array(sizes[rule]).T for rule in (True, False))
    assert losses[0] > 0 and losses[-1] == 0 and (np.diff(losses) <= 0).all() and (np.diff(gradients) < 0).all()
    # By the reference's rule, the last pixels that are not 0 carry the gradient of all.
    assert reference_gradients.max() > 5 * reference_gradients[0]


@pytest.mark.parametrize("term", ["mask_id", "pq_style_class", "semantic", "instance_discrimination"])
def test_every_mean_counts_zeros_unless_told_otherwise(term):
    """One wrong entry among perfect ones: its loss is divided by all entries, but the reference counts it alone."""
    _, targets = random_scene(COCO)
    outputs = perfect_outputs(COCO, targets)
    bad = {
        "mask_id": ("mask_logits", 0.0),
        "pq_style_class": ("class_logits", 0.0),
        "semantic": ("semantic_logits", 0.0),
        "instance_discrimination": ("pixel_feature", 1.0),
    }
    name, value = bad[term]
    output = getattr(outputs, name).numpy()
    labeled = np.argwhere(targets.thing_id_mask.numpy()[0, ::4, ::4] >= 0)[0]
    output[(0, *labeled) if output.ndim == 4 else (0, 0)] = value
    outputs = outputs._replace(**{name: tf.math.l2_normalize(output, axis=-1) if value else tf.constant(output)})
    # A low temperature makes the losses of other pixels exactly 0.
    by_all, by_reference = (
        getattr(PanopticLoss(COCO, temperature=0.01, zeros_count=rule)(outputs, targets), term).numpy()[0]
        for rule in (True, False)
    )
    assert 0 < 4 * by_all < by_reference
