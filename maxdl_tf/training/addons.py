"""TensorFlow Addons, which not every Python has: asked for before a model is built, not after."""

from __future__ import annotations

import importlib.util

from maxdl_tf.errors import UserError


def require_addons() -> None:
    """Raises UserError where TensorFlow Addons is not installed."""
    if importlib.util.find_spec("tensorflow_addons") is None:
        raise UserError(
            "training.optimizer.kind radam_lookahead needs TensorFlow Addons, which is not installed; it has releases "
            "for Python 3.9 to 3.11 only: take one of these, or kind: adam"
        )
