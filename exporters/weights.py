"""Which tensors of an ONNX graph can be packed or pruned, and what each is used for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from exporters.files import tensor_bytes
from exporters.proto import all_nodes

Array = NDArray[Any]

LEAST_BYTES = 256  # smaller tensors cost more to describe than they hold
NO_OVERRIDE_IR = 4  # from this IR version on, an initializer among the inputs is a default that callers may replace
_KINDS = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.INT8: "int8"}


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of a graph.

    Attributes:
        channel_axis: the axis that counts output channels.
        product: it is the weight of a convolution or matrix product.
        bias: it is the bias of one.
    """

    name: str
    array: Array
    channel_axis: int
    product: bool
    bias: bool = False


@dataclass(frozen=True, slots=True)
class Left:
    """A tensor that stays as it is, and why."""

    name: str
    bytes: int
    reason: str


def weights(model: ModelProto, *, least_bytes: int = LEAST_BYTES) -> tuple[list[Weight], list[Left]]:
    """(tensors of the outer graph that may be packed, tensors left alone), both in the file's order."""
    graph = model.graph
    outputs = {value.name for value in graph.output}
    inputs = {value.name for value in graph.input} if model.ir_version >= NO_OVERRIDE_IR else set()
    uses, biases = product_axes(graph), _biases(graph)
    found: list[Weight] = []
    left: list[Left] = []
    for tensor in graph.initializer:
        reason = _unfit(tensor, outputs, inputs, least_bytes)
        if reason:
            left.append(Left(tensor.name, tensor_bytes(tensor), reason))
            continue
        array = numpy_helper.to_array(tensor)
        axis = uses.get(tensor.name)
        place = 0 if axis is None else axis % max(array.ndim, 1)
        found.append(Weight(tensor.name, array, place, axis is not None, tensor.name in biases))
    return found, left


def _unfit(tensor: TensorProto, outputs: set[str], inputs: set[str], least_bytes: int) -> str:
    if tensor.data_type not in _KINDS:
        return f"its type {TensorProto.DataType.Name(tensor.data_type).lower()} is not packed"
    if tensor_bytes(tensor) < least_bytes:
        return "too small to gain anything"
    if tensor.name in outputs:
        return "it is an output of the graph"
    if tensor.name in inputs:
        return "it is also an input of the graph: callers may replace it"
    return ""


def product_axes(graph: GraphProto) -> dict[str, int]:
    """Axis of the output channels (from the front, or negative) of each name that feeds a convolution or product."""
    axes: dict[str, int] = {}
    for node in all_nodes(graph):
        for name, axis in _product_inputs(node):
            axes.setdefault(name, axis)
    return axes


def _biases(graph: GraphProto) -> set[str]:
    """Names that are nothing but the third input of convolutions and Gemm."""
    as_bias: set[str] = set()
    otherwise: set[str] = set()
    for node in all_nodes(graph):
        takes_bias = node.op_type in ("Conv", "ConvTranspose", "Gemm") and node.domain in ("", "ai.onnx")
        for place, name in enumerate(node.input):
            (as_bias if takes_bias and place == 2 else otherwise).add(name)
    return as_bias - otherwise


def _product_inputs(node: NodeProto) -> Iterator[tuple[str, int]]:
    if node.domain not in ("", "ai.onnx"):
        return
    first, second = [*node.input, "", ""][:2]
    if node.op_type == "Conv":
        yield second, 0
    elif node.op_type == "ConvTranspose":
        yield second, 1
    elif node.op_type == "Gemm":
        flags = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        yield second, 0 if flags.get("transB", 0) else 1
        yield first, 1 if flags.get("transA", 0) else 0
    elif node.op_type == "MatMul":
        yield second, -1
        yield first, -2


def constants_to_initializers(graph: GraphProto) -> int:
    """Turn large `Constant` nodes of the outer graph into initializers; returns how many."""
    outputs = {value.name for value in graph.output}
    large = [
        (node, item.t)
        for node in graph.node
        if node.op_type == "Constant" and node.output[0] not in outputs
        for item in node.attribute
        if item.name == "value" and tensor_bytes(item.t) >= LEAST_BYTES
    ]
    for node, tensor in large:
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
        graph.node.remove(node)
    return len(large)


def negative_zeros(array: Array) -> int:
    """How many zeros of `array` carry a minus sign."""
    return int(np.count_nonzero((array == 0) & np.signbit(array))) if array.dtype.kind == "f" else 0
