"""Activations that are computed again for the gradient instead of being kept (Chen et al., arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from maxdl_tf.layers.batch_norm import moving_statistics_kept


def recomputed(function: Callable, when: bool) -> Callable:
    """`function`, which keeps none of its intermediate results for the backward pass but computes them once more there.

    Batch norms inside update their moving statistics once. What is drawn at random must be drawn outside.

    Args:
      function: From tensors, which get gradients, to a tensor or a tuple of them; may use variables and other tensors.
      when: Whether to; if not, the function itself is returned.
    """
    if not when:
        return function
    is_again = False

    def run(*inputs):
        nonlocal is_again
        if is_again:
            with moving_statistics_kept():
                return function(*inputs)
        is_again = True
        return function(*inputs)

    return tf.recompute_grad(run)
