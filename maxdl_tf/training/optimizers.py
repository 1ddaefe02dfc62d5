"""Learning rates, the two groups of variables that they hold for, and what moves them (architecture section 7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.training.addons import require_addons
from maxdl_tf.training.loss_scale import LossScale


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


# From a learning rate to an optimizer of Keras' legacy kind, whose slots can be made before the first step.
CreateOptimizer = Callable[[PolySchedule], Any]


def adam(beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-7) -> CreateOptimizer:
    """Adam; `epsilon` is added to sqrt(v) uncorrected, as Keras does."""

    # The fused kernel of the legacy class is the fastest on a CPU, and both Keras 2 packages have it.
    def create(rate: PolySchedule):
        return keras.optimizers.legacy.Adam(rate, beta_1=beta1, beta_2=beta2, epsilon=epsilon)

    return create


def radam_lookahead(
    beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-7, *, steps: int = 6, step_size: float = 0.5
) -> CreateOptimizer:
    """The paper's RAdam (Liu et al., arXiv 1908.03265) inside LookAhead (Zhang et al., arXiv 1907.08610).

    Args:
      beta1: RAdam's, as are
      beta2: and
      epsilon: the same as Adam's.
      steps: Every so many steps the slow weights move towards the fast ones, which then start from there.
      step_size: How far they move, 0..1.

    Raises:
      UserError: TensorFlow Addons is not installed.
    """
    require_addons()
    import tensorflow_addons as tfa

    def create(rate: PolySchedule):
        fast = tfa.optimizers.RectifiedAdam(rate, beta_1=beta1, beta_2=beta2, epsilon=epsilon)
        lookahead = tfa.optimizers.Lookahead(fast, sync_period=steps, slow_step_size=step_size)
        # Otherwise the inner one would make a counter of its own at the first step, unknown to earlier checkpoints.
        fast._iterations = lookahead.iterations
        return lookahead

    return create


class Optimizers:
    """One optimizer for the pretrained part of the backbone and one, at the full rate, for all else.

    Must be made in the strategy's scope; the slots exist afterwards, so that a checkpoint can be restored into them
    before the first step.

    Args:
      model: Gives `trainable_variables` and, among them, `backbone_variables`.
      schedule: Rate of what is not pretrained.
      backbone_multiplier: The pretrained part's rate as a share of it.
      create: Makes each of the two.
      weight_decay: Kernels shrink by this share of their rate at each step, apart from the gradient (Loshchilov and
        Hutter, arXiv 1711.05101).
      gradient_clip_norm: A gradient whose norm over all variables is larger is scaled down to it; 0: never.
      loss_scale: Of the loss whose gradient is taken, where the model computes in float16; `apply` gets none of it.
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
        """The optimizers, and the loss scale if there is one, under the names that they have in a checkpoint."""
        loss_scale = {"loss_scale": self.loss_scale} if self.loss_scale else {}
        return {"optimizer": self.base, "backbone_optimizer": self.backbone, **loss_scale}

    @property
    def slot_variables(self) -> list[tf.Variable]:
        """Everything that the optimizers remember between two steps."""
        return [*self.base.weights, *self.backbone.weights, *(self.loss_scale.variables if self.loss_scale else ())]

    def apply(self, gradients: Sequence[tf.Tensor], norm: tf.Tensor | None = None) -> None:
        """One step; call it in replica context.

        Args:
          gradients: Of `variables`, in their order, already summed over the replicas.
          norm: Their global norm, where it is known.
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
        """Tells the optimizers that the variables have been given other values than they were made with.

        LookAhead's slow weights would draw them back to those.
        """
        for optimizer, in_backbone in ((self.base, False), (self.backbone, True)):
            if "slow" in optimizer.get_slot_names():
                for variable in self._group(in_backbone):
                    optimizer.get_slot(variable, "slow").assign(variable)

    def learning_rates(self, step) -> dict[str, tf.Tensor]:
        """The two rates at a step, for curves."""
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
            tf.distribute.get_replica_context().merge_call(shrink)  # Replicas by themselves may not assign.

    def _group(self, in_backbone: bool) -> list[tf.Variable]:
        return [v for v, inside in zip(self.variables, self._in_backbone) if inside == in_backbone]


def kernels_of(model: tf.Module) -> list[tf.Variable]:
    """The weights of linear maps and convolutions, and no biases, batch norms, tables or memory."""
    found = (
        getattr(layer, name, None)
        for layer in model.submodules
        for name in ("kernel", "depthwise_kernel", "qkv_kernel")
    )
    return [kernel for kernel in found if isinstance(kernel, tf.Variable)]
