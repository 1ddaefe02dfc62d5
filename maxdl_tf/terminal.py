"""The output of commands: control characters of names become visible escapes, and a closed pipe is a silent end.

A class or a file may be named so that a terminal moves its cursor, hides lines, or changes its title.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

_ALLOWED = "\n\t"
_CLOSED_PIPE = 141  # The exit status of a process killed by SIGPIPE.
# The control characters of ASCII and Latin-1, and those that reverse the direction of text.
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_ESCAPES = {code: ascii(chr(code))[1:-1] for code in _CONTROLS if chr(code) not in _ALLOWED}


def visible(text: str) -> str:
    """The text with control characters, except for line breaks and tabs, as escapes such as \\x1b."""
    return text.translate(_ESCAPES)


class VisibleStream:
    """A text stream that shows control characters.

    A carriage return at the start of a write is kept: progress lines are redrawn by it.

    Attributes:
      failed: Whether the stream could not be written, to distinguish its errors from those of files and sockets.
    """

    def __init__(self, stream: TextIO):
        self.failed = False
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # Names with letters that the terminal's encoding lacks.

    def write(self, text: str) -> int:
        line = text.removeprefix("\r")
        with self._noting_failure():
            self._stream.write(text[: len(text) - len(line)] + visible(line))
        return len(text)

    def flush(self) -> None:
        with self._noting_failure():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.failed = True
            raise


@contextlib.contextmanager
def visible_output() -> Iterator[None]:
    """Makes stdout and stderr show control characters.

    If the reader of one of them is gone, as with `| head`, the process ends with status 141 and no message.
    """
    streams = [stream and VisibleStream(stream) for stream in (sys.stdout, sys.stderr)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            yield
        except BrokenPipeError:
            if not any(stream and stream.failed for stream in streams):
                raise
            sys.exit(_CLOSED_PIPE)
        finally:
            for stream in streams:
                if stream and stream.failed:  # Python would complain at its end of what it cannot write.
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
