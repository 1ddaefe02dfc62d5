"""Streams skip damaged records, keep all others in every way of reading, and report what they skip."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.data import record_streams, records
from maxdl_tf.data.shards import find_shards
from maxdl_tf.errors import UserError
from maxdl_tf.protos import dataset_pb2, experiment_pb2
from maxdl_tf.tasks import checks
from tests.data import damaged_files
from tests.data.data_servers import data_servers

NUM_RECORDS = 20
LOST = {1, 3, 8, 19}


def _write(path, numbers) -> None:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number in numbers:
            writer.write(f"{number}".encode().rjust(60 + number))


@pytest.fixture
def shards(tmp_path) -> str:
    """Five files of four records, of which the records LOST are damaged."""
    for shard in range(5):
        _write(tmp_path / f"{shard}.tfrecord", range(4 * shard, 4 * shard + 4))
    damaged_files.flip_data(tmp_path / "0.tfrecord", 1)
    damaged_files.cut_off(tmp_path / "0.tfrecord")
    damaged_files.flip_length(tmp_path / "2.tfrecord", 0)
    damaged_files.flip_data(tmp_path / "4.tfrecord", 3)
    return str(tmp_path / "*.tfrecord")


def _number(record, seed=None):
    del seed
    return tf.strings.to_number(tf.strings.strip(record), tf.int32)


def _endless(shards, count, **options) -> list[int]:
    dataset = record_streams.endless_batches(shards, _number, batch_size=1, skip_damaged=True, **options)
    return [int(batch[0]) for batch in dataset.take(count).as_numpy_iterator()]


def test_in_order_all_intact_records_come_once(shards, capfd):
    dataset = record_streams.examples_in_order(shards, _number, skip_damaged=True)
    assert list(dataset.as_numpy_iterator()) == [number for number in range(NUM_RECORDS) if number not in LOST]
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("skipping 4 damaged records")
    for file, record in (("0", 1), ("0", 3), ("2", 0), ("4", 3)):
        assert sum(f"/{file}.tfrecord: record {record} at byte" in line for line in lines) == 1


def test_every_epoch_has_all_intact_records_and_a_seeded_run_repeats(shards):
    run = _endless(shards, 3 * 16, seed=5)
    for epoch in (run[:16], run[16:32], run[32:]):
        assert sorted(epoch) == [number for number in range(NUM_RECORDS) if number not in LOST]
    assert run[:16] != run[16:32]
    assert run == _endless(shards, 3 * 16, seed=5) != _endless(shards, 3 * 16, seed=6)


@pytest.mark.parametrize("workers", [2, 7], ids=["of files", "of records"])
def test_workers_share_the_intact_records(shards, workers):
    seen = []
    for worker in range(workers):
        seen += set(_endless(shards, 40, seed=0, shard_count=workers, shard_index=worker))
    assert sorted(seen) == [number for number in range(NUM_RECORDS) if number not in LOST]


def test_intact_files_give_the_same_run_with_either_policy(tmp_path):
    for shard in range(3):
        _write(tmp_path / f"{shard}.tfrecord", range(4 * shard, 4 * shard + 4))
    files = str(tmp_path / "*.tfrecord")
    strict = record_streams.endless_batches(files, _number, batch_size=1, seed=7)
    assert _endless(files, 30, seed=7) == [int(batch[0]) for batch in strict.take(30).as_numpy_iterator()]


def _pairs(shards, count, **options) -> tuple[list[int], list[int]]:
    """The numbers of both streams."""
    dataset = record_streams.endless_batches(
        shards, lambda one, seed, other: (_number(one), _number(other)), batch_size=1, pairs=True, **options
    )
    both = [(int(one[0]), int(other[0])) for one, other in dataset.take(count).as_numpy_iterator()]
    return [one for one, _ in both], [other for _, other in both]


@pytest.mark.parametrize("cache", [False, True])
def test_pairs_come_from_two_streams_with_orders_of_their_own(shards, capfd, cache):
    options = {"seed": 5, "skip_damaged": True, "cache": cache}
    first, second = _pairs(shards, 2 * 16, **options)
    for stream in (first, second):
        for epoch in (stream[:16], stream[16:]):
            assert sorted(epoch) == [number for number in range(NUM_RECORDS) if number not in LOST]
    assert first[:16] != second[:16] and first[16:] != second[16:]
    assert (first, second) == _pairs(shards, 2 * 16, **options)
    assert capfd.readouterr().err.count("skipping 4 damaged records") == 2  # Once for each run.
    assert first == _endless(shards, 2 * 16, seed=5, cache=cache)


@pytest.mark.parametrize("workers", [2, 7], ids=["of files", "of records"])
def test_workers_share_the_second_stream_as_the_first(shards, workers):
    for worker in range(workers):
        options = {"seed": 0, "shard_count": workers, "shard_index": worker, "skip_damaged": True}
        first, second = _pairs(shards, 40, **options)
        assert set(first) == set(second)


def test_the_graph_contains_no_python(shards):
    """A dataset with a py_function cannot run on another host."""
    dataset = record_streams.endless_batches(shards, _number, batch_size=1, seed=0, skip_damaged=True)
    graph = tf.compat.v1.GraphDef.FromString(dataset._as_serialized_graph().numpy())
    operations = {node.op for node in graph.node}
    operations |= {node.op for function in graph.library.function for node in function.node_def}
    assert "TFRecordDatasetV2" in operations or "TFRecordDataset" in operations
    assert not {name for name in operations if "PyFunc" in name}


def _parse_all(files, parse=lambda record: None, **options):
    dataset = record_streams.examples_in_order(files, _number, **options)
    with record_streams.naming_bad_records(lambda: find_shards(files), parse):
        return list(dataset.as_numpy_iterator())


def test_by_default_the_first_damaged_record_stops_the_run_and_is_named(shards):
    with pytest.raises(
        UserError, match=r"/0\.tfrecord: record 1 at byte \d+: the data .*3 more are damaged.*on_damaged_record: SKIP"
    ):
        _parse_all(shards)


@pytest.mark.parametrize("skip_damaged", [False, True])
def test_an_unusable_record_is_named(tmp_path, skip_damaged):
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        for text in (b"1", b"2", b"three"):
            writer.write(text)

    def parse(record):
        tf.debugging.assert_equal(tf.strings.regex_full_match(record, "[0-9]+"), True, message="not a number")

    with pytest.raises(UserError, match=r"a\.tfrecord: record 2 at byte 34: not a number.*maxdl-check-data"):
        _parse_all(str(tmp_path / "*"), parse, skip_damaged=skip_damaged)


def test_other_errors_pass_unchanged(shards):
    def check(error):
        with record_streams.naming_bad_records(lambda: [], lambda record: None):
            raise error

    for kind in (tf.errors.DataLossError, tf.errors.InvalidArgumentError):
        with pytest.raises(kind, match="a checkpoint"):
            check(kind(None, None, "a checkpoint of the Iterator"))


def test_an_empty_file_is_refused_or_named(tmp_path, capfd):
    _write(tmp_path / "a.tfrecord", range(3))
    (tmp_path / "b.tfrecord").write_bytes(b"")
    with pytest.raises(UserError, match=r"b\.tfrecord: record 0 at byte 0: the file is empty.*SKIP"):
        record_streams.examples_in_order(str(tmp_path / "*"), _number)
    dataset = record_streams.examples_in_order(str(tmp_path / "*"), _number, skip_damaged=True)
    assert len(list(dataset)) == 3
    assert "b.tfrecord: record 0 at byte 0: the file is empty" in capfd.readouterr().err
    (tmp_path / "a.tfrecord").unlink()
    with pytest.raises(UserError, match="none of 1 files has an intact record"):
        record_streams.examples_in_order(str(tmp_path / "*"), _number, skip_damaged=True)


@pytest.mark.parametrize("kept", [1, 7, 8, 11, 12, 13, 70])
def test_a_file_that_ends_within_a_record(tmp_path, capfd, kept):
    """TensorFlow takes a file that ends within the header of a record for a whole one."""
    path = tmp_path / "a.tfrecord"
    _write(path, range(3))
    start = damaged_files.frame_offsets(path)[2]
    path.write_bytes(path.read_bytes()[: start + kept])
    with pytest.raises(UserError, match=rf"a\.tfrecord: record 2 at byte {start}: cut off"):
        record_streams.examples_in_order(str(path), _number)
    dataset = record_streams.examples_in_order(str(path), _number, skip_damaged=True)
    assert list(dataset.as_numpy_iterator()) == [0, 1]
    assert f"record 2 at byte {start}: cut off" in capfd.readouterr().err


@pytest.mark.parametrize("length", [2**20, 2**60, 2**63, 2**64 - 16])
@pytest.mark.parametrize("skip_damaged", [False, True])
def test_a_length_beyond_the_file_never_reaches_tensorflow(tmp_path, length, skip_damaged):
    """The length has the right checksum. TensorFlow reserves that much memory, and the process ends."""
    _write(tmp_path / "a.tfrecord", range(2))
    header = struct.pack("<Q", length)
    frame = header + struct.pack("<I", records.masked_checksum(header)) + bytes(64)
    (tmp_path / "b.tfrecord").write_bytes(frame)
    if skip_damaged:
        dataset = record_streams.examples_in_order(str(tmp_path / "*"), _number, skip_damaged=True)
        assert list(dataset.as_numpy_iterator()) == [0, 1]
    else:
        for make in (record_streams.examples_in_order, record_streams.endless_batches):
            options = {"batch_size": 1} if make is record_streams.endless_batches else {}
            with pytest.raises(UserError, match=rf"b\.tfrecord: record 0 at byte 0: .*{length} bytes.*the file has 64"):
                make(str(tmp_path / "*"), _number, **options)


@pytest.mark.parametrize("skip_damaged", [False, True])
def test_a_part_of_a_set_is_refused(tmp_path, skip_damaged):
    for shard in (0, 2):
        _write(tmp_path / f"train-{shard:05d}-of-00003.tfrecord", range(3))
    files = str(tmp_path / "train-*.tfrecord")
    with pytest.raises(UserError, match="1 of 3 shards are missing"):
        record_streams.examples_in_order(files, _number, skip_damaged=skip_damaged)
    with pytest.raises(UserError, match="1 of 3 shards are missing"):
        record_streams.endless_batches(files, _number, batch_size=1, skip_damaged=skip_damaged)
    experiment = experiment_pb2.Experiment(eval_dataset=dataset_pb2.DatasetOptions(file_pattern=[files]))
    with pytest.raises(UserError, match="1 of 3 shards are missing"):
        checks.check_shards(experiment, "eval_dataset")


def _mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """The content with one to three changes: bytes that differ, are missing, repeated or added."""
    for _ in range(rng.integers(1, 4)):
        start, end = sorted(rng.integers(0, len(content) + 1, 2))
        end = min(end, start + rng.integers(1, 60))
        middle = [
            rng.bytes(end - start),
            b"",
            2 * content[start:end],
            content[start:end] + bytes(int(rng.integers(1, 30))),
            struct.pack("<Q", 1 << int(rng.integers(0, 64))),
        ][rng.integers(0, 5)]
        content = content[:start] + middle + content[end:]
    return content[: rng.integers(0, len(content) + 1)] if rng.random() < 0.3 else content


def test_mutated_files_give_their_intact_records_or_a_user_error(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "a.tfrecord"
    _write(path, range(8))
    whole, outcomes = path.read_bytes(), {"refused": 0, "whole": 0}
    for _ in range(60):
        path.write_bytes(_mutated(whole, rng))
        found = list(records.read_records(str(path)))
        intact = [int(entry.data) for entry in found if isinstance(entry, records.Record)]
        assert set(intact) <= set(range(8))
        try:
            skipping = record_streams.examples_in_order(str(path), _number, skip_damaged=True)
            assert list(skipping.as_numpy_iterator()) == intact
        except UserError as error:
            assert not intact and "has an intact record" in str(error)
        try:
            assert _parse_all(str(path)) == intact and len(intact) == len(found)
            outcomes["whole"] += 1
        except UserError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 40


def test_other_file_systems(capfd):
    for shard in range(2):
        _write(f"ram://damaged/{shard}.tfrecord", range(4 * shard, 4 * shard + 4))
    with tf.io.gfile.GFile("ram://damaged/1.tfrecord", "rb") as file:
        content = file.read()
    tf.io.gfile.remove("ram://damaged/1.tfrecord")
    with tf.io.gfile.GFile("ram://damaged/1.tfrecord", "wb") as file:
        file.write(content[:-5])
    dataset = record_streams.examples_in_order("ram://damaged/*.tfrecord", _number, skip_damaged=True)
    np.testing.assert_array_equal(list(dataset.as_numpy_iterator()), range(7))
    assert "ram://damaged/1.tfrecord: record 3" in capfd.readouterr().err


@pytest.mark.parametrize("pairs", [False, True])
def test_machines_of_tf_data_service_make_the_batches(tmp_path, pairs):
    for shard in range(6):
        _write(tmp_path / f"{shard}.tfrecord", range(4 * shard, 4 * shard + 4))
    servers = data_servers(2)

    def batches():
        service = record_streams.DataService(servers[0].target, "a run")
        return record_streams.endless_batches(
            str(tmp_path / "*"),
            lambda record, seed, *others: tf.stack([_number(each) for each in (record, *others)]),
            batch_size=4,
            pairs=pairs,
            service=service,
        )

    # Each of two trainers gets different batches; together they see all records repeatedly.
    trainers = [iter(batches()), iter(batches())]
    seen = np.concatenate([next(trainer).numpy() for _ in range(60) for trainer in trainers])  # [480, streams]
    for stream in seen.T:
        counts = np.bincount(stream, minlength=24)
        # About twenty times each: the two machines may stop in the middle of an epoch.
        assert len(counts) == 24 and counts.min() >= 10 and counts.sum() == 480
    assert len(set(map(tuple, seen))) > 24 or not pairs
