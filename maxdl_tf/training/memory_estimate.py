"""Estimates the memory of a training step from its graph, before the step runs."""

from __future__ import annotations

import collections
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import tensorflow as tf

from maxdl_tf import process_memory

_LOOPS = frozenset(("StatelessWhile", "While"))
# Operations whose results share the memory of their inputs, one by one, or of a variable.
_KINDS_OF_ALIASES = """
    EnsureShape ExpandDims Identity IdentityN PreventGradient ReadVariableOp Reshape Squeeze StopGradient
"""
_ALIASES = _LOOPS.union(_KINDS_OF_ALIASES.split())
# Operations that overwrite an input of the same size that is not needed any more.
_KINDS_IN_PLACE = """
    Abs Add AddN AddV2 BiasAdd Erf Erfc Exp FusedBatchNormGradV3 FusedBatchNormV3 Log Maximum Minimum Mul Neg RealDiv
    Relu Relu6 Relu6Grad ReluGrad Rsqrt RsqrtGrad Sigmoid SigmoidGrad Softmax Sqrt Square Sub Tanh TanhGrad
"""
_IN_PLACE = frozenset(_KINDS_IN_PLACE.split())
# Memory that TensorFlow 2.15 takes on a CPU to optimize and run an operation, without its result. Measured: 27 kB for
# tiny, 32 kB for S.
_BYTES_PER_OPERATION = 30_000


class MemoryEstimate(NamedTuple):
    """Bytes that a step takes on each accelerator, or in the process if it trains on CPUs.

    Attributes:
      variables: Weights, optimizer slots, EMA and sums of gradients.
      tensors: Largest size of all activations, gradients and other results that exist at the same time.
      runtime: Python, TensorFlow and the graph, on CPUs. 0 on accelerators, where it is unknown.
      available: Memory of the device or the machine; None if unknown.
    """

    variables: int
    tensors: int
    runtime: int
    available: int | None

    @property
    def total(self) -> int:
        return self.variables + self.tensors + self.runtime

    def lines(self) -> list[str]:
        """Human-readable lines: the estimate, and what to change if it exceeds the available memory."""
        parts = {
            "weights and optimizer": self.variables,
            "activations and gradients": self.tensors,
            "TensorFlow": self.runtime,
        }
        listed = ", ".join(f"{name} {_gigabytes(size)}" for name, size in parts.items() if size >= 5e7)
        lines = [f"memory: about {_gigabytes(self.total)} GB ({listed})"]
        if self.available is not None and self.total > self.available:
            lines.append(
                f"warning: only {_gigabytes(self.available)} GB are available; to use less, set model "
                "{ recompute: all }, training { precision: mixed_bfloat16 } or more training { accumulate_steps }, or "
                "make train_dataset { crop_size } smaller"
            )
        return lines


def estimate(
    operations: Sequence[tf.Operation], variables: Iterable[tf.Variable], devices: Sequence[str]
) -> MemoryEstimate:
    """Estimates the memory of a traced step; see `peak_of_results`.

    Args:
      operations: Operations of the step, of all replicas of this process.
      variables: Variables that last from step to step.
      devices: Names of this process's devices, one for each replica.
    """
    kept = sum(variable.shape.num_elements() * variable.dtype.size for variable in variables)
    if tf.DeviceSpec.from_string(devices[0]).device_type == "CPU":
        variables, tensors = kept * len(devices), peak_of_results(operations)
        now = process_memory.resident_bytes()
        # The variables exist already.
        runtime = max(now - variables, 0) + len(operations) * _BYTES_PER_OPERATION
        return MemoryEstimate(variables, tensors, runtime, _machine_bytes())
    # Replicas are alike, so only the operations on the first device count.
    own = [operation for operation in operations if not operation.device or _same(operation.device, devices[0])]
    return MemoryEstimate(kept, peak_of_results(own), 0, _device_bytes(devices[0]))


def peak_of_results(operations: Iterable[tf.Operation]) -> int:
    """Largest number of bytes that the results of operations take at any time, if they run in this order.

    A result exists from the operation that makes it to the last one that reads it. Activations that the backward pass
    reads therefore exist until then. Those of one pass through a loop exist while the loop runs. Results of unknown
    size, and temporary memory of other operations, do not count.

    Args:
      operations: Operations of one graph, each after those that it depends on.
    """
    operations = list(operations)
    result_of: dict[int, int] = {}  # Number of the memory of each tensor.
    sizes: list[int] = []
    last_reader: list[int] = []
    made_by: list[list[int]] = []  # Numbers of the results of each operation.
    for time, operation in enumerate(operations):
        made_by.append([])
        for tensor in operation.inputs:
            if id(tensor) in result_of:
                last_reader[result_of[id(tensor)]] = time
        for number, tensor in enumerate(operation.outputs):
            if operation.type in _ALIASES:
                if id(operation.inputs[number]) in result_of:
                    result_of[id(tensor)] = result_of[id(operation.inputs[number])]
                continue
            result_of[id(tensor)] = len(sizes)
            made_by[time].append(len(sizes))
            sizes.append(_bytes_of(tensor))
            last_reader.append(time)

    freed_by = collections.defaultdict(list)
    for result, time in enumerate(last_reader):
        freed_by[time].append(result)
    live = peak = 0
    for time, operation in enumerate(operations):
        live += sum(sizes[result] for result in made_by[time])
        peak = max(peak, live - _written_over(operation, made_by[time], freed_by[time], sizes) + _in_loop(operation))
        live -= sum(sizes[result] for result in freed_by[time])
    return peak


def _written_over(operation: tf.Operation, made: list[int], freed: list[int], sizes: list[int]) -> int:
    """Bytes of the result if it takes the memory of an input, else 0."""
    if operation.type not in _IN_PLACE or not made:
        return 0
    inputs = set(freed) - set(made)
    return sizes[made[0]] if any(sizes[result] == sizes[made[0]] for result in inputs) else 0


def _in_loop(operation: tf.Operation) -> int:
    """Peak of the results inside one pass of a loop, else 0. Its inputs count outside."""
    if operation.type not in _LOOPS:
        return 0
    body = operation.graph._get_function(operation.get_attr("body").name).graph
    return peak_of_results(inner for inner in body.get_operations() if inner.type != "Placeholder")


def _bytes_of(tensor: tf.Tensor) -> int:
    values = tensor.shape.num_elements() if tensor.shape.rank is not None else None
    counts = tensor.dtype.is_floating or tensor.dtype.is_integer or tensor.dtype.is_bool
    return values * tensor.dtype.size if values and counts else 0


def _same(device: str, other: str) -> bool:
    """Whether two names, the first of which may be incomplete, can mean the same device."""
    mine, theirs = (tf.DeviceSpec.from_string(name) for name in (device, other))
    return (mine.device_type, mine.device_index) == (theirs.device_type, theirs.device_index)


def _machine_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _device_bytes(device: str) -> int | None:
    """Memory of an accelerator that TensorFlow may use."""
    # No function of tf.config reports it: get_memory_info() gives only what is in use.
    with tf.compat.v1.Session() as session:
        for known in session.list_devices():
            if _same(known.name, device):
                return known.memory_limit_bytes or None
    return None


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f}"
