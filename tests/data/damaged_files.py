"""Functions that damage TFRecord files."""

from __future__ import annotations

import struct
from pathlib import Path


def frame_offsets(path: Path) -> list[int]:
    """Offsets of the frames of an intact file, and its size."""
    content = path.read_bytes()
    offsets = [0]
    while offsets[-1] < len(content):
        (length,) = struct.unpack_from("<Q", content, offsets[-1])
        offsets.append(offsets[-1] + 8 + 4 + length + 4)
    return offsets


def flip_bit(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(content)


def flip_data(path: Path, record: int) -> None:
    """Changes a byte of a record's data."""
    flip_bit(path, frame_offsets(path)[record] + 20)


def flip_length(path: Path, record: int) -> None:
    """Changes the length that a record announces."""
    flip_bit(path, frame_offsets(path)[record] + 1)


def cut_off(path: Path, num_bytes: int = 7) -> None:
    path.write_bytes(path.read_bytes()[:-num_bytes])
