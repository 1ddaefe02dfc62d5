"""PNG files from parts, among them damaged ones that no library writes."""

from __future__ import annotations

import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels: np.ndarray, *, rows: int | None = None, interlaced: bool = False, before: bytes = b"") -> bytes:
    """A PNG file.

    Args:
      pixels: uint8 or uint16 [height, width], gray, or [height, width, 3], RGB.
      rows: Number of rows that are stored, of all passes together if interlaced; all if None.
      interlaced: Whether rows are stored in seven passes.
      before: Chunks before the pixels.
    """
    height, width = pixels.shape[:2]
    color = 2 if pixels.ndim == 3 else 0
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, color, 0, 0, interlaced)
    starts = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    passes = [pixels[top::down, left::right] for left, top, right, down in starts] if interlaced else [pixels]
    stored = [b"\0" + row.astype(f">u{pixels.itemsize}").tobytes() for part in passes for row in part if row.size]
    data = zlib.compress(b"".join(stored[:rows]))
    return SIGNATURE + chunk(b"IHDR", header) + before + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _bomb() -> bytes:
    """10 MB of zeros in 10 kB."""
    return zlib.compress(bytes(10_000_000))


GRAY = np.full((5, 7), 200, np.uint8)
WHOLE = png(GRAY)
# Damaged files that Pillow reports in various ways or overlooks, by what is wrong with them.
DAMAGED = {
    "text bomb": png(GRAY, before=chunk(b"zTXt", b"Comment\0\0" + _bomb())),
    "profile bomb": png(GRAY, before=chunk(b"iCCP", b"icc\0\0" + _bomb())),
    "short header": SIGNATURE + chunk(b"IHDR", bytes(4)) + WHOLE[33:],
    "no pixels": WHOLE[:33],
    "cut in the pixels": WHOLE[:45],
    "one row missing": png(GRAY, rows=4),
    "all rows missing": png(GRAY, rows=0),
    "a row of a pass missing": png(GRAY, rows=6, interlaced=True),
    "no end": WHOLE[:-12],
    "cut in the last chunk": WHOLE[:-2],
    "wrong checksum": WHOLE[:-16] + bytes([WHOLE[-16] ^ 1]) + WHOLE[-15:],
    "no such color": WHOLE[:25] + b"\x05" + WHOLE[26:],
}
