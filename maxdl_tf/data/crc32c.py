"""CRC-32C, the checksum of TFRecords, in NumPy: neither TensorFlow nor a compiled package has to be there.

Bytes are taken in rows of `_ROW`, all rows at once, two bytes at a step; the rows' remainders are then joined in turn.
"""

from __future__ import annotations

import functools

import numpy as np

_POLYNOMIAL = 0x82F63B78  # Castagnoli, bits reversed.
_ROW = 256
_MASK_DELTA = 0xA282EAD8


def crc32c(data: bytes) -> int:
    """The checksum of some bytes."""
    content = np.frombuffer(data, np.uint8)
    head = len(content) % _ROW
    remainder = 0xFFFFFFFF
    table = _byte_table_list()
    for byte in content[:head].tolist():
        remainder = table[(remainder ^ byte) & 0xFF] ^ remainder >> 8
    if head < len(content):
        low0, low1, low2, low3 = _row_shift_tables()
        for row in _remainders(content[head:].reshape(-1, _ROW)).tolist():
            remainder = (
                low0[remainder & 0xFF]
                ^ low1[remainder >> 8 & 0xFF]
                ^ low2[remainder >> 16 & 0xFF]
                ^ low3[remainder >> 24]
                ^ row
            )
    return remainder ^ 0xFFFFFFFF


def masked(checksum):
    """The form in which TFRecords store a checksum; a number or an array of uint32."""
    if isinstance(checksum, np.ndarray):
        return (checksum >> np.uint32(15) | checksum << np.uint32(17)) + np.uint32(_MASK_DELTA)
    return ((checksum >> 15 | checksum << 17) + _MASK_DELTA) & 0xFFFFFFFF


def crc32c_of_rows(rows: np.ndarray) -> np.ndarray:
    """uint32 [rows], the checksums of uint8 [rows, an even number of bytes]."""
    # A first remainder of ones is the same as zeros with the first four bytes inverted.
    rows = rows.copy()
    rows[:, :4] ^= 0xFF
    return _remainders(rows) ^ np.uint32(0xFFFFFFFF)


def _remainders(rows: np.ndarray) -> np.ndarray:
    """uint32 [rows]: what is left of uint8 [rows, even], from a remainder of 0."""
    table = _pair_table()
    pairs = np.ascontiguousarray(np.ascontiguousarray(rows).view("<u2").T)
    remainder = np.zeros(len(rows), np.uint32)
    for pair in pairs:
        remainder = table[(remainder ^ pair) & np.uint32(0xFFFF)] ^ remainder >> np.uint32(16)
    return remainder


@functools.cache
def _byte_table() -> np.ndarray:
    """uint32 [256]: what one byte makes of a remainder."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> np.uint32(1) ^ np.uint32(_POLYNOMIAL), table >> np.uint32(1))
    return table.astype(np.uint32)


@functools.cache
def _byte_table_list() -> list[int]:
    return _byte_table().tolist()


@functools.cache
def _pair_table() -> np.ndarray:
    """uint32 [65536]: what two bytes make of a remainder."""
    return _followed_by_zeros(np.arange(65536, dtype=np.uint32), 2)


@functools.cache
def _row_shift_tables() -> list[list[int]]:
    """For each byte of a remainder, what a row of zeros makes of its 256 values."""
    values = np.arange(256, dtype=np.uint32)
    return [_followed_by_zeros(values << np.uint32(8 * place), _ROW).tolist() for place in range(4)]


def _followed_by_zeros(remainder: np.ndarray, count: int) -> np.ndarray:
    table = _byte_table()
    for _ in range(count):
        remainder = table[remainder & np.uint32(0xFF)] ^ remainder >> np.uint32(8)
    return remainder
