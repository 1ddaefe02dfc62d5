"""Errors that the user can fix, as opposed to bugs of the program, and sentences that several of them share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

_NAMED = 3  # Faults in one message.


class UserError(ValueError):
    """Bad input: the message says what was got, what was wanted, and what to do next.

    A command prints it as one line without traceback and exits with status 2.
    """


def some(faults: Sequence[Any]) -> str:
    """Joins the first few faults and counts the others."""
    named = "; ".join(str(fault) for fault in faults[:_NAMED])
    return named if len(faults) <= _NAMED else f"{named}; and {len(faults) - _NAMED} more"


def size_mismatch(
    path: str | os.PathLike, got: Sequence[int], expected: Sequence[int], other: str = "the JSON file states"
) -> str:
    """Describes a difference between the size of a file and that of `other`, each (height, width)."""
    text = f"{path}: {got[0]} x {got[1]} (height x width), but {other} {expected[0]} x {expected[1]}"
    if tuple(got) == tuple(expected)[::-1]:
        return f"{text}; if the image has an EXIF orientation, annotate the upright image"
    return f"{text}; both must have the same size"
