"""Segments that are counted on the network's map, against NumPy on the map of the image's size."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from maxdl_tf.data import transforms
from maxdl_tf.inference.segmenter import segment_table
from maxdl_tf.models.postprocess import SlotMap

LABEL = [3000, 1002, 3000, 1004, 2000, 2000, 1007]  # Slots 0 and 2 are one stuff segment, 4 and 5 another.
VOID = 255000
NUM_SEGMENTS, NUM_SLOTS = len(LABEL), len(LABEL) - 1


def _slot_map(seed, size=(20, 31)):
    """Without slot 3; with a single pixel of segment 6, a further part of slot 1."""
    generator = np.random.default_rng(seed)
    slot = generator.choice([-1, 0, 1, 2, 4, 5], [-(-side // 4) for side in size])
    slot = np.kron(slot, np.ones((4, 4), int))[: size[0], : size[1]]
    segment = slot.copy()
    slot[7, 11], segment[7, 11] = 1, 6
    confidence = generator.uniform(0.2, 1.0, size).astype(np.float32)
    class_confidence = generator.uniform(0.5, 1.0, NUM_SLOTS).astype(np.float32)
    label = np.array(LABEL, np.int32)
    reason = np.where(slot >= 0, 0, generator.integers(1, 6, size))
    slot = np.where(slot >= 0, slot, generator.integers(0, NUM_SLOTS, size))  # Void pixels are won by some slot, too.
    return SlotMap(
        slot=tf.constant(slot, tf.int32),
        void_reason=tf.constant(reason, tf.int32),
        confidence=tf.constant(confidence),
        segment=tf.constant(segment, tf.int32),
        label=tf.constant(label),
        class_id=tf.constant(label // 1000),
        class_confidence=tf.constant(class_confidence),
    )


def _segments(slot_map, image_size):
    """{label: (class, score, area, box)}, from maps of the image's size, as COCO defines them."""
    slot, segment = slot_map.slot.numpy(), slot_map.segment.numpy()
    label, class_confidence = slot_map.label.numpy(), slot_map.class_confidence.numpy()
    maps = (
        np.where(slot_map.void_reason == 0, label[segment], VOID),
        slot_map.confidence,
        class_confidence[slot],
    )
    panoptic, confidence, in_class = (transforms.resize_labels(m, list(image_size)).numpy() for m in maps)
    found = {}
    for value in set(np.unique(panoptic).tolist()) - {VOID}:
        mask = panoptic == value
        (rows, columns) = ndimage.find_objects(mask.astype(int))[0]
        box = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        score = confidence[mask].astype(np.float64).mean() * in_class[mask].astype(np.float64).mean()
        found[value] = (value // 1000, score, int(mask.sum()), box)
    return found


@pytest.mark.parametrize("image_size", [(20, 31), (61, 93), (9, 14), (1, 1), (200, 7), (3, 500)])
def test_class_score_area_and_box_of_each_segment(image_size):
    """Also where the image is smaller than the map, so that segments vanish."""
    for seed in range(3):
        slot_map = _slot_map(seed)
        wanted = _segments(slot_map, image_size)
        table = segment_table(slot_map, tf.constant(image_size))
        count = int(table.count)
        assert table.ids.numpy()[:count].tolist() == sorted(wanted)
        for row, value in enumerate(sorted(wanted)):
            class_id, score, area, box = wanted[value]
            assert (table.class_ids[row], table.areas[row], tuple(table.boxes[row].numpy())) == (class_id, area, box)
            assert float(table.scores[row]) == pytest.approx(score, rel=1e-6)
        for field in table[1:]:
            assert field.shape[0] == NUM_SEGMENTS and not field.numpy()[count:].any()


def test_nothing_but_void_has_no_segments():
    slot_map = _slot_map(0)
    table = segment_table(slot_map._replace(void_reason=tf.fill([20, 31], 1)), tf.constant([40, 62]))
    assert not any(field.numpy().any() for field in table)
