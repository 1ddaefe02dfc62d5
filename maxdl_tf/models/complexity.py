"""Parameters of a model and multiply-adds of one image, counted from the graph of its operations.

What is counted is what published figures count: the multiplications of convolutions, matrix products and attention,
each with its addition as one. Batch norms, activations, softmax, pooling, resizing and additions are not. A padded
border counts as if it were image. By this rule S and L come to their published 325.8 and 3,691.9 billion at 1025 x
1025, with all of attention in them, its relative positions included, and with neither the auxiliary semantic branch nor
the postprocessing.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from maxdl_tf.keras_api import keras
from maxdl_tf.structs import PanopticOutputs

_CONVOLUTIONS = {"Conv2D": 3, "DepthwiseConv2dNative": 2}  # Axes of the kernel that each output value sums over.
_MATRIX_PRODUCTS = {"MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"}
# Kinds that move or make values or work on them one by one. Any kind that is not here nor counted stops the count, so
# that no product is left out because nobody thought of it.
_FREE_KINDS = """
    Add AddN AddV2 ArgMax AvgPool BatchToSpaceND BiasAdd BroadcastTo Cast ConcatV2 Const Cos Erf Erfc Exp ExpandDims
    Fill FusedBatchNormV3 GatherV2 Identity IdentityN Log Max MaxPool Maximum Mean Min Minimum Mul Neg NoOp OneHot Pack
    Pad PadV2 Placeholder PlaceholderWithDefault Range ReadVariableOp RealDiv Relu Relu6 Reshape ResizeBilinear
    ResizeNearestNeighbor Rsqrt SelectV2 Shape Sigmoid Sin Slice Softmax SpaceToBatchND Split SplitV Sqrt Square
    SquaredDifference Squeeze StopGradient StridedSlice Sub Sum Tanh Tile Transpose Unpack VarHandleOp
"""
_FREE = frozenset(_FREE_KINDS.split())


class Complexity(NamedTuple):
    """Size of a model and work of one image.

    Attributes:
      parameters: Values of all trainable variables.
      parameters_without_semantic: The same without the auxiliary semantic branch.
      multiply_adds: Number of multiply-adds for all outputs of one image.
      multiply_adds_without_semantic: The same for the outputs that a panoptic map needs.
    """

    parameters: int
    parameters_without_semantic: int
    multiply_adds: int
    multiply_adds_without_semantic: int


def measure(build_model: Callable[[], Any], image_size: tuple[int, int]) -> Complexity:
    """Builds a model in a graph of its own, where weights take no memory, and counts.

    Args:
      build_model: Makes a `MaXDeepLab`, or another network of images [batch, height, width, 3].
      image_size: (height, width) of the image.

    Raises:
      ValueError: As `multiply_adds`.
    """
    with _in_graph(build_model, image_size) as (model, outputs):
        inference_outputs = outputs
        if isinstance(outputs, PanopticOutputs):
            inference_outputs = outputs._replace(semantic_logits=None)
        return Complexity(
            parameters=_count_values(model.trainable_variables),
            parameters_without_semantic=parameters_without_semantic(model),
            multiply_adds=multiply_adds(outputs),
            multiply_adds_without_semantic=multiply_adds(inference_outputs),
        )


def frozen_multiply_adds(build_model: Callable[[], Any], image_size: tuple[int, int]) -> int:
    """The part of `Complexity.multiply_adds` before the first trainable variable, which needs no gradient.

    Args and errors are those of `measure`.
    """
    with _in_graph(build_model, image_size) as (model, outputs):
        pending = [variable.handle.op for variable in model.trainable_variables]
        trained = set(pending)
        while pending:
            behind = {consumer for tensor in pending.pop().outputs for consumer in tensor.consumers()}
            pending.extend(behind - trained)
            trained |= behind
        return sum(
            _multiply_adds_of(operation) for operation in _operations_behind(outputs) if operation not in trained
        )


@contextlib.contextmanager
def _in_graph(build_model: Callable[[], Any], image_size: tuple[int, int]) -> Iterator[tuple[Any, Any]]:
    """Builds a model and its outputs for an image in a graph of its own."""
    with tf.Graph().as_default():
        model = build_model()
        yield model, model(tf.zeros([1, *image_size, 3]), training=False)
    # In a graph, Keras gives the classes of layers other bases, which break the layers that were made before. Making an
    # instance outside of the graph gives them back.
    for kind in {type(layer) for layer in (model, *model.submodules) if isinstance(layer, keras.layers.Layer)}:
        kind.__new__(kind)


def parameters_without_semantic(model: Any) -> int:
    """Values of a model's trainable variables, but for an auxiliary semantic branch."""
    branch = [getattr(model, name, None) for name in ("semantic_decoder", "semantic_head")]
    in_branch = sum(_count_values(layer.trainable_variables) for layer in branch if layer)
    return _count_values(model.trainable_variables) - in_branch


