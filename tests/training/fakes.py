"""A network of three layers and images with rectangles: trains in seconds what the real ones train in hours."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.keras_api import keras
from maxdl_tf.structs import PanopticOutputs, PanopticTargets

SIZE = 33
SLOTS = 6
DATASET_INFO = DatasetInfo(
    "rectangles",
    (
        SegmentClass(1, "box", True, (255, 0, 0), 1),
        SegmentClass(2, "floor", False, (0, 255, 0), 2),
        SegmentClass(3, "wall", False, (0, 0, 255), 3),
    ),
)


class FakeTrainBatch(NamedTuple):
    images: tf.Tensor
    targets: PanopticTargets
    image_ids: tf.Tensor


class FakeEvaluationBatch(NamedTuple):
    images: tf.Tensor
    resized_size: tf.Tensor
    raw_size: tf.Tensor
    label_maps: tf.Tensor
    image_ids: tf.Tensor


class FakeModel(keras.Model):
    """The outputs of a MaX-DeepLab without its inside."""

    output_stride = semantic_stride = 4
    num_auxiliary_outputs = 0

    def __init__(self, width: int = 16, slots: int = SLOTS):
        super().__init__()
        self.slots = slots
        self.stem = keras.layers.Conv2D(width, 7, strides=4, padding="same")
        self.norm = keras.layers.BatchNormalization(synchronized=True)
        self.masks = keras.layers.Conv2D(slots, 3, padding="same")
        self.classes = keras.layers.Dense(slots * (len(DATASET_INFO.classes) + 1))
        self.semantic = keras.layers.Conv2D(DATASET_INFO.num_semantic_channels, 1)
        self(tf.zeros([1, SIZE, SIZE, 3]))

    def call(self, images, training=False):
        x = tf.nn.relu(self.norm(self.stem(images / 127.5 - 1.0), training=training))
        return PanopticOutputs(
            pixel_feature=tf.math.l2_normalize(x, axis=-1),
            mask_logits=self.masks(x),
            class_logits=tf.reshape(self.classes(tf.reduce_mean(x, axis=(1, 2))), [-1, self.slots, 4]),
            semantic_logits=self.semantic(x),
        )

    @property
    def backbone_variables(self):
        return [*self.stem.trainable_variables, *self.norm.trainable_variables]


def label_map(seed: int, size: int = SIZE) -> np.ndarray:
    """int32 [size, size]: wall above floor, two boxes in front."""
    random = np.random.default_rng(seed)
    labels = np.full((size, size), 3 * 256, np.int32)
    labels[size // 2 :] = 2 * 256
    for instance in (1, 2):
        top, left = random.integers(0, size - 12, 2)
        labels[top : top + 12, left : left + 12] = 256 + instance
    return labels


def picture(labels: np.ndarray) -> np.ndarray:
    """float32 [h, w, 3], each class in its color."""
    colors = np.zeros((4, 3), np.float32)
    for row in DATASET_INFO.classes:
        colors[row.id] = row.color
    return colors[labels // 256]


def train_batch(seeds) -> FakeTrainBatch:
    labels = np.stack([label_map(seed) for seed in seeds])
    instance = labels % 256
    targets = PanopticTargets(
        semantic=labels // 256,
        semantic_weight=np.ones(labels.shape, np.float32),
        thing_id_mask=np.where(instance > 0, instance - 1, -1).astype(np.int32),
        thing_id_class=np.stack([[1 if i in m else -1 for i in (1, 2, 3)] for m in instance]).astype(np.int32),
    )
    return FakeTrainBatch(np.stack([picture(m) for m in labels]), targets, np.array([f"image{seed}" for seed in seeds]))


def train_batches(batch_size: int, count: int = 4) -> tf.data.Dataset:
    """`count` different batches, again and again, in one order."""
    batches = [train_batch(range(i * batch_size, (i + 1) * batch_size)) for i in range(count)]
    stacked = tf.nest.map_structure(lambda *parts: np.stack(parts), *batches)
    return tf.data.Dataset.from_tensor_slices(stacked).repeat()


def evaluation_batches(raw_sizes, batch_size: int) -> tf.data.Dataset:
    """Images that fill the crop's upper left (width: two thirds), with label maps of these raw sizes."""
    most = np.max(raw_sizes, axis=0)
    examples = []
    for seed, (height, width) in enumerate(raw_sizes):
        labels = label_map(seed, SIZE)[:, : SIZE * 2 // 3]
        crop = np.full((SIZE, SIZE, 3), 127.5, np.float32)
        crop[:, : labels.shape[1]] = picture(labels)
        raw = np.zeros(most, np.int32)
        rows = np.minimum(np.arange(height) * SIZE // height, SIZE - 1)
        columns = np.minimum(np.arange(width) * labels.shape[1] // width, labels.shape[1] - 1)
        raw[:height, :width] = labels[np.ix_(rows, columns)]
        examples.append(
            FakeEvaluationBatch(
                crop, np.array(labels.shape, np.int32), np.array([height, width], np.int32), raw, np.array(str(seed))
            )
        )
    stacked = tf.nest.map_structure(lambda *parts: np.stack(parts), *examples)
    return tf.data.Dataset.from_tensor_slices(stacked).batch(batch_size)
