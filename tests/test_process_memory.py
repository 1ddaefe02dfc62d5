"""What a process says of its memory."""

import subprocess
import sys

import numpy as np
import pytest

from maxdl_tf import process_memory


def test_what_is_taken_and_given_back_is_seen():
    before = process_memory.resident_bytes()
    block = np.ones(50_000_000, np.uint8)
    during = process_memory.resident_bytes()
    assert during - before == pytest.approx(block.nbytes, rel=0.2)
    del block
    assert process_memory.peak_bytes() >= during


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child's own peak")
def test_a_child_does_not_begin_with_its_parents_peak():
    program = (
        "import subprocess, sys; block = b'x' * 200_000_000; print(subprocess.check_output(sys.argv[1:]).decode())"
    )
    child = [sys.executable, "-c", "from maxdl_tf import process_memory; print(process_memory.peak_bytes())"]
    said = subprocess.check_output([sys.executable, "-c", program, *child], text=True)
    assert 1e6 < int(said) < 150e6


def test_without_proc_it_is_the_most_ever(monkeypatch):
    monkeypatch.setattr(process_memory, "_status", lambda field: None)
    assert process_memory.resident_bytes() == process_memory.peak_bytes() > 1e6
