"""The arithmetic of utilization; speeds themselves are not tested."""

from __future__ import annotations

import pytest
import tensorflow as tf

from maxdl_tf.benchmarks import machine


def test_a_multiply_add_is_two_operations():
    assert machine.model_gflops(multiply_adds=5e9, seconds=2.0) == pytest.approx(5.0)


def test_utilization_is_a_share_of_the_faster_operation():
    assert machine.utilization(10.0, machine.Speed(convolution=40.0, matrix_product=20.0)) == 0.25
    assert machine.utilization(10.0, machine.Speed(convolution=20.0, matrix_product=80.0)) == 0.125


@pytest.mark.parametrize(("seconds_of_a_call", "calls"), [(0.3, 1), (0.06, 4)])
def test_a_speed_is_that_of_enough_calls_to_last(monkeypatch, seconds_of_a_call, calls):
    """A clock that only the operation moves; the first call traces and takes longer."""
    now, counted = [0.0], [0]
    monkeypatch.setattr(machine.time, "monotonic", lambda: now[0])

    def operation():
        now[0] += seconds_of_a_call if counted[0] else 9.0
        counted[0] += 1
        return tf.zeros([2, 2])

    gflops = machine._gflops(operation, multiply_adds=3 * 10**9)
    assert gflops == pytest.approx(6 / seconds_of_a_call)
    tried = sum(2**n for n in range(calls.bit_length()))
    assert counted[0] == 1 + tried + machine._ROUNDS * calls


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_work_of_both_operations_is_counted(monkeypatch, dtype):
    """The counted multiply-adds are those of the tensors that are computed."""
    seen = []

    def gflops(operation, multiply_adds):
        result = operation()
        assert result.dtype == dtype
        seen.append((tuple(result.shape), multiply_adds))
        return float(len(seen))

    monkeypatch.setattr(machine, "_gflops", gflops)
    assert machine.measure_speed(dtype) == machine.Speed(convolution=1.0, matrix_product=2.0)
    (convolved, of_convolution), (multiplied, of_product) = seen
    batch, height, width, channels = convolved
    assert of_convolution == batch * height * width * channels * 9 * channels
    assert of_product == multiplied[0] * multiplied[1] * multiplied[0]
