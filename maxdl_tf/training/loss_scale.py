"""What the loss is multiplied by where gradients are float16 (Micikevicius et al., arXiv 1710.03740, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

_MOST = 2.0**24


class LossScale(tf.Module):
    """A factor, a power of two, under which small gradients are not 0 in float16 and large ones do not overflow.

    It is found on the way: half of it after a gradient that overflowed, down to 1, and twice as much after many steps
    without. Must be made in the strategy's scope. The methods that change it are called outside of replicas.

    Args:
      initial: To start with.
      growth_steps: Steps without overflow after which it doubles.

    Attributes:
      scale: float32 variable, the factor.
      good_steps: int64 variable, steps since it changed.
    """

    def __init__(self, initial: float = 2.0**15, *, growth_steps: int = 2000):
        super().__init__()
        self._growth_steps = growth_steps
        shared = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
        self.scale = tf.Variable(initial, dtype=tf.float32, name="loss_scale", **shared)
        self.good_steps = tf.Variable(0, dtype=tf.int64, name="loss_scale_good_steps", **shared)

    def scaled(self, loss: tf.Tensor) -> tf.Tensor:
        """What to differentiate in place of the loss."""
        return loss * self.scale

    def unscaled(self, gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The float32 gradients of the loss, from those of the scaled one."""
        inverse = 1.0 / self.scale
        return [gradient * inverse for gradient in gradients]

    def can_shrink(self) -> tf.Tensor:
        """Whether a gradient that is not finite may be the scale's fault."""
        return self.scale > 1.0

    def shrink_if(self, overflows: tf.Tensor) -> None:
        """After a gradient that was not finite, if it was the scale's fault."""
        self.scale.assign(tf.where(overflows, tf.maximum(self.scale / 2.0, 1.0), self.scale))
        self.good_steps.assign(tf.where(overflows, tf.constant(0, tf.int64), self.good_steps))

    def count_step(self) -> None:
        """After a step that was done."""
        good_steps = self.good_steps + 1
        grows = good_steps >= self._growth_steps
        self.scale.assign(tf.where(grows, tf.minimum(self.scale * 2.0, _MOST), self.scale))
        self.good_steps.assign(tf.where(grows, tf.zeros_like(good_steps), good_steps))
