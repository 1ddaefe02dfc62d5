"""TFRecord files, record by record, with what is damaged in them; TensorFlow is needed for `scheme://` paths only.

A file is a row of frames: the length of the data (8 bytes), its checksum (4), the data, their checksum (4). After a
damaged record the next one is found again, by looking for bytes that are a length and its checksum.

What cannot be seen: that a file was cut off exactly between two records. It is a shorter file then, and intact.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from maxdl_tf.data import crc32c

_HEADER, _FOOTER = 12, 4
_WRONG_LENGTH = "the length of the record and its checksum do not agree"
_BLOCK = 1 << 20  # Bytes that are searched for a header at a time.


class Damage(NamedTuple):
    """A record that cannot be read; as text, where it is and what is wrong.

    Attributes:
      path: The file.
      record: Its number in the file, from 0; damaged ones are counted.
      offset: Of its frame, in bytes.
      what: What is wrong.
    """

    path: str
    record: int
    offset: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}: record {self.record} at byte {self.offset}: {self.what}"


class Record(NamedTuple):
    """An intact record.

    Attributes:
      number: In the file, from 0; damaged ones are counted.
      offset: Of its frame, in bytes.
      data: What it holds.
    """

    number: int
    offset: int
    data: bytes


class Run(NamedTuple):
    """Intact records that follow each other.

    Attributes:
      path: The file.
      offset: Of the first frame, in bytes.
      count: Of the records.
    """

    path: str
    offset: int
    count: int


class Scan(NamedTuple):
    """What a file has.

    Attributes:
      good: Number of intact records.
      damages: All others.
      runs: Where the intact ones are.
    """

    good: int
    damages: list[Damage]
    runs: list[Run]


def scan(path: str) -> Scan:
    """Reads a whole file and checks each record.

    Raises:
      OSError, tf.errors.OpError: The file cannot be read.
    """
    damages: list[Damage] = []
    runs: list[Run] = []
    follows = False
    for entry in records(path):
        if isinstance(entry, Damage):
            damages.append(entry)
            follows = False
            continue
        if not follows:
            runs.append(Run(path, entry.offset, 0))
        runs[-1] = runs[-1]._replace(count=runs[-1].count + 1)
        follows = True
    return Scan(sum(run.count for run in runs), damages, runs)


def records(path: str) -> Iterator[Record | Damage]:
    """All records of a file, intact or damaged, in its order.

    Raises:
      OSError, tf.errors.OpError: The file cannot be read.
    """
    with _opened(path) as (file, size):
        if size == 0:
            yield Damage(path, 0, 0, "the file is empty")
            return
        offset = number = 0
        while offset < size:
            data, what, end = _frame(file, offset, size)
            if what is None:
                yield Record(number, offset, data)
            else:
                length_is_wrong = end is None and what == _WRONG_LENGTH
                if end is None or not (end == size or _length(file, end, size) is not None):
                    end = _next_header(file, offset + 1, size)
                if number == 0 and end == size and length_is_wrong:
                    what = f"{what}, and there is no other record; is it a TFRecord file, and uncompressed?"
                yield Damage(path, number, offset, what)
            offset = end
            number += 1


def _frame(file: BinaryIO, offset: int, size: int) -> tuple[bytes, str | None, int | None]:
    """(data, what is wrong or None, where the frame ends as far as that is known)."""
    length = _length(file, offset, size)
    if length is None:
        if size - offset < _HEADER + _FOOTER:
            return b"", f"cut off: the file ends after {size - offset} bytes of it", size
        return b"", _WRONG_LENGTH, None
    end = offset + _HEADER + length + _FOOTER
    if end > size:
        got = max(0, size - offset - _HEADER)
        return b"", f"cut off: {length} bytes of data are announced, {min(got, length)} are there", None
    file.seek(offset + _HEADER)
    data, stored = file.read(length), file.read(_FOOTER)
    if struct.unpack("<I", stored)[0] != crc32c.masked(crc32c.crc32c(data)):
        return b"", f"the data ({length} bytes) and their checksum do not agree", end
    return data, None, end


def _length(file: BinaryIO, offset: int, size: int) -> int | None:
    """The length that the header at `offset` gives, or None if it is no header."""
    if size - offset < _HEADER:
        return None
    file.seek(offset)
    header = file.read(_HEADER)
    length, stored = struct.unpack("<QI", header)
    return length if stored == crc32c.masked(crc32c.crc32c(header[:8])) else None


def _next_header(file: BinaryIO, offset: int, size: int) -> int:
    """Where the next frame from `offset` on begins; the file's size if there is none."""
    while size - offset >= _HEADER + _FOOTER:
        file.seek(offset)
        block = np.frombuffer(file.read(min(_BLOCK + _HEADER - 1, size - offset)), np.uint8)
        windows = np.lib.stride_tricks.sliding_window_view(block, _HEADER)
        stored = np.ascontiguousarray(windows[:, 8:]).view("<u4")[:, 0]
        checked = crc32c.masked(crc32c.crc32c_of_rows(windows[:, :8]))
        for place in np.flatnonzero(stored == checked):
            length = _length(file, offset + int(place), size)
            if length is not None and length < size:  # Other bytes pass by chance, but hardly this, too.
                return offset + int(place)
        offset += len(windows)
    return size


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[BinaryIO, int]]:
    """The open file and its size in bytes, wherever it is."""
    if "://" in path:
        import tensorflow as tf

        with tf.io.gfile.GFile(path, "rb") as file:
            yield file, tf.io.gfile.stat(path).length
    else:
        with open(path, "rb") as file:
            yield file, os.fstat(file.fileno()).st_size
