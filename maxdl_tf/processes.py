"""Runs many tasks in parallel processes and returns the results in the order of the tasks."""

from __future__ import annotations

import collections
import concurrent.futures
import concurrent.futures.process
import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from typing import Any

from maxdl_tf.errors import UserError

_TASKS_AT_ONCE = 8  # Sent to a process together. Sent one by one, their transfer takes a quarter of the time.
_CHUNKS_AHEAD = 3  # For each process: enough to keep all busy, few enough to hold the results in memory.


def available_processes() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def results_in_order(function: Callable[[Any], Any], tasks: Sequence[Any], processes: int) -> Iterator[Iterator[Any]]:
    """Starts the processes; the context is an iterator over `function(task)` for each task, in order.

    Args:
      function: Function to call in other processes. It must pickle, and so must tasks and results.
      tasks: Arguments of the calls.
      processes: Number of processes; with 1, all calls happen in this process.

    Raises:
      UserError: A process was ended from outside.
    """
    processes = min(processes, len(tasks))
    if processes <= 1:
        yield map(function, tasks)
        return
    # Not forked: a fork of a process with TensorFlow's threads may hang.
    pool = concurrent.futures.ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_start_process, initargs=(function,)
    )
    # Each process gets tasks even if there are few.
    size = max(1, min(_TASKS_AT_ONCE, len(tasks) // (_CHUNKS_AHEAD * processes)))
    chunks = (tasks[start : start + size] for start in range(0, len(tasks), size))
    first = itertools.islice(chunks, processes * _CHUNKS_AHEAD)
    with _without_interrupts():  # Here the processes start.
        ahead = collections.deque(pool.submit(_run, chunk) for chunk in first)

    def results():
        while ahead:
            done = ahead.popleft().result()
            ahead.extend(pool.submit(_run, chunk) for chunk in itertools.islice(chunks, 1))
            yield from done

    try:
        yield results()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError("a process was ended from outside, perhaps for lack of memory; try fewer processes") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Starts processes that never see Ctrl-C, which this process gets at the end and which stops all of them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows.
        yield
        return
    resource_tracker.ensure_running()  # Its start with the first process would end the block.
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


_function_here: Callable[[Any], Any] | None = None


def _start_process(function: Callable[[Any], Any]) -> None:
    global _function_here
    _function_here = function
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process with its parent, which cannot stop it when killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _run(chunk: Sequence[Any]) -> list[Any]:
    return [_function_here(task) for task in chunk]
