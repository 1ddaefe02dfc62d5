"""Reads serialized `tf.train.Example`s without TensorFlow, for processes that start quickly and stay small."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_VARINT, _FIXED_64, _LENGTH_DELIMITED, _FIXED_32 = 0, 1, 2, 5
_MAP, _ENTRY, _KEY, _VALUE = 1, 1, 1, 2  # Numbers of fields: Example.features, Features.feature, of a map's entry.
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3  # Of Feature.


def read_features(serialized: bytes) -> dict[str, list[bytes] | list[int] | list[float]]:
    """The features of an example: {key: its values}.

    Raises:
      ValueError: It is no `tf.train.Example`.
    """
    features: dict[str, list] = {}
    try:
        for number, _, content in _fields(memoryview(serialized)):
            if number != _MAP:
                raise ValueError(f"has a field {number}, which no tf.train.Example has")
            for _, _, entry in _fields(content):
                parts = {number: value for number, _, value in _fields(entry)}
                features[bytes(parts[_KEY]).decode()] = _values(parts.get(_VALUE, memoryview(b"")))
    except (IndexError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError("is no tf.train.Example") from error
    return features


def _values(feature: memoryview) -> list:
    values: list = []
    for kind, _, content in _fields(feature):
        for number, wire_type, value in _fields(content):
            if number != 1:
                raise ValueError("is no tf.train.Example")
            if kind == _BYTES_LIST:
                values.append(bytes(value))
            elif kind == _FLOAT_LIST:
                values.extend(np.frombuffer(value, "<f4").tolist())
            elif kind == _INT64_LIST:
                packed = [value] if wire_type == _VARINT else _packed_varints(value)
                values.extend(number - (1 << 64) if number >> 63 else number for number in packed)
    return values


def _fields(message: memoryview) -> Iterator[tuple[int, int, memoryview | int]]:
    """Yields (number, wire type, value) of each field."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire_type = tag & 7
        if wire_type == _VARINT:
            value, at = _varint(message, at)
        elif wire_type in (_FIXED_64, _FIXED_32, _LENGTH_DELIMITED):
            size = {_FIXED_64: 8, _FIXED_32: 4}.get(wire_type)
            if size is None:
                size, at = _varint(message, at)
            if at + size > len(message):
                raise ValueError("is no tf.train.Example: it ends inside of a field")
            value, at = message[at : at + size], at + size
        else:
            raise ValueError("is no tf.train.Example")
        yield tag >> 3, wire_type, value


def _packed_varints(content: memoryview) -> Iterator[int]:
    at = 0
    while at < len(content):
        value, at = _varint(content, at)
        yield value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """(value, where the next one begins)."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("is no tf.train.Example: a number of more than 64 bits")
