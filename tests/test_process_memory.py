"""What a process says of its memory."""

import subprocess
import sys

import pytest

from maxdl_tf import process_memory


def test_what_is_taken_is_seen_now_and_remembered_when_it_is_given_back():
    # In a process of its own: the threads of this one take and give back memory meanwhile.
    program = (
        "from maxdl_tf.process_memory import peak_bytes, resident_bytes; before = resident_bytes();"
        " block = b'x' * 200_000_000; during = resident_bytes(); del block;"
        " print(during - before, resident_bytes() - before, peak_bytes() - before)"
    )
    said = subprocess.check_output([sys.executable, "-c", program], text=True)
    during, after, peak = (int(word) / 200e6 for word in said.split())
    assert during == pytest.approx(1, abs=0.05)
    assert peak == pytest.approx(1, abs=0.05)
    if sys.platform == "linux":
        assert after == pytest.approx(0, abs=0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child's own peak")
def test_a_child_does_not_begin_with_its_parents_peak():
    program = (
        "import subprocess, sys; block = b'x' * 200_000_000; print(subprocess.check_output(sys.argv[1:]).decode())"
    )
    child = [sys.executable, "-c", "from maxdl_tf import process_memory; print(process_memory.peak_bytes())"]
    said = subprocess.check_output([sys.executable, "-c", program, *child], text=True)
    assert 1e6 < int(said) < 150e6


def test_without_proc_it_is_the_most_ever(monkeypatch):
    monkeypatch.setattr(process_memory, "_linux_peak", lambda: None)
    assert process_memory.peak_bytes() > 0.9 * process_memory.resident_bytes() > 1e6
