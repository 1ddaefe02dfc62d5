"""Dynamic loss scale for float16 gradients (Micikevicius et al., arXiv 1710.03740, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

_MOST = 2.0**24


class LossScale(tf.Module):
    """A power of two that keeps small float16 gradients above 0 and large ones below overflow.

    It adapts during training: a gradient that overflows halves it, down to 1; many steps without overflow double it.
    It must be created in the strategy's scope. Methods that change it are called in cross-replica context.

    Args:
      initial: Initial scale.
      growth_steps: Number of steps without overflow after which the scale doubles.

    Attributes:
      scale: float32 variable, the factor.
      good_steps: int64 variable, number of steps since the scale changed.
    """

    def __init__(self, initial: float = 2.0**15, *, growth_steps: int = 2000):
        super().__init__()
        self._growth_steps = growth_steps
        shared = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
        self.scale = tf.Variable(initial, dtype=tf.float32, name="loss_scale", **shared)
        self.good_steps = tf.Variable(0, dtype=tf.int64, name="loss_scale_good_steps", **shared)

    def scaled(self, loss: tf.Tensor) -> tf.Tensor:
        """The scaled loss, to be differentiated."""
        return loss * self.scale

    def unscaled(self, gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The float32 gradients of the loss, from those of the scaled loss."""
        inverse = 1.0 / self.scale
        return [gradient * inverse for gradient in gradients]

    def can_shrink(self) -> tf.Tensor:
        """Whether the scale may be the cause of a gradient that is not finite."""
        return self.scale > 1.0

    def shrink_if(self, overflows: tf.Tensor) -> None:
        """Halves the scale if it made a gradient overflow."""
        self.scale.assign(tf.where(overflows, tf.maximum(self.scale / 2.0, 1.0), self.scale))
        self.good_steps.assign(tf.where(overflows, tf.constant(0, tf.int64), self.good_steps))

    def count_step(self) -> None:
        """Counts a step that was applied; doubles the scale if it is due."""
        good_steps = self.good_steps + 1
        grows = good_steps >= self._growth_steps
        self.scale.assign(tf.where(grows, tf.minimum(self.scale * 2.0, _MOST), self.scale))
        self.good_steps.assign(tf.where(grows, tf.zeros_like(good_steps), good_steps))
