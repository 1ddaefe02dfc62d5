"""Small scenes and predictions for the loss tests."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.structs import PanopticOutputs, PanopticTargets
from tests.helpers import Golden

GOLDEN_OUTPUTS = (
    "pixel_space_normalized_feature",
    "pixel_space_mask_logits",
    "transformer_class_logits",
    "semantic_logits",
)


def class_table(things, stuff, ignore_label=0) -> DatasetInfo:
    rows = [SegmentClass(i, f"class {i}", i in things, (i % 256, 0, 0), i) for i in (*things, *stuff)]
    return DatasetInfo("test", tuple(rows), ignore_label=ignore_label)


COCO = class_table(range(1, 81), range(81, 134))
# Ids with holes, stuff before things, and an ignore label above all ids.
ODD = class_table(things=(9, 4, 7), stuff=(2, 11), ignore_label=13)


def golden_targets(golden: Golden) -> PanopticTargets:
    return PanopticTargets(
        semantic=tf.constant(golden["label/semantic_gt"]),
        semantic_weight=tf.constant(golden["label/semantic_loss_weight"]),
        thing_id_mask=tf.constant(golden["label/thing_id_mask_gt"]),
        thing_id_class=tf.constant(golden["label/thing_id_class_gt"].astype(np.int32)),
    )


def random_scene(
    dataset_info: DatasetInfo, seed=0, batch=2, size=(33, 49), slots=8, channels=6, max_things=12
) -> tuple[PanopticOutputs, PanopticTargets]:
    """Blocks of four things, two of each stuff class, one crowd and void, with random predictions."""
    rng = np.random.default_rng(seed)
    height, width = size
    thing_ids, stuff_ids = np.array(dataset_info.thing_ids), np.array(dataset_info.stuff_ids)
    segment_class = np.concatenate(
        [rng.choice(thing_ids, 4), np.repeat(stuff_ids[:2], 2), thing_ids[:1], [dataset_info.ignore_label]]
    )
    blocks = rng.integers(0, len(segment_class), [batch, height // 8 + 1, width // 8 + 1])
    segment = blocks.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    thing_id_class = np.full([batch, max_things], -1, np.int32)
    thing_id_class[:, :4] = segment_class[:4]
    targets = PanopticTargets(
        semantic=tf.constant(segment_class[segment], tf.int32),
        semantic_weight=tf.constant(rng.choice([1.0, 3.0], [batch, height, width]), tf.float32),
        thing_id_mask=tf.constant(np.where(segment < 4, segment, -1), tf.int32),
        thing_id_class=tf.constant(thing_id_class),
    )

    def normal(*shape):
        return tf.constant(rng.normal(size=shape), tf.float32)

    rows, columns = height // 4 + 1, width // 4 + 1
    outputs = PanopticOutputs(
        pixel_feature=tf.math.l2_normalize(normal(batch, rows, columns, channels), axis=-1),
        mask_logits=normal(batch, rows, columns, slots),
        class_logits=normal(batch, slots, len(dataset_info.classes) + 1),
        semantic_logits=normal(batch, rows, columns, dataset_info.num_semantic_channels),
        mask_embedding=normal(batch, slots, channels),
    )
    return outputs, targets


def perfect_outputs(dataset_info: DatasetInfo, targets: PanopticTargets, slots=12) -> PanopticOutputs:
    """Outputs of a perfect model: thing i in slot i, the j-th stuff class in slot 4 + j."""
    semantic, thing_id = (label.numpy()[:, ::4, ::4] for label in (targets.semantic, targets.thing_id_mask))
    order = list(dataset_info.class_order)
    first_stuff = int((targets.thing_id_class.numpy() >= 0).sum(axis=1).max())
    slot = thing_id.copy()
    class_of_slot = np.full([len(semantic), slots], len(order))
    for image, thing_class in enumerate(targets.thing_id_class.numpy()):
        for i, class_id in enumerate(thing_class):
            if class_id >= 0 and (thing_id[image] == i).any():
                class_of_slot[image, i] = order.index(class_id)
        for j, class_id in enumerate(dataset_info.stuff_ids):
            if (semantic[image] == class_id).any():
                slot[image][semantic[image] == class_id] = first_stuff + j
                class_of_slot[image, first_stuff + j] = order.index(class_id)
    slot[slot < 0] = slots - 1  # Void and crowd share the last slot.
    return PanopticOutputs(
        pixel_feature=tf.one_hot(slot, slots),
        mask_logits=tf.one_hot(slot, slots, 40.0),
        class_logits=tf.one_hot(class_of_slot, len(order) + 1, 40.0),
        semantic_logits=tf.one_hot(semantic, dataset_info.num_semantic_channels, 40.0),
    )


def loss_and_gradients(loss, outputs: PanopticOutputs, targets: PanopticTargets, of="total"):
    """The losses, and the gradients of the batch mean of field `of` as PanopticOutputs."""
    given = {name: output for name, output in outputs._asdict().items() if output is not None}
    with tf.GradientTape() as tape:
        tape.watch(given)
        losses = loss(outputs, targets)
        value = tf.reduce_mean(getattr(losses, of))
    gradients = tape.gradient(value, given, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return losses, outputs._replace(**gradients)
