"""Memory of this process, including Python and TensorFlow but not GPUs."""

from __future__ import annotations

import resource
import sys


def resident_bytes() -> int:
    """Memory in use now, or the peak if the system does not report it."""
    return _status("VmRSS") or _most_ever()


def peak_bytes() -> int:
    """Peak of the memory in use."""
    # Preferred over getrusage, whose peak in a child process starts at that of its parent.
    return _status("VmHWM") or _most_ever()


def _status(field: str) -> int | None:
    """A field of /proc/self/status on Linux, in bytes."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name == field:
                    return int(value.split()[0]) * 1024
    except OSError:
        pass
    return None


def _most_ever() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
