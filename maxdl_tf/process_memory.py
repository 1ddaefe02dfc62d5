"""How much memory this process has, Python and TensorFlow included, without that of GPUs."""

from __future__ import annotations

import resource
import sys


def resident_bytes() -> int:
    """What it has now; the most that it ever had where the system does not tell."""
    return _status("VmRSS") or _most_ever()


def peak_bytes() -> int:
    """The most that it ever had."""
    # Not getrusage where the system tells: a child's begins with the peak of the process that started it.
    return _status("VmHWM") or _most_ever()


def _status(field: str) -> int | None:
    """A field of Linux' /proc/self/status, in bytes."""
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
