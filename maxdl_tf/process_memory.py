"""Memory of this process, including Python and TensorFlow but not GPUs."""

from __future__ import annotations

import sys

import psutil

from maxdl_tf.posix import resource


def resident_bytes() -> int:
    """Memory in use now."""
    return psutil.Process().memory_info().rss


def peak_bytes() -> int:
    """Peak of the memory in use."""
    if resource is None:
        return psutil.Process().memory_info().peak_wset
    # Linux's own is preferred over getrusage, whose peak in a child process starts at that of its parent.
    return _linux_peak() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def _linux_peak() -> int | None:
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name == "VmHWM":
                    return int(value.split()[0]) * 1024
    except OSError:
        pass
    return None
