"""Writes files of PyTorch weights without PyTorch: stand-ins take the places of its functions in the pickles."""

from __future__ import annotations

import io
import pickle
import sys
import types
from pathlib import Path
from unittest import mock

import numpy as np

MAGIC_NUMBER, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


def _global(module: str, name: str):
    """A function that pickles as `module.name`."""
    made = type(name, (), {"__module__": module}) if name.endswith("Storage") else lambda *arguments: None
    made.__module__, made.__name__, made.__qualname__ = module, name, name
    return made


FLOAT, LONG = _global("torch", "FloatStorage"), _global("torch", "LongStorage")
REBUILD = _global("torch._utils", "_rebuild_tensor_v2")


class Storage:
    """Refers to the data with a key."""

    def __init__(self, key: str, kind, size: int):
        self.reference = ("storage", kind, key, "cpu", size, None)


class Reduced:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self._reduced = function, arguments

    def __reduce__(self):
        return self._reduced


class _Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.reference if isinstance(value, Storage) else None


def pickled(value, protocol: int = 2) -> bytes:
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch.FloatStorage, torch.LongStorage, utils._rebuild_tensor_v2 = FLOAT, LONG, REBUILD
    with mock.patch.dict(sys.modules, {"torch": torch, "torch._utils": utils}):
        file = io.BytesIO()
        _Pickler(file, protocol).dump(value)
    return file.getvalue()


def tensor(storage: Storage, offset: int, shape: tuple, stride: tuple) -> Reduced:
    return Reduced(REBUILD, storage, offset, shape, stride, False, {})


def row_major(shape: tuple) -> tuple:
    return tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))


def file_bytes(tensors, data: dict[str, np.ndarray], system=SYSTEM) -> bytes:
    """A file of `tensors` (anything that pickles) and the storages that they refer to."""
    parts = [pickled(MAGIC_NUMBER), pickled(PROTOCOL), pickled(system), pickled(tensors), pickled(sorted(data))]
    for key in sorted(data):
        parts += [len(data[key]).to_bytes(8, "little"), data[key].tobytes()]
    return b"".join(parts)


def write_weights(path: Path, weights: dict[str, np.ndarray]) -> Path:
    """A file of arrays, float32 or int64, each with a storage of its own."""
    data = {name: np.ravel(value) for name, value in weights.items()}
    tensors = {}
    for name, value in weights.items():
        storage = Storage(name, FLOAT if value.dtype == np.float32 else LONG, value.size)
        tensors[name] = tensor(storage, 0, value.shape, row_major(value.shape))
    path.write_bytes(file_bytes(tensors, data))
    return path
