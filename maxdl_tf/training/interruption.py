"""Stops a training on SIGTERM and Ctrl-C after a whole step, so that nothing is lost."""

from __future__ import annotations

import os
import signal
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Records SIGTERM and SIGINT instead of ending the process.

        with StopSignals() as signals:
            while not signals.received: ...

    A second Ctrl-C raises KeyboardInterrupt as usual.

    Attributes:
      received: Number of the first signal received, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        self._handlers = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def is_received(self) -> bool:
        """Whether a signal was received."""
        return self.received is not None

    def _note(self, number: int, frame: Any) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number
        again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        # Not print: the signal may have arrived inside of it.
        os.write(2, f"\n{signal.Signals(number).name}: stopping after this step{again}\n".encode())
