"""Parallel processes: who gets Ctrl-C."""

from __future__ import annotations

import signal

import pytest

from maxdl_tf.processes import results_in_order


def _blocks_interrupts(task: int) -> bool:
    del task
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs POSIX signals")
def test_only_the_main_process_gets_interrupts():
    """Others would print a traceback each, above all while they start."""
    with results_in_order(_blocks_interrupts, range(4), processes=2) as results:
        assert list(results) == [True] * 4
    assert not _blocks_interrupts(0)
