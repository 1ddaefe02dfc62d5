"""Output of commands that a terminal shows as it is: control characters of names become visible escapes.

A class or a file may be named so that a terminal moves its cursor, hides lines, or changes its title.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO

_ALLOWED = "\n\t"
# The control characters of ASCII and Latin-1, and those that reverse the direction of text.
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_ESCAPES = {code: ascii(chr(code))[1:-1] for code in _CONTROLS if chr(code) not in _ALLOWED}


def visible(text: str) -> str:
    """The text with control characters, except for line breaks and tabs, as escapes such as \\x1b."""
    return text.translate(_ESCAPES)


class VisibleStream:
    """A text stream that shows control characters.

    A carriage return at the start of a write is kept: progress lines are redrawn by it.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # Names with letters that the terminal's encoding lacks.

    def write(self, text: str) -> int:
        line = text.removeprefix("\r")
        self._stream.write(text[: len(text) - len(line)] + visible(line))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def visible_output() -> Iterator[None]:
    """Makes stdout and stderr show control characters."""
    with contextlib.redirect_stdout(VisibleStream(sys.stdout)), contextlib.redirect_stderr(VisibleStream(sys.stderr)):
        yield
