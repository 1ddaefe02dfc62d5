"""Time and memory of a training step, and the parts of that time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from maxdl_tf import process_memory
from maxdl_tf.training.step import Loss, Trainer


class StepTimes(NamedTuple):
    """Measurements on one device. Times are medians, which one slow step does not move.

    Attributes:
      first_step_seconds: From the first call to the end of the first step: tracing, optimizing and running.
      seconds_per_step: Median of the steps after the first.
      peak_memory_bytes: Largest memory of the process so far, including Python and TensorFlow.
      estimated_peak_memory_bytes: Estimate of it before the first step; see `memory_estimate`. None on TPUs.
      tracing_seconds: Time to trace forward pass, loss and gradient once more.
      shares: Shares of `seconds_per_step`: "forward", "loss", "backward", "input" (waiting for batches) and
        "optimizer" (the rest).
    """

    first_step_seconds: float
    seconds_per_step: float
    peak_memory_bytes: int
    estimated_peak_memory_bytes: int | None
    tracing_seconds: float
    shares: dict[str, float]


def measure_steps(trainer: Trainer, model: Any, loss: Loss, batch: Any, *, steps: int, parts: int = 1) -> StepTimes:
    """Times whole training steps, then forward pass, loss and gradient by themselves.

    Args:
      trainer: Trainer before its first step.
      model: Model of the trainer.
      loss: Loss of the trainer.
      batch: Batch with `images` and `targets`, as the trainer's.
      steps: Number of timed calls of each; the medians count.
      parts: Number of batches in a step.
    """
    start = time.monotonic()
    estimate = trainer.estimate_memory()
    trainer.train(tf.constant(1))
    first = time.monotonic() - start
    seconds, waits = [], []
    for _ in range(steps):
        start = time.monotonic()
        waits.append(trainer.train(tf.constant(1))["input/wait_share"])
        seconds.append(time.monotonic() - start)
    step = float(np.median(seconds))
    peak = process_memory.peak_bytes()

    def forward():
        return model(batch.images, training=True)

    def forward_and_loss():
        return tf.reduce_mean(loss(forward(), batch.targets).total)

    def gradient():
        with tf.GradientTape() as tape:
            value = forward_and_loss()
        return value, tape.gradient(value, model.trainable_variables)

    tracing, gradient_seconds = _timed(gradient, steps)
    loss_seconds, forward_seconds = (median_seconds(function, steps) for function in (forward_and_loss, forward))
    shares = {
        "forward": forward_seconds * parts / step,
        "loss": max(loss_seconds - forward_seconds, 0.0) * parts / step,
        "backward": max(gradient_seconds - loss_seconds, 0.0) * parts / step,
        "input": float(np.median(waits)),
    }
    shares["optimizer"] = max(1.0 - sum(shares.values()), 0.0)
    return StepTimes(first, step, peak, estimate.total if estimate else None, tracing, shares)


def median_seconds(function: Callable[[], Any], count: int) -> float:
    """Median time of `count` calls after a first one."""
    return _timed(function, count)[1]


def _timed(function: Callable[[], Any], count: int) -> tuple[float, float]:
    """(seconds to trace, median seconds of a call)."""
    graph = tf.function(function, autograph=False)
    start = time.monotonic()
    graph.get_concrete_function()
    tracing = time.monotonic() - start
    graph()
    seconds = []
    for _ in range(count):
        start = time.monotonic()
        tf.nest.flatten(graph())[0].numpy()  # Waits for a GPU.
        seconds.append(time.monotonic() - start)
    return tracing, float(np.median(seconds))
