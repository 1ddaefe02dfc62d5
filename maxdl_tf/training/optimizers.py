"""Learning rates and the two groups of variables that they hold for (architecture section 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from maxdl_tf.keras_api import keras


class PolySchedule(keras.optimizers.schedules.LearningRateSchedule):
    """rate(step) = peak * (1 - step / steps) ^ power, 0 from `steps` on, after a linear rise from 0.

    The warm-up lies over the decay and does not shift it: at `warmup_steps` the rate jumps from the rise to the decay.

    Args:
      peak: The rate that the rise goes to and the decay comes from.
      steps: Length of the training.
      warmup_steps: Length of the rise; 0 for none.
      power: Exponent of the decay.
    """

    def __init__(self, peak: float, *, steps: int, warmup_steps: int = 0, power: float = 0.9):
        super().__init__()
        self.peak = peak
        self.steps = steps
        self.warmup_steps = warmup_steps
        self.power = power

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        decayed = self.peak * (1.0 - tf.minimum(step, self.steps) / self.steps) ** self.power
        if not self.warmup_steps:
            return decayed
        return tf.where(step < self.warmup_steps, self.peak * step / self.warmup_steps, decayed)

    def scaled(self, factor: float) -> PolySchedule:
        """The same course at `factor` of the rate."""
        return PolySchedule(self.peak * factor, steps=self.steps, warmup_steps=self.warmup_steps, power=self.power)

    def get_config(self) -> dict[str, Any]:
        return {"peak": self.peak, "steps": self.steps, "warmup_steps": self.warmup_steps, "power": self.power}


class Optimizers:
    """One optimizer for the pretrained part of the backbone and one, at the full rate, for all else.

    Must be made in the strategy's scope; the slots exist afterwards, so that a checkpoint can be restored into them
    before the first step.

    Args:
      model: Gives `trainable_variables` and, among them, `backbone_variables`.
      schedule: Rate of what is not pretrained.
      backbone_multiplier: The pretrained part's rate as a share of it.
      beta1: Adam's, as are
      beta2: and
      epsilon: (added to sqrt(v) uncorrected, as Keras does).
    """

    def __init__(
        self,
        model: Any,
        schedule: PolySchedule,
        *,
        backbone_multiplier: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-7,
    ):
        # The fused kernel of Keras' legacy Adam is the fastest on a CPU, and the one that both Keras 2 packages have.
        def create(rate: PolySchedule):
            return keras.optimizers.legacy.Adam(rate, beta_1=beta1, beta_2=beta2, epsilon=epsilon)

        self.variables: tuple[tf.Variable, ...] = tuple(model.trainable_variables)
        backbone = {id(variable) for variable in model.backbone_variables}
        self._in_backbone = tuple(id(variable) in backbone for variable in self.variables)
        self.base = create(schedule)
        self.backbone = create(schedule.scaled(backbone_multiplier))
        for optimizer, variables in ((self.base, self._group(False)), (self.backbone, self._group(True))):
            optimizer._create_all_weights(variables)  # Legacy optimizers have no public build().

    @property
    def by_name(self) -> dict[str, Any]:
        """The optimizers under the names that they have in a checkpoint."""
        return {"optimizer": self.base, "backbone_optimizer": self.backbone}

    @property
    def slot_variables(self) -> list[tf.Variable]:
        """Everything that the optimizers remember between two steps."""
        return [*self.base.variables(), *self.backbone.variables()]

    def apply(self, gradients: Sequence[tf.Tensor]) -> None:
        """One step; call it in replica context.

        Args:
          gradients: Of `variables`, in their order, already summed over the replicas.
        """
        pairs = list(zip(gradients, self.variables))
        for optimizer, wanted in ((self.base, False), (self.backbone, True)):
            group = [pair for pair, inside in zip(pairs, self._in_backbone) if inside == wanted and pair[0] is not None]
            if group:
                optimizer.apply_gradients(group, experimental_aggregate_gradients=False)

    def learning_rates(self, step) -> dict[str, tf.Tensor]:
        """The two rates at a step, for curves."""
        return {
            "learning_rate": self.base.learning_rate(step),
            "backbone_learning_rate": self.backbone.learning_rate(step),
        }

    def _group(self, in_backbone: bool) -> list[tf.Variable]:
        return [v for v, inside in zip(self.variables, self._in_backbone) if inside == in_backbone]