def _count_values(variables: Iterable[tf.Variable]) -> int:
    return sum(variable.shape.num_elements() for variable in variables)


def multiply_adds(outputs: Any) -> int:
    """The multiply-adds behind tensors of a graph.

    Args:
      outputs: Tensors in any nesting; None stands for no tensor.

    Raises:
      ValueError: If they depend on an operation of a kind that is not known here, or of unknown shape.
    """
    return sum(_multiply_adds_of(operation) for operation in _operations_behind(outputs))


def _operations_behind(outputs: Any) -> Iterator[tf.Operation]:
    """Each operation that tensors in any nesting depend on, once."""
    pending, seen = [tensor.op for tensor in tf.nest.flatten(outputs) if tensor is not None], set()
    while pending:
        operation = pending.pop()
        if operation not in seen:
            seen.add(operation)
            yield operation
            pending.extend(tensor.op for tensor in operation.inputs)
            pending.extend(operation.control_inputs)


def _multiply_adds_of(operation: tf.Operation) -> int:
    if operation.type in _FREE:
        return 0
    if operation.type in _CONVOLUTIONS:
        kernel = _shape(operation, operation.inputs[1])
        return math.prod(_convolved_shape(operation)) * math.prod(kernel[: _CONVOLUTIONS[operation.type]])
    if operation.type in _MATRIX_PRODUCTS:
        transposed = operation.get_attr("transpose_a" if operation.type == "MatMul" else "adj_x")
        summed = _shape(operation, operation.inputs[0])[-2 if transposed else -1]
        return math.prod(_shape(operation, operation.outputs[0])) * summed
    if operation.type == "Einsum":
        return _einsum(operation)
    raise ValueError(
        f"operation {operation.name} is of kind {operation.type}, of which is not known whether it multiplies; say in "
        f"{__name__} how to count it, or that it is free"
    )


def _convolved_shape(operation: tf.Operation) -> tuple[int, ...]:
    """Shape of a convolution's result.

    An atrous one may run on the image cut into interleaved parts, which are padded to equal sizes; its result is what
    is left when they are joined again.
    """
    (result,) = operation.outputs
    joins = [consumer for consumer in result.consumers() if consumer.type == "BatchToSpaceND"]
    return _shape(operation, joins[0].outputs[0] if joins else result)


def _einsum(operation: tf.Operation) -> int:
    equation = operation.get_attr("equation").decode()
    terms = equation.split("->")[0].split(",")
    if len(terms) == 1:
        return 0  # Moves and sums values of one tensor.
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms, operation.inputs):
        shape = _shape(operation, tensor)
        if len(term) != len(shape):
            raise ValueError(
                f"operation {operation.name}: the axes of {equation!r} do not all have letters; write the equation "
                "without '...'"
            )
        sizes.update(zip(term, shape))
    return math.prod(sizes.values())


def _shape(operation: tf.Operation, tensor: tf.Tensor) -> tuple[int, ...]:
    if not tensor.shape.is_fully_defined():
        raise ValueError(
            f"operation {operation.name} ({operation.type}) has the shape {tensor.shape}, not all of it known; give "
            "the network an image of known size"
        )
    return tuple(tensor.shape)
