"""Learning rate schedule, and optimizers of the pretrained and of all other variables (architecture section 7)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from maxdl_tf.errors import UserError
from maxdl_tf.keras_api import keras
from maxdl_tf.training.loss_scale import LossScale


class PolySchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Polynomial decay after a linear warm-up: rate(step) = peak * (1 - step / steps) ^ power, and 0 from `steps` on.

    The warm-up replaces the beginning of the decay and does not shift it. At `warmup_steps` the rate jumps.

    Args:
      peak: Rate at the end of the warm-up and the beginning of the decay.
      steps: Number of steps in the training.
      warmup_steps: Number of steps in the warm-up; 0 for none.
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
        """The same schedule with `factor` times the rate."""
        return PolySchedule(self.peak * factor, steps=self.steps, warmup_steps=self.warmup_steps, power=self.power)

    def get_config(self) -> dict[str, Any]:
        return {"peak": self.peak, "steps": self.steps, "warmup_steps": self.warmup_steps, "power": self.power}


# Creates a legacy Keras optimizer, whose slots can be created before the first step, for a learning rate.
CreateOptimizer = Callable[[PolySchedule], Any]


def adam(beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-7) -> CreateOptimizer:
    """Adam. As in Keras, `epsilon` is added to the square root of the uncorrected second moment."""

    # The legacy class has the fastest kernel on a CPU, and both Keras 2 packages have it.
    def create(rate: PolySchedule):
        return keras.optimizers.legacy.Adam(rate, beta_1=beta1, beta_2=beta2, epsilon=epsilon)

    return create


def radam_lookahead(
    beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-7, *, steps: int = 6, step_size: float = 0.5
) -> CreateOptimizer:
    """The paper's RAdam (Liu et al., arXiv 1908.03265) inside LookAhead (Zhang et al., arXiv 1907.08610).

    Args:
      beta1: Decay of the first moment.
      beta2: Decay of the second moment.
      epsilon: Constant added to the square root of the second moment.
      steps: Number of steps after which the slow weights move towards the fast ones, which then continue from there.
      step_size: Share of the distance that the slow weights move, 0..1.

    Raises:
      UserError: TensorFlow Addons is not installed.
    """
    require_addons()
    import tensorflow_addons as tfa

    def create(rate: PolySchedule):
        fast = tfa.optimizers.RectifiedAdam(rate, beta_1=beta1, beta_2=beta2, epsilon=epsilon)
        lookahead = tfa.optimizers.Lookahead(fast, sync_period=steps, slow_step_size=step_size)
        # Otherwise the inner one would create its own counter at the first step, which earlier checkpoints lack.
        fast._iterations = lookahead.iterations
        return lookahead

    return create


def require_addons() -> None:
    """Raises UserError if TensorFlow Addons is not installed."""
    if importlib.util.find_spec("tensorflow_addons") is None:
        raise UserError(
            "training.optimizer.kind radam_lookahead needs TensorFlow Addons, which is not installed; it has releases "
            "for Python 3.9 to 3.11 only: use one of these, or kind: adam"
        )


class Optimizers:
    """Two optimizers: one for the pretrained part of the backbone, and one, at the full rate, for all other variables.

    They must be created in the strategy's scope. Their slots exist afterwards, so a checkpoint can be restored before
    the first step.

    Args:
      model: Model with `trainable_variables` and, among them, `backbone_variables`.
      schedule: Learning rate of variables that are not pretrained.
      backbone_multiplier: Learning rate of the pretrained part, as a share of the schedule.
      create: Creates each optimizer; Adam by default.
      weight_decay: Share of the learning rate by which kernels shrink at each step (decoupled weight decay, Loshchilov
        and Hutter, arXiv 1711.05101).
      gradient_clip_norm: Largest norm of the gradient over all variables; a larger one is scaled down. 0: no limit.
      loss_scale: Loss scale of a model that computes in float16. `apply` takes unscaled gradients.

    Attributes:
      variables: All trainable variables, in the order of the gradients.
    """

    def __init__(
        self,
        model: Any,
        schedule: PolySchedule,
        *,
        backbone_multiplier: float,
        create: CreateOptimizer | None = None,
        weight_decay: float = 0.0,
        gradient_clip_norm: float = 0.0,
        loss_scale: LossScale | None = None,
    ):
        create = create or adam()
        self.variables: tuple[tf.Variable, ...] = tuple(model.trainable_variables)
        backbone = {id(variable) for variable in model.backbone_variables}
        self._in_backbone = tuple(id(variable) in backbone for variable in self.variables)
        self.base = create(schedule)
        self.backbone = create(schedule.scaled(backbone_multiplier))
        for optimizer, variables in ((self.base, self._group(False)), (self.backbone, self._group(True))):
            optimizer._create_all_weights(variables)  # Legacy optimizers have no public build().
        self._gradient_clip_norm = gradient_clip_norm
        self.loss_scale = loss_scale
        self._weight_decay = weight_decay
        self._decayed = {id(kernel) for kernel in kernels_of(model)} if weight_decay else set()

    @property
    def by_name(self) -> dict[str, Any]:
        """The optimizers and the loss scale, if any, by their names in a checkpoint."""
        loss_scale = {"loss_scale": self.loss_scale} if self.loss_scale else {}
        return {"optimizer": self.base, "backbone_optimizer": self.backbone, **loss_scale}

    @property
    def slot_variables(self) -> list[tf.Variable]:
        """All variables of the optimizers and the loss scale."""
        return [*self.base.weights, *self.backbone.weights, *(self.loss_scale.variables if self.loss_scale else ())]

    def apply(self, gradients: Sequence[tf.Tensor], norm: tf.Tensor | None = None) -> None:
        """Applies one step, in replica context.

        Args:
          gradients: Gradients of `variables`, in their order, summed over the replicas.
          norm: Global norm of the gradients, if it is known.
        """
        if self._gradient_clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, self._gradient_clip_norm, use_norm=norm)
        pairs = list(zip(gradients, self.variables))
        for optimizer, wanted in ((self.base, False), (self.backbone, True)):
            group = [pair for pair, inside in zip(pairs, self._in_backbone) if inside == wanted and pair[0] is not None]
            if group:
                self._decay(optimizer, [variable for _, variable in group])
                optimizer.apply_gradients(group, experimental_aggregate_gradients=False)

    def restart(self) -> None:
        """Starts again from the current values of the variables, after they were loaded.

        LookAhead's slow weights would otherwise pull them back to their initial values.
        """
        for optimizer, in_backbone in ((self.base, False), (self.backbone, True)):
            if "slow" in optimizer.get_slot_names():
                for variable in self._group(in_backbone):
                    optimizer.get_slot(variable, "slow").assign(variable)

    def learning_rates(self, step) -> dict[str, tf.Tensor]:
        """The two learning rates at a step, by the names of their curves."""
        return {
            "learning_rate": self.base.learning_rate(step),
            "backbone_learning_rate": self.backbone.learning_rate(step),
        }

    def _decay(self, optimizer: Any, variables: Sequence[tf.Variable]) -> None:
        kernels = [variable for variable in variables if id(variable) in self._decayed]

        def shrink(strategy: tf.distribute.Strategy):
            share = self._weight_decay * optimizer.learning_rate(optimizer.iterations)
            for kernel in kernels:
                strategy.extended.update(kernel, lambda copy, share: copy.assign_sub(share * copy), args=(share,))

        if kernels:
            tf.distribute.get_replica_context().merge_call(shrink)  # A replica by itself must not assign.

    def _group(self, in_backbone: bool) -> list[tf.Variable]:
        return [v for v, inside in zip(self.variables, self._in_backbone) if inside == in_backbone]


def kernels_of(model: tf.Module) -> list[tf.Variable]:
    """The kernels of dense layers, convolutions and attention: no biases, batch norms, tables or memory."""
    found = (
        getattr(layer, name, None)
        for layer in model.submodules
        for name in ("kernel", "depthwise_kernel", "qkv_kernel")
    )
    return [kernel for kernel in found if isinstance(kernel, tf.Variable)]
