"""How much memory a training step will take, read off its graph before it runs for the first time."""

from __future__ import annotations

import collections
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import tensorflow as tf

from maxdl_tf import process_memory

# Operations whose result is the memory of their first input, or of a variable.
_KINDS_OF_ALIASES = """
    EnsureShape ExpandDims Identity IdentityN PreventGradient ReadVariableOp Reshape Squeeze StopGradient
"""
_ALIASES = frozenset(_KINDS_OF_ALIASES.split())
# Operations that write their result over an input of the same size which nobody needs any more.
_KINDS_IN_PLACE = """
    Abs Add AddN AddV2 BiasAdd Exp FusedBatchNormGradV3 FusedBatchNormV3 Log Maximum Minimum Mul Neg RealDiv Relu Relu6
    Relu6Grad ReluGrad Rsqrt RsqrtGrad Sigmoid SigmoidGrad Softmax Sqrt Square Sub Tanh TanhGrad
"""
_IN_PLACE = frozenset(_KINDS_IN_PLACE.split())
# What TensorFlow 2.15 takes on a CPU to optimize and run an operation, beside its result: 27 kB measured on tiny, 32
# on S.
_BYTES_PER_OPERATION = 30_000


class MemoryEstimate(NamedTuple):
    """Bytes that a step takes: on each accelerator, or of the process where it trains on CPUs.

    Attributes:
      variables: Weights, slots of the optimizers, averages and sums of gradients.
      tensors: Most that activations, gradients and all other results take at the same time.
      runtime: On CPUs, Python, TensorFlow and the graph; on accelerators 0, because it is not known.
      available: What the device or the machine has; None: not known.
    """

    variables: int
    tensors: int
    runtime: int
    available: int | None

    @property
    def total(self) -> int:
        return self.variables + self.tensors + self.runtime

    def lines(self) -> list[str]:
        """For people: the estimate, and what to change where it is more than there is."""
        parts = {
            "weights and optimizer": self.variables,
            "activations and gradients": self.tensors,
            "TensorFlow": self.runtime,
        }
        listed = ", ".join(f"{name} {_gigabytes(size)}" for name, size in parts.items() if size >= 5e7)
        lines = [f"memory: about {_gigabytes(self.total)} GB ({listed})"]
        if self.available is not None and self.total > self.available:
            lines.append(
                f"warning: there are {_gigabytes(self.available)} GB; to take less, set model {{ recompute: all }}, "
                "training { precision: mixed_bfloat16 } or more training { accumulate_steps }, or make train_dataset "
                "{ crop_size } smaller"
            )
        return lines


def estimate(
    operations: Sequence[tf.Operation], variables: Iterable[tf.Variable], devices: Sequence[str]
) -> MemoryEstimate:
    """The estimate for a traced step; see `peak_of_results`.

    Args:
      operations: Those of the step, of all replicas of this process.
      variables: All that is kept from step to step.
      devices: Of this process, one for each replica.
    """
    kept = sum(variable.shape.num_elements() * variable.dtype.size for variable in variables)
    if tf.DeviceSpec.from_string(devices[0]).device_type == "CPU":
        variables, tensors = kept * len(devices), peak_of_results(operations)
        now = process_memory.resident_bytes()
        # The variables exist already.
        runtime = max(now - variables, 0) + len(operations) * _BYTES_PER_OPERATION
        return MemoryEstimate(variables, tensors, runtime, _machine_bytes())
    # Replicas are alike: those operations count that run on the first one's device.
    own = [operation for operation in operations if not operation.device or _same(operation.device, devices[0])]
    return MemoryEstimate(kept, peak_of_results(own), 0, _device_bytes(devices[0]))


def peak_of_results(operations: Iterable[tf.Operation]) -> int:
    """Most bytes that the results of operations take at any time, if they run in this order.

    A result is kept from the operation that makes it to the last one that reads it: so what the forward pass makes for
    the backward pass is kept until that has come there. Results of unknown size count as nothing, and so does what an
    operation needs while it runs.

    Args:
      operations: Of one graph, each behind those that it depends on.
    """
    operations = list(operations)
    result_of: dict[int, int] = {}  # From a tensor to the number of its memory.
    sizes: list[int] = []
    last_reader: list[int] = []
    made_by: list[list[int]] = []  # From an operation to the numbers of what it makes.
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
        peak = max(peak, live - _written_over(operation, made_by[time], freed_by[time], sizes))
        live -= sum(sizes[result] for result in freed_by[time])
    return peak


def _written_over(operation: tf.Operation, made: list[int], freed: list[int], sizes: list[int]) -> int:
    """Bytes of a result for which the operation takes the memory of an input."""
    if operation.type not in _IN_PLACE or not made:
        return 0
    inputs = set(freed) - set(made)
    return sizes[made[0]] if any(sizes[result] == sizes[made[0]] for result in inputs) else 0


def _bytes_of(tensor: tf.Tensor) -> int:
    values = tensor.shape.num_elements() if tensor.shape.rank is not None else None
    counts = tensor.dtype.is_floating or tensor.dtype.is_integer or tensor.dtype.is_bool
    return values * tensor.dtype.size if values and counts else 0


def _same(device: str, other: str) -> bool:
    """Whether two names, of which the first may be incomplete, can be one device's."""
    mine, theirs = (tf.DeviceSpec.from_string(name) for name in (device, other))
    return (mine.device_type, mine.device_index) == (theirs.device_type, theirs.device_index)


def _machine_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _device_bytes(device: str) -> int | None:
    """What TensorFlow may use of an accelerator."""
    with tf.compat.v1.Session() as session:
        for known in session.list_devices():
            if _same(known.name, device):
                return known.memory_limit_bytes or None
    return None


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f}"
