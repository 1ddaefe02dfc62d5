"""In which numbers layers compute (Micikevicius et al., Mixed Precision Training, arXiv 1710.03740)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from maxdl_tf.keras_api import keras


@contextlib.contextmanager
def computing_in(policy: str) -> Iterator[None]:
    """Layers that are made meanwhile compute by a policy, for all of their life.

    Whatever the policy, variables are float32, and so are the statistics and scales of `BatchNorm`, softmax, L2 norms
    and the logits that come out of the heads.

    Args:
      policy: "float32", "mixed_bfloat16" or "mixed_float16": of convolutions, matrix products and what they hand on.
    """
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(policy)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)
