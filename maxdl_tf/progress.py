"""A progress line: a bar with rate and remaining time on a terminal, an occasional plain line elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO


class Progress:
    """Shows the progress of a long task.

    On a terminal, one line is redrawn at most ten times a second:

        training  [#########.............]  4120/10000 steps  33.1 images/s  ETA 23:40  loss 4.21

    Elsewhere (a log file, CI), a line without the bar appears every `plain_seconds` and at the end. The rate is that of
    the last seconds, counted from the end of the first unit, which may include compiling.

    Example:
        with Progress("training", total=10_000, unit="steps", images_per_unit=8, done=resumed_at) as progress:
            for step in ...:
                progress.advance(note=f"loss {loss:.2f}")

    Args:
      label: Name of the task.
      total: Number of units; None if unknown.
      unit: Name of the units, in the plural.
      images_per_unit: Number of images in a unit, such as the batch size of a training step; scales the rate.
      done: Number of units that an earlier run completed.
      stream: Output stream; stderr by default.
      plain_seconds: Seconds between two lines, unless the stream is a terminal.
      clock: Function that returns the time in seconds.
    """

    _REDRAW_SECONDS = 0.1
    _RATE_SECONDS = 15.0

    def __init__(
        self,
        label: str,
        total: int | None,
        unit: str = "images",
        *,
        images_per_unit: int = 1,
        done: int = 0,
        stream: TextIO | None = None,
        plain_seconds: float = 20.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._label = label
        self._total = total
        self._unit = unit
        self._images_per_unit = images_per_unit
        self._done = done
        self._stream = sys.stderr if stream is None else stream
        self._on_terminal = self._stream.isatty()
        self._period = self._REDRAW_SECONDS if self._on_terminal else plain_seconds
        self._clock = clock
        self._note = ""
        self._start = (clock(), done)
        self._samples: deque[tuple[float, int]] = deque()
        self._next_line = self._start[0] + self._period
        self._line_width = 0
        self._closed = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def advance(self, units: int = 1, note: str | None = None) -> None:
        """Counts finished units. `note` stays at the end of the line until the next note."""
        self._done += units
        if note is not None:
            self._note = note
        now = self._clock()
        if not self._samples or now - self._samples[-1][0] >= self._REDRAW_SECONDS:
            self._samples.append((now, self._done))
            while len(self._samples) > 2 and now - self._samples[1][0] > self._RATE_SECONDS:
                self._samples.popleft()
        if now >= self._next_line:
            self._next_line = now + self._period
            self._write()

    def restart_rate(self) -> None:
        """Measures the rate from the end of the next unit, after time that went into something else."""
        self._samples.clear()

    def say(self, text: str) -> None:
        """Prints a separate line above the bar."""
        if self._on_terminal:
            self._stream.write("\r" + " " * self._line_width)
            self._stream.write("\r")
            self._line_width = 0
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Writes the last line: units, mean rate, elapsed time. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._write(last=True)

    def _write(self, last: bool = False) -> None:
        now = self._clock()
        since, done_then = self._start if last or not self._samples else self._samples[0]
        rate = (self._done - done_then) / (now - since) if now > since else 0.0
        facts = [
            f"{self._done}/{self._total} {self._unit}" if self._total is not None else f"{self._done} {self._unit}"
        ]
        if rate > 0:
            measured = "images" if self._images_per_unit > 1 else self._unit
            facts.append(f"{rate * self._images_per_unit:.3g} {measured}/s")
        if last:
            facts.append(f"in {duration(now - self._start[0])}")
        elif rate > 0 and self._total is not None:
            facts.append(f"ETA {duration(max(0, self._total - self._done) / rate)}")
        if self._note:
            facts.append(self._note)
        line = "  ".join(facts)
        if not self._on_terminal:
            self._stream.write(f"{self._label}  {line}\n")
        else:
            columns = shutil.get_terminal_size().columns - 1
            space = columns - len(self._label) - len(line) - 6
            if self._total and space >= 10:
                width = min(space, 30)
                filled = min(width, width * self._done // self._total)
                line = f"[{'#' * filled}{'.' * (width - filled)}]  {line}"
            line = f"{self._label}  {line}"[:columns]
            self._stream.write("\r" + line.ljust(self._line_width) + ("\n" if last else ""))
            self._line_width = len(line)
        self._stream.flush()


def duration(seconds: float) -> str:
    """ "0:07", "23:40", "2:03:11"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
