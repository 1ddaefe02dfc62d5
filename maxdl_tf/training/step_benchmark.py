"""How long a training step takes, on what the time goes, and how much memory it needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from maxdl_tf import process_memory
from maxdl_tf.training.step import Loss, Trainer


class StepTimes(NamedTuple):
    """What was measured, on one device.

    Attributes:
      first_step_seconds: From the first call until the first step has ended: tracing, optimizing, running.
      seconds_per_step: Median of the steps after it.
      peak_memory_bytes: Most memory that the process had in use until then, all of Python and TensorFlow included.
      estimated_peak_memory_bytes: What was expected of that before the first step; see `memory_estimate`.
      tracing_seconds: To trace forward pass, loss and gradient once more.
      shares: Of `seconds_per_step`, by part: "input" is the wait for batches, "optimizer" all that the rest leaves.
    """

    first_step_seconds: float
    seconds_per_step: float
    peak_memory_bytes: int
    estimated_peak_memory_bytes: int | None
    tracing_seconds: float
    shares: dict[str, float]


def measure_steps(trainer: Trainer, model: Any, loss: Loss, batch: Any, *, steps: int, parts: int = 1) -> StepTimes:
    """Runs some steps as they are in training, then their parts by themselves.

    Args:
      trainer: Has done no step yet.
      model: What it trains.
      loss: By which.
      batch: Has `images` and `targets`, as its batches.
      steps: How many of each are run; medians are taken.
      parts: Batches of one step.
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
    """Median time of a call, after one that is not counted."""
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
