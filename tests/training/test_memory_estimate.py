"""The memory of a step, against small graphs counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from maxdl_tf.losses.panoptic import PanopticLoss
from maxdl_tf.training import memory_estimate
from maxdl_tf.training.memory_estimate import MemoryEstimate, peak_of_results
from tests.training import fakes
from tests.training.test_step import build

SIDE = 100
UNIT = 4 * SIDE * SIDE  # Bytes of a matrix.


def operations_of(function, *shapes):
    specs = [tf.TensorSpec(shape) for shape in shapes or [(SIDE, SIDE)]]
    return tf.function(function, autograph=False).get_concrete_function(*specs).graph.get_operations()


def peak_of(function, *shapes):
    """In matrices, without the few bytes of constants."""
    return round(peak_of_results(operations_of(function, *shapes)) / UNIT, 2)


def test_what_nobody_reads_any_more_makes_room():
    assert peak_of(lambda x: tf.cos(tf.cos(tf.cos(x)))) == 2
    assert peak_of(lambda x: tf.reduce_sum(tf.cos(x))) == 2
    assert peak_of(lambda x: tf.concat([tf.cos(x), tf.sin(x)], axis=0)) == 2 + 2  # Both, and behind each other.


def test_results_are_written_over_their_inputs_but_not_over_what_is_still_read():
    assert peak_of(lambda x: tf.nn.relu(tf.exp(x))) == peak_of(lambda x: tf.nn.gelu(tf.exp(x))) - 1 == 1
    assert peak_of(lambda x: tf.matmul(tf.nn.relu(x), x)) == 3
    assert peak_of(lambda x: tf.nn.relu(tf.reshape(tf.transpose(x), [-1]))) == 2


def gradient_of_layers(count, recompute=False):
    """Matrix products with a cosine behind each; the backward pass reads the inputs of both."""

    def layer(x, w):
        return tf.cos(tf.matmul(x, w))

    def block(x, w):
        for _ in range(5):
            x = layer(x, w)
        return x

    def step(x, w):
        with tf.GradientTape() as tape:
            tape.watch((x, w))
            y = x
            for _ in range(count // 5):
                y = tf.recompute_grad(block)(y, w) if recompute else block(y, w)
            loss = tf.reduce_sum(y)
        return tape.gradient(loss, [x, w])

    return peak_of(step, (SIDE, SIDE), (SIDE, SIDE))


def test_what_the_backward_pass_reads_is_kept_until_then():
    few, many = gradient_of_layers(10), gradient_of_layers(20)
    assert many - few == pytest.approx(2 * 10, abs=1)  # The inputs of ten products and of ten cosines.
    assert many > 2 * 20
    few, many = (gradient_of_layers(count, recompute=True) for count in (20, 40))
    assert many - few < 2 * 20 / 2 and many < gradient_of_layers(40) / 2


def test_a_loop_takes_what_one_pass_takes():
    def loop(x, passes):
        return tf.map_fn(lambda i: tf.reduce_sum(tf.matmul(tf.cos(i + x), x)), tf.range(passes), parallel_iterations=1)

    # The input, and in the loop the sum and its cosine, or the cosine and the product.
    assert peak_of(lambda x: loop(x, 2.0)) == peak_of(lambda x: loop(x, 5.0)) == 1 + 2


def test_of_accelerators_one_replica_counts(monkeypatch):
    monkeypatch.setattr(memory_estimate, "_device_bytes", lambda device: 2 * UNIT)

    def on_two(x):
        with tf.device("/device:GPU:0"):
            first = tf.cos(x) + tf.sin(x)
        with tf.device("/device:GPU:1"):
            return first, tf.cos(x) + tf.sin(x) + tf.tan(x) + tf.acos(x)

    devices = [f"/job:localhost/replica:0/task:0/device:GPU:{number}" for number in range(2)]
    estimate = memory_estimate.estimate(operations_of(on_two), [tf.zeros([SIDE, SIDE])], devices)
    assert (estimate.variables, estimate.runtime, estimate.available) == (UNIT, 0, 2 * UNIT)
    assert estimate.tensors == 3 * UNIT  # The image, and a cosine and a sine.
    assert "to use less, set model { recompute: all }" in estimate.lines()[1]


def test_lines():
    estimate = MemoryEstimate(900_000_000, 3_020_000_000, 500_000_000, available=16_000_000_000)
    assert estimate.lines() == [
        "memory: about 4.4 GB (weights and optimizer 0.9, activations and gradients 3.0, TensorFlow 0.5)"
    ]
    estimate = MemoryEstimate(900_000_000, 16_000_000_000, 0, available=15_900_000_000)
    told, warning = estimate.lines()
    assert told == "memory: about 16.9 GB (weights and optimizer 0.9, activations and gradients 16.0)"
    assert warning.startswith("warning: only 15.9 GB are available; to use less,")


def test_a_step_that_was_estimated_is_not_traced_again():
    traced = []

    class Loss(PanopticLoss):
        def __call__(self, outputs, targets):
            traced.append(outputs.mask_logits.shape[0])
            return super().__call__(outputs, targets)

    trainer, model, optimizers, _ = build(loss=Loss(fakes.DATASET_INFO))
    estimate = trainer.estimate_memory()
    trainer.train(tf.constant(3))
    assert trainer.estimate_memory().tensors == estimate.tensors
    assert traced == [4]
    kept = [*model.variables, *optimizers.slot_variables]
    assert estimate.variables == sum(np.asarray(variable).nbytes for variable in kept)
    assert estimate.runtime > 1e8 and estimate.available > estimate.total


def test_smaller_parts_take_less_and_an_ema_more():
    whole = build(batch_size=8, batches=fakes.train_batches(8))[0].estimate_memory()
    parts, model, *_ = build(batch_size=8, batches=fakes.train_batches(2), accumulate_steps=4, ema_decay=0.5)
    parts = parts.estimate_memory()
    assert 3 < whole.tensors / parts.tensors < 4.5
    weights = sum(variable.numpy().nbytes for variable in model.trainable_variables)
    statistics = sum(variable.numpy().nbytes for variable in model.non_trainable_variables)
    assert parts.variables - whole.variables == 2 * weights + statistics
