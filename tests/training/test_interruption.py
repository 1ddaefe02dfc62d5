"""The first signal is noted, a second Ctrl-C is not to be put off."""

from __future__ import annotations

import os
import signal

import pytest

from maxdl_tf.training.interruption import StopSignals


def test_a_second_ctrl_c_ends_at_once_and_handlers_are_put_back(capfd):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        assert not signals.is_received()
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        os.kill(os.getpid(), signal.SIGTERM)  # Adds nothing.
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert "SIGINT: stopping after this step; press Ctrl-C again to stop at once\n" in capfd.readouterr().err
