"""Damage of PNG files that Pillow overlooks and TensorFlow refuses: missing rows, a missing end, wrong checksums."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

_SIGNATURE_SIZE = 8
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # By color type.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PIECE = 1 << 16  # Bytes that are decompressed at a time: a small file can hold gigabytes.


def fault(content: bytes, *, last_row_is_zero: bool) -> str | None:
    """Describes the damage of a PNG file that Pillow has decoded; None if there is none.

    Args:
      content: Content of the file.
      last_row_is_zero: Whether the last decoded row is zero, as Pillow leaves a missing one. Only then, or if the file
        is interlaced, are the rows counted, which takes about as long as decoding them.
    """
    missing, pixels, kind = 0, zlib.decompressobj(), b""
    for kind, data, checksum in _chunks(content):
        if kind[:1].isupper() and zlib.crc32(kind + data) != checksum:  # Readers need chunks with such names.
            return f"the checksum of chunk {kind.decode('latin-1')} is wrong"
        if kind == b"IHDR" and (last_row_is_zero or data[12]):
            missing = _size_of_rows(data)
        elif kind == b"IDAT":
            missing -= _decompressed_size(pixels, data, missing)
    if missing > 0:
        return "rows are missing"
    return None if kind == b"IEND" else "the end of the file is missing"


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """Name, content and checksum of each chunk up to IEND; bytes after it do no harm."""
    place = _SIGNATURE_SIZE
    while place + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        end = place + 8 + length
        if end + 4 > len(content):
            return
        yield kind, content[place + 8 : end], int.from_bytes(content[end : end + 4], "big")
        place = len(content) if kind == b"IEND" else end + 4


def _size_of_rows(header: bytes) -> int:
    """Bytes of all rows before compression: each has a filter byte and its pixels."""
    width, height, bits, color, _, _, interlaced = struct.unpack(">IIBBBBB", header[:13])
    size = 0
    for left, top, step_x, step_y in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // step_x), -(-(height - top) // step_y)
        if columns > 0 and rows > 0:
            size += rows * (1 + -(-columns * bits * _CHANNELS[color] // 8))
    return size


def _decompressed_size(stream, data: bytes, at_most: int) -> int:
    """Bytes that `data` adds to a stream; counts no further than `at_most`."""
    size = 0
    while size < at_most:
        piece = stream.decompress(data, _PIECE)
        size += len(piece)
        data = stream.unconsumed_tail
        if not data and len(piece) < _PIECE:
            break
    return size
