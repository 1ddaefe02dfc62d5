"""Checksums have known values; each kind of damage is found, and so are the records behind it."""

from __future__ import annotations

import pytest
import tensorflow as tf

from maxdl_tf.data import records
from maxdl_tf.data.records import Damage, Record, Run
from tests.data import damaged_files

DATA = [f"record {number} ".encode() * (5 + 40 * number) for number in range(6)]


@pytest.fixture
def path(tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        for data in DATA:
            writer.write(data)
    return tmp_path / "a.tfrecord"


def _read(path) -> list:
    """The data of intact records and the `Damage` of others, in order."""
    return [entry.data if isinstance(entry, Record) else entry for entry in records.read_records(str(path))]


@pytest.mark.parametrize(
    "data, checksum",  # RFC 3720, appendix B.4, and the check value of the CRC catalogs.
    [
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_checksums_are_masked_crc_32c(data, checksum):
    rotated = (records.masked_checksum(data) - 0xA282EAD8) % 2**32
    assert (rotated << 15 | rotated >> 17) % 2**32 == checksum


def test_an_intact_file(path):
    assert _read(path) == DATA
    assert records.scan(str(path)) == ([Run(str(path), 0, 6)], [])


def test_all_three_kinds_of_damage_in_one_file(path):
    offsets = damaged_files.frame_offsets(path)
    damaged_files.flip_data(path, 1)
    damaged_files.flip_length(path, 3)
    damaged_files.cut_off(path)
    got = _read(path)
    assert [got[0], got[2], got[4]] == [DATA[0], DATA[2], DATA[4]]
    assert [(entry.number, entry.offset) for entry in (got[1], got[3], got[5])] == [
        (number, offsets[number]) for number in (1, 3, 5)
    ]
    assert "data" in got[1].what and "length" in got[3].what and "cut off" in got[5].what
    runs, damages = records.scan(str(path))
    assert runs == [Run(str(path), offsets[number], 1) for number in (0, 2, 4)]
    assert str(damages[0]).startswith(f"{path}: record 1 at byte {offsets[1]}: the data")


@pytest.mark.parametrize("record", range(6))
@pytest.mark.parametrize("place", ["length", "checksum of the length", "data", "checksum of the data"])
def test_a_flipped_bit_damages_one_record_only(path, record, place):
    offsets = damaged_files.frame_offsets(path)
    shift = {"length": 0, "checksum of the length": 9, "data": 30}.get(place)
    damaged_files.flip_bit(path, offsets[record] + shift if shift is not None else offsets[record + 1] - 2)
    got = _read(path)
    assert isinstance(got[record], Damage) and got[record].offset == offsets[record]
    assert got[:record] + got[record + 1 :] == DATA[:record] + DATA[record + 1 :]


@pytest.mark.parametrize("missing", range(1, 40))
def test_a_shortened_file_has_a_cut_off_last_record(path, missing):
    damaged_files.cut_off(path, missing)
    *intact, last = _read(path)
    assert intact == DATA[:5] and last.number == 5 and "cut off" in last.what


def test_missing_bytes_damage_one_record_only(path):
    content, offset = path.read_bytes(), damaged_files.frame_offsets(path)[2]
    path.write_bytes(content[: offset + 50] + content[offset + 60 :])
    got = _read(path)
    assert isinstance(got[2], Damage) and got[:2] + got[3:] == DATA[:2] + DATA[3:]


def test_records_behind_a_cut_off_record_are_found(path):
    content = path.read_bytes()
    path.write_bytes(content[:-10] + content)
    got = _read(path)
    assert isinstance(got[5], Damage) and got[:5] + got[6:] == DATA[:5] + DATA


def test_the_search_continues_in_the_next_block(path, monkeypatch):
    monkeypatch.setattr(records, "_BLOCK", 16)
    damaged_files.flip_length(path, 4)
    got = _read(path)
    assert isinstance(got[4], Damage) and got[5] == DATA[5]


def test_the_search_passes_zeros_quickly(path):
    content, offset = path.read_bytes(), damaged_files.frame_offsets(path)[3]
    path.write_bytes(content[:offset] + bytes(8 << 20) + content[offset:])
    got = _read(path)
    assert isinstance(got[3], Damage) and got[:3] + got[4:] == DATA


@pytest.mark.parametrize(
    "content, what",
    [(b"", "empty"), (b"no records " * 50, "is it an uncompressed TFRecord file"), (b"short", "cut off")],
)
def test_other_files_are_reported_as_damaged(path, content, what):
    path.write_bytes(content)
    (damage,) = _read(path)
    assert (damage.number, damage.offset) == (0, 0) and what in damage.what


def test_other_file_systems():
    with tf.io.TFRecordWriter("ram://records/a.tfrecord") as writer:
        for data in DATA:
            writer.write(data)
    assert _read("ram://records/a.tfrecord") == DATA
