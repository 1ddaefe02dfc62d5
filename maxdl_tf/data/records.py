"""TFRecord files, record by record, including the damaged records.

A file is a sequence of frames: the length of the data (8 bytes), the checksum of the length (4), the data, and the
checksum of the data (4). Behind a damaged record, the reader searches for the next length that matches its checksum.

A file that was cut off exactly between two records looks like a shorter, intact file. TensorFlow is imported for
`scheme://` paths only.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import google_crc32c
import numpy as np

from maxdl_tf.files import storage

_HEADER, _FOOTER = 12, 4
_EMPTY = "the file is empty, perhaps because the disk was full"
_WRONG_LENGTH = "the length of the record does not match its checksum"
_BLOCK = 1 << 20  # Bytes per step of the search for a header.
_MASK_DELTA = 0xA282EAD8


class Record(NamedTuple):
    """An intact record.

    Attributes:
      number: Number of the record in the file, from 0; damaged records count.
      offset: Offset of the frame in bytes.
      data: Content of the record.
    """

    number: int
    offset: int
    data: bytes


class Damage(NamedTuple):
    """A damaged record; `str` gives its place and the fault.

    Attributes:
      path: Path of the file.
      number: Number of the record in the file, from 0; damaged records count.
      offset: Offset of the frame in bytes.
      what: Description of the fault.
    """

    path: str
    number: int
    offset: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}: record {self.number} at byte {self.offset}: {self.what}"


class Run(NamedTuple):
    """Consecutive intact records.

    Attributes:
      path: Path of the file.
      offset: Offset of the first frame in bytes.
      count: Number of records.
    """

    path: str
    offset: int
    count: int


def scan(path: str) -> tuple[list[Run], list[Damage]]:
    """Reads a whole file and checks each record.

    Returns:
      The intact records as runs, and the damaged records.

    Raises:
      OSError, tf.errors.OpError: The file cannot be read.
    """
    damages: list[Damage] = []
    runs: list[Run] = []
    previous = -2  # Number of the last intact record.
    for entry in read_records(path):
        if isinstance(entry, Damage):
            damages.append(entry)
        elif entry.number == previous + 1:
            runs[-1] = runs[-1]._replace(count=runs[-1].count + 1)
            previous = entry.number
        else:
            runs.append(Run(path, entry.offset, 1))
            previous = entry.number
    return runs, damages


def first_wrong_length(path: str) -> Damage | None:
    """Compares the lengths of the records with the size of the file. Reads their headers only, not their data.

    Returns:
      The first record with a wrong length or without its end; None if all lengths fit.

    Raises:
      OSError, tf.errors.OpError: The file cannot be read.
    """
    with _opened(path) as (file, size):
        if size == 0:
            return Damage(path, 0, 0, _EMPTY)
        offset = number = 0
        while offset < size:
            length, fault = _checked_length(file, offset, size)
            if fault is not None:
                return Damage(path, number, offset, fault)
            offset += _HEADER + length + _FOOTER
            number += 1
    return None


def read_records(path: str) -> Iterator[Record | Damage]:
    """Yields all records of a file in order, intact or damaged.

    Raises:
      OSError, tf.errors.OpError: The file cannot be read.
    """
    with _opened(path) as (file, size):
        if size == 0:
            yield Damage(path, 0, 0, _EMPTY)
            return
        offset = number = 0
        while offset < size:
            data, fault, end = _read_frame(file, offset, size)
            if fault is None:
                yield Record(number, offset, data)
            else:
                if end is None or not (end == size or _read_length(file, end, size) is not None):
                    end = _find_header(file, offset + 1, size)
                if fault == _WRONG_LENGTH and number == 0 and end == size:
                    fault += ", and the file has no other record; is it an uncompressed TFRecord file?"
                yield Damage(path, number, offset, fault)
            offset = end
            number += 1


def masked_checksum(data: bytes) -> int:
    """CRC-32C of the data, masked as TFRecord files store it."""
    checksum = google_crc32c.value(data)
    return ((checksum >> 15 | checksum << 17) + _MASK_DELTA) & 0xFFFFFFFF


def _read_frame(file: BinaryIO, offset: int, size: int) -> tuple[bytes, str | None, int | None]:
    """Returns the data, the fault or None, and the end of the frame; None if the end is unknown."""
    length, fault = _checked_length(file, offset, size)
    if fault is not None:
        return b"", fault, size if size - offset < _HEADER + _FOOTER else None
    end = offset + _HEADER + length + _FOOTER
    file.seek(offset + _HEADER)
    data, stored = file.read(length), file.read(_FOOTER)
    if struct.unpack("<I", stored)[0] != masked_checksum(data):
        return b"", f"the data ({length} bytes) do not match their checksum", end
    return data, None, end


def _checked_length(file: BinaryIO, offset: int, size: int) -> tuple[int, str | None]:
    """Returns the length of the record at `offset`, and the fault or None; the record ends inside the file."""
    length = _read_length(file, offset, size)
    if length is None:
        if size - offset < _HEADER + _FOOTER:
            return 0, f"cut off: the file ends after {size - offset} bytes of the record"
        return 0, _WRONG_LENGTH
    if offset + _HEADER + length + _FOOTER > size:
        present = min(max(0, size - offset - _HEADER), length)
        return 0, f"cut off: the header announces {length} bytes of data, the file has {present}"
    return length, None


def _read_length(file: BinaryIO, offset: int, size: int) -> int | None:
    """Returns the length in the header at `offset`; None if these bytes are not a header."""
    if size - offset < _HEADER:
        return None
    file.seek(offset)
    header = file.read(_HEADER)
    length, stored = struct.unpack("<QI", header)
    return length if stored == masked_checksum(header[:8]) else None


def _find_header(file: BinaryIO, offset: int, size: int) -> int:
    """Returns the offset of the next header at or behind `offset`; the size of the file if there is none."""
    while size - offset >= _HEADER + _FOOTER:
        file.seek(offset)
        block = np.frombuffer(file.read(min(_BLOCK + _HEADER - 1, size - offset)), np.uint8)
        windows = np.lib.stride_tricks.sliding_window_view(block, _HEADER)
        lengths = np.ascontiguousarray(windows[:, :8]).view("<u8")[:, 0]
        stored = np.ascontiguousarray(windows[:, 8:]).view("<u4")[:, 0]
        candidates = np.flatnonzero(lengths < size)  # Few places pass this test, which is cheaper than a checksum.
        possible, which = np.unique(lengths[candidates], return_inverse=True)
        checksums = np.array([masked_checksum(length.tobytes()) for length in possible], np.uint32)
        headers = candidates[stored[candidates] == checksums[which]]
        if len(headers):
            return offset + int(headers[0])
        offset += len(windows)
    return size


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[BinaryIO, int]]:
    """Opens a local or remote file; yields the file and its size in bytes."""
    if storage.is_remote(path):
        import tensorflow as tf

        with tf.io.gfile.GFile(path, "rb") as file:
            yield file, tf.io.gfile.stat(path).length
    else:
        with open(path, "rb") as file:
            yield file, os.fstat(file.fileno()).st_size
