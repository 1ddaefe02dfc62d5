"""Panoptic batches: complete, repeatable, equal to eager processing, shared among workers without gaps."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.data import examples, panoptic, transforms
from maxdl_tf.data.copy_paste import CopyPaste
from maxdl_tf.data.targets import panoptic_targets
from maxdl_tf.data.transforms import Augmentation
from maxdl_tf.errors import UserError

INFO = DatasetInfo("test", tuple(SegmentClass(i, f"class {i}", i < 3, (0, 0, 0), i) for i in (1, 2, 3, 4)))
CROP = (33, 49)
NUM_IMAGES = 12
PLAIN = Augmentation(min_scale=1, max_scale=1, flip=False)


def _record(index: int, label: np.ndarray | None = None) -> bytes:
    random = np.random.default_rng(index)
    height, width = random.integers(20, 60, 2) if label is None else label.shape
    if label is None:
        label = random.choice([0, 256, 257, 258, 513, 3 * 256, 4 * 256], [height, width])
    file = io.BytesIO()
    Image.fromarray(random.integers(0, 256, [height, width, 3], dtype=np.uint8)).save(file, format="PNG")
    return examples.encode_panoptic_example(file.getvalue(), "png", label, f"image_{index}")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(3):
        with tf.io.TFRecordWriter(str(folder / f"train-{shard:05d}-of-00003.tfrecord")) as writer:
            for index in range(shard, NUM_IMAGES, 3):
                writer.write(_record(index))
    return str(folder / "train-*.tfrecord")


def _train_batches(shards, **options):
    return panoptic.train_batches(shards, INFO, **{"crop_size": CROP, "batch_size": 2, "max_things": 8, **options})


def _take(dataset, count):
    return list(dataset.take(count).as_numpy_iterator())


def _assert_equal(one, other):
    tf.nest.map_structure(np.testing.assert_array_equal, one, other)


def _differ(one, other) -> bool:
    return any(not np.array_equal(a, b) for a, b in zip(tf.nest.flatten(one), tf.nest.flatten(other)))


def test_shapes_and_types_are_known_before_any_batch(shards):
    spec = _train_batches(shards).element_spec
    assert spec.images == tf.TensorSpec([2, 33, 49, 3], tf.float32)
    assert spec.targets.semantic == tf.TensorSpec([2, 33, 49], tf.int32)
    assert spec.targets.semantic_weight == tf.TensorSpec([2, 33, 49], tf.float32)
    assert spec.targets.thing_id_mask == tf.TensorSpec([2, 33, 49], tf.int32)
    assert spec.targets.thing_id_class == tf.TensorSpec([2, 8], tf.int32)


@pytest.mark.parametrize("cache", [False, True])
def test_a_seeded_run_repeats(shards, cache):
    first = _take(_train_batches(shards, seed=3, cache=cache), 15)
    _assert_equal(first, _take(_train_batches(shards, seed=3, cache=cache), 15))


def test_runs_with_other_seeds_or_none_differ(shards):
    runs = [_take(_train_batches(shards, seed=seed), 3) for seed in (3, 4, None, None)]
    assert all(_differ(one, other) for number, one in enumerate(runs) for other in runs[:number])


def test_every_epoch_has_every_image_once_with_new_crops(shards):
    batches = _take(_train_batches(shards, seed=0), 3 * NUM_IMAGES // 2)
    ids = [image_id for batch in batches for image_id in batch.image_ids]
    epochs = [ids[start : start + NUM_IMAGES] for start in range(0, len(ids), NUM_IMAGES)]
    assert all(len(set(epoch)) == NUM_IMAGES for epoch in epochs)
    assert epochs[0] != epochs[1]
    crops = [image for batch in batches for image, image_id in zip(batch.images, batch.image_ids) if image_id == ids[0]]
    assert len(crops) == 3 and not np.array_equal(crops[0], crops[1])


def test_tf_data_equals_eager_processing(shards):
    options = {"augmentation": Augmentation(color=True), "small_instance_weight": 3.0, "small_instance_area": 100}
    record_of = {f"image_{index}".encode(): _record(index) for index in range(NUM_IMAGES)}
    batches = _take(_train_batches(shards, seed=11, **options), 4)
    for number, batch in enumerate(batches):
        for slot, image_id in enumerate(batch.image_ids):
            eager = panoptic.train_example(
                tf.constant(record_of[image_id]),
                INFO,
                crop_size=CROP,
                seed=tf.constant([11, 2 * number + slot], tf.int64),
                max_things=8,
                **options,
            )
            _assert_equal(tf.nest.map_structure(lambda x, slot=slot: x[slot], batch), eager)


PASTING = Augmentation(copy_paste=CopyPaste(stuff="all", void="all"))


@pytest.fixture(scope="module")
def paintings(tmp_path_factory) -> str:
    """Images of one color, 10 * number, which are stuff class 3 or 4 everywhere."""
    folder = tmp_path_factory.mktemp("paintings")
    for shard in range(3):
        with tf.io.TFRecordWriter(str(folder / f"{shard}.tfrecord")) as writer:
            for number in range(shard, NUM_IMAGES, 3):
                writer.write(_painting(number))
    return str(folder / "*.tfrecord")


def _painting(number: int) -> bytes:
    image = np.full([*CROP, 3], 10 * number, np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    label = np.full(CROP, (3 + number % 2) * 256)
    return examples.encode_panoptic_example(file.getvalue(), "png", label, f"image_{number}")


def test_image_and_targets_are_pasted_together(paintings):
    shown = set()
    for batch in _take(_train_batches(paintings, seed=0, augmentation=PASTING), 6):
        for image, semantic, image_id in zip(batch.images, batch.targets.semantic, batch.image_ids):
            number = np.round(image[..., 0] / 10).astype(int)
            expected = np.where(image[..., 0] == 127.5, 0, 3 + number % 2)
            np.testing.assert_array_equal(semantic, expected)
            shown |= {(int(image_id.split(b"_")[1]), other) for other in number[expected > 0]}
    assert len({below for below, _ in shown}) == NUM_IMAGES  # An epoch of images,
    assert len({other for below, other in shown if other != below}) >= NUM_IMAGES - 1  # and one of pasted images.


def test_pasting_does_not_change_the_crop_below(paintings):
    nothing = Augmentation(copy_paste=CopyPaste("none", "none", "none"))
    for one, other in zip(
        _take(_train_batches(paintings, seed=5, augmentation=nothing), 3), _take(_train_batches(paintings, seed=5), 3)
    ):
        _assert_equal(one, other)


def test_instances_beyond_half_of_the_divisor_are_named(tmp_path):
    path = str(tmp_path / "a.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        writer.write(_record(0, np.full([20, 20], 256 + 127)))
        writer.write(_record(1, np.full([20, 20], 256 + 128)))
    _take(_train_batches(path, batch_size=1, seed=0), 4)
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match=r"image_1.*has instance.*128.*up to 127, half of label_divisor; use maxdl-convert",
    ):
        _take(_train_batches(path, batch_size=1, seed=0, augmentation=PASTING), 4)


def test_few_images_fill_large_batches(shards):
    (batch,) = _take(_train_batches(shards, batch_size=30, seed=0), 1)
    assert set(Counter(batch.image_ids).values()) == {2, 3}


@pytest.mark.parametrize("shares", [(8, 4), (3, 3, 2, 2, 2)], ids=["of files", "of examples"])
def test_workers_share_the_images_without_gaps_or_repeats(shards, shares):
    ids = []
    for shard_index, share in enumerate(shares):
        dataset = _train_batches(
            shards, batch_size=share, seed=0, shard_count=len(shares), shard_index=shard_index, augmentation=PLAIN
        )
        ids += list(_take(dataset, 1)[0].image_ids)
    assert sorted(ids) == sorted(f"image_{index}".encode() for index in range(NUM_IMAGES))


def test_evaluation_sees_every_image_once_and_whole(shards):
    batches = list(panoptic.evaluation_batches(shards, INFO, crop_size=CROP, batch_size=5).as_numpy_iterator())
    assert [len(batch.images) for batch in batches] == [5, 5, 2]
    seen = []
    for batch in batches:
        for number, (image, resized, raw, label_map, image_id) in enumerate(zip(*batch[:5])):
            seen.append(image_id)
            # Targets are those of the resized label map; padding is void.
            crop = transforms.pad_labels(
                transforms.resize_labels(label_map[: raw[0], : raw[1]], resized), CROP, INFO.void
            )
            for got, want in zip(batch.targets, panoptic_targets(crop, INFO)):
                np.testing.assert_array_equal(got[number], want)
            truth = panoptic.parse_example(tf.constant(_record(int(image_id.split(b"_")[1]))))
            np.testing.assert_array_equal(raw, truth.label.shape)
            np.testing.assert_array_equal(label_map[: raw[0], : raw[1]], truth.label)
            assert np.all(label_map[raw[0] :] == 0) and np.all(label_map[:, raw[1] :] == 0)
            assert np.all(image[resized[0] :] == 127.5) and np.all(image[:, resized[1] :] == 127.5)
            assert max(resized / CROP) > 0.96
    assert len(set(seen)) == NUM_IMAGES
    first = panoptic.evaluation_batches(shards, INFO, crop_size=CROP, batch_size=5, max_images=7)
    assert [image_id for batch in first.as_numpy_iterator() for image_id in batch.image_ids] == seen[:7]


def test_an_ignore_label_other_than_zero_pads_label_maps(tmp_path):
    info = DatasetInfo("test", (SegmentClass(1, "thing", True, (0, 0, 0), 1),), ignore_label=9)
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        writer.write(_record(0, np.full([20, 30], 257)))
        writer.write(_record(1, np.full([30, 20], 257)))
    (batch,) = panoptic.evaluation_batches(str(tmp_path / "a.tfrecord"), info, crop_size=(33, 33), batch_size=2)
    np.testing.assert_array_equal(batch.label_maps[0, 20:], np.full([10, 30], 9 * 256))
    dataset = panoptic.train_batches(str(tmp_path / "*"), info, crop_size=(33, 33), batch_size=2, augmentation=PLAIN)
    (train,) = dataset.take(1)
    padding = tf.reduce_all(train.images == 127.5, axis=-1)
    assert set(train.targets.semantic[padding].numpy()) == {9}


def test_targets_belong_to_the_crop(tmp_path):
    label = np.array([[256, 257], [0, 3 * 256]]).repeat(9, axis=0).repeat(17, axis=1)[:17, :33]
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        writer.write(_record(0, label))
    dataset = panoptic.train_batches(
        str(tmp_path / "*"), INFO, crop_size=(17, 33), batch_size=1, augmentation=PLAIN, max_things=8
    )
    (batch,) = _take(dataset, 1)
    _assert_equal(batch.targets, panoptic_targets(tf.constant(label[np.newaxis], tf.int32), INFO, max_things=8))


def test_a_pattern_without_files_is_an_error_that_names_it(tmp_path, shards):
    missing = str(tmp_path / "val-*.tfrecord")
    for patterns in (missing, [shards, missing]):
        with pytest.raises(UserError, match=r"val-.*matches no file"):
            _train_batches(patterns)
        with pytest.raises(UserError, match=r"val-.*matches no file"):
            panoptic.evaluation_batches(patterns, INFO, crop_size=CROP, batch_size=1)


def test_a_class_that_the_table_lacks_is_named_with_the_image(tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        writer.write(_record(0, np.array([[256, 0], [9 * 256, 256]])))
    dataset = _train_batches(str(tmp_path / "a.tfrecord"), batch_size=1)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"image_0.*class table of test lacks"):
        _take(dataset, 1)


def test_segments_are_counted_without_void_and_crowds(tmp_path):
    path = str(tmp_path / "train.tfrecord")
    thing, stuff = (next(iter(ids)) for ids in (INFO.thing_ids, INFO.stuff_ids))
    labels = [[0, thing * 256], [thing * 256 + 1, thing * 256 + 2, stuff * 256, 0, thing * 256], [stuff * 256]]
    with tf.io.TFRecordWriter(path) as writer:
        for index, values in enumerate(labels):
            writer.write(_record(index, np.repeat(np.array([values], np.int32), 4, axis=0)))
    assert panoptic.most_segments(path, INFO, 100) == (3, "image_1")
    assert panoptic.most_segments(path, INFO, 1) == (0, "")
