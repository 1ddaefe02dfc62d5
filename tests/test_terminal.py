"""Names with control characters do nothing to a terminal, whatever prints them; progress lines are still redrawn."""

from __future__ import annotations

import io
import sys

import pytest
from absl import flags

from maxdl_tf import command_line, terminal
from maxdl_tf.errors import UserError
from maxdl_tf.progress import Progress

HOSTILE = "cat\x1b[2J\x1b]0;title\x07\x9b1A\r\b\u202egnp"


def _in_terminal(text: str) -> str:
    stream = io.StringIO()
    print(text, file=terminal.VisibleStream(stream))
    return stream.getvalue()


def test_controls_become_escapes_and_other_text_stays():
    assert _in_terminal(HOSTILE) == "cat\\x1b[2J\\x1b]0;title\\x07\\x9b1A\\r\\x08\\u202egnp\n"
    text = "Straße\t草\nzwei"
    assert _in_terminal(text) == text + "\n"


def test_letters_that_the_encoding_lacks_become_escapes():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print("草 \udcff", file=terminal.VisibleStream(stream), flush=True)
    assert stream.buffer.getvalue() == b"\\u8349 \\udcff\n"


def test_progress_lines_are_redrawn_and_their_notes_are_visible():
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Screen()
    with Progress("converting", 2, stream=terminal.VisibleStream(screen), clock=iter(range(99)).__next__) as progress:
        progress.advance(note=HOSTILE)
        progress.say(HOSTILE)
    assert screen.getvalue().count("\r") == 4 and "\x1b" not in screen.getvalue()


@pytest.mark.parametrize("stream", ["out", "err", "error"])
def test_commands_print_no_control_characters(capsys, stream):
    def main(argv):
        del argv
        if stream == "error":
            raise UserError(f"{HOSTILE}: no such class")
        print(HOSTILE, file=sys.stdout if stream == "out" else sys.stderr)

    before = sys.stdout, sys.stderr
    with pytest.raises(SystemExit):
        command_line.run(main, flags.FlagValues(), ["command"])
    assert (sys.stdout, sys.stderr) == before
    printed = "".join(capsys.readouterr())
    assert "cat\\x1b[2J" in printed and not set(printed) & set("\x1b\x07\x9b\r\b\u202e")
