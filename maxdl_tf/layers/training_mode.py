"""Whether a network is called in training, for functions that Keras does not tell."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

_training: contextvars.ContextVar[bool] = contextvars.ContextVar("training", default=False)


@contextlib.contextmanager
def in_training(training: bool | None) -> Iterator[None]:
    """Makes `is_training` return `training`. None is False."""
    token = _training.set(bool(training))
    try:
        yield
    finally:
        _training.reset(token)


def is_training() -> bool:
    """Whether the network is called in training. False outside of a network."""
    return _training.get()
