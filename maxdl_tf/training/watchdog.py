"""Reports that a training stands still, which looks like one that is slow."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

_LEAST_SECONDS = 60.0
_TIMES_USUAL = 10.0
_PERIOD = 5.0
_REMEMBERED = 50


class Watchdog:
    """Thread that logs a line, once, if no step ended for a minute and for ten times the usual time.

    Args:
      log: Receives the line.
      clock: Returns the time in seconds.
    """

    def __init__(self, log: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self._log = log
        self._clock = clock
        self._last = clock()
        self._compiled = False
        self._durations: deque[float] = deque(maxlen=_REMEMBERED)
        self._complained = False
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Context in which steps are expected. Time between two such contexts does not count."""
        with self._lock:
            self._last = self._clock()
        ended = threading.Event()
        thread = threading.Thread(target=self._watch, args=(ended,), name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def beat(self) -> None:
        """Records that steps have ended."""
        with self._lock:
            now = self._clock()
            if self._complained:
                self._log(f"it goes on, after {now - self._last:.0f} s")
            elif self._compiled:  # The first time includes compiling.
                self._durations.append(now - self._last)
            self._last, self._compiled, self._complained = now, True, False

    def check(self) -> None:
        """Logs the line if it is due."""
        with self._lock:
            if not self._durations or self._complained:
                return
            usual, silence = statistics.median(self._durations), self._clock() - self._last
            if silence > max(_LEAST_SECONDS, _TIMES_USUAL * usual):
                self._complained = True
                self._log(
                    f"no step has ended for {silence:.0f} s, which usually takes {usual:.2g} s; is the input stuck, is "
                    "another worker stuck, or is the machine busy?"
                )

    def _watch(self, ended: threading.Event) -> None:
        while not ended.wait(_PERIOD):
            self.check()
