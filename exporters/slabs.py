"""Layers of 100 MB and more in slabs of output channels, so that unpacking them does not need several times their size.

ONNX Runtime keeps every intermediate of constant folding until all nodes are folded, and copies the inputs of the node
at hand: for one tensor of N numbers, zeros (N), values at their places (N), the shaped tensor (N) and the copy (N). Cut
into twelve slabs, the layer needs one slab of zeros, the values, the shaped slabs and one slab of copies: 2.17 N. The
slabs cannot be put together again by folding (that alone takes 3 N), so each is multiplied by itself and the outputs
are joined: y = [x W_1, .., x W_12]. Every output is the same sum as before. `join_layers` is the way back.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from exporters.proto import all_nodes, value_names

Array = NDArray[Any]

SLAB_BYTES = 34_000_000  # above 32 MiB, the largest block that glibc keeps for itself when it is freed
MOST_SLABS, LEAST_SLABS = 16, 4
ROUND_TO = 16  # output channels of a slab: a multiple of every kernel's block
MARK = "compress.slabs"  # metadata key


@dataclass(frozen=True, slots=True)
class Slab:
    """A part of a weight: `array[part]` of the original named `weight`."""

    weight: str
    part: tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class _Layer:
    """`axis`: that of the output channels in the weight; `output_axis`: in the output."""

    node: NodeProto
    weight: TensorProto
    bias: TensorProto | None
    axis: int
    output_axis: int


def split_layers(model: ModelProto, least: int, worth: Callable[[str, Array], bool]) -> dict[str, Slab]:
    """Cut every layer with `least` weights or more that can be cut and that `worth` accepts; slabs by their new names.

    Left whole: weights that several nodes use, grouped convolutions, and products of a shape that is not understood.
    """
    graph = model.graph
    found: dict[str, Slab] = {}
    records: dict[str, Any] = {}
    for name in [layer.weight.name for layer in _layers(graph, least)]:
        layer = next(layer for layer in _layers(graph, least) if layer.weight.name == name)  # cutting moves the nodes
        array = numpy_helper.to_array(layer.weight)
        if worth(name, array):
            slabs, record = _cut(graph, layer, array)
            found.update(slabs)
            records[name] = record
    if records:
        mark = model.metadata_props.add()
        mark.key, mark.value = MARK, json.dumps(records)
    return found


def join_layers(model: ModelProto) -> None:
    """Make whole layers of slabs again, as they were before `split_layers`."""
    marks = [item for item in model.metadata_props if item.key == MARK]
    for mark in marks:
        for name, record in json.loads(mark.value).items():
            _join(model.graph, name, record)
        model.metadata_props.remove(mark)


def _layers(graph: GraphProto, least: int) -> list[_Layer]:
    uses = Counter(name for node in all_nodes(graph) for name in node.input)
    outside = {value.name for value in (*graph.output, *graph.input)}
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in outside}
    layers = []
    for node in graph.node:
        weight = constants.get(node.input[1]) if len(node.input) > 1 else None
        if weight is None or uses[weight.name] != 1 or int(np.prod(weight.dims)) < least:
            continue
        axes = _axes(node, len(weight.dims))
        bias = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        has_bias = len(node.input) > 2 and bool(node.input[2])
        if axes is None or (has_bias and (bias is None or list(bias.dims) != [weight.dims[axes[0]]])):
            continue
        if weight.dims[axes[0]] >= 2 * ROUND_TO and weight.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
            layers.append(_Layer(node, weight, bias, *axes))
    return layers


def _axes(node: NodeProto, rank: int) -> tuple[int, int] | None:
    """(axis of the output channels in the weight, in the output); None where the layer cannot be cut."""
    if node.domain not in ("", "ai.onnx"):
        return None
    flags = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    if node.op_type == "Gemm":
        return (0 if flags.get("transB", 0) else 1), 1
    if node.op_type == "MatMul" and rank == 2:
        return 1, -1
    return (0, 1) if node.op_type == "Conv" and flags.get("group", 1) == 1 else None


def _cut(graph: GraphProto, layer: _Layer, array: Array) -> tuple[dict[str, Slab], dict[str, Any]]:
    rows = array.shape[layer.axis]
    count = min(MOST_SLABS, max(LEAST_SLABS, array.nbytes // SLAB_BYTES))
    step = -(-rows // (count * ROUND_TO)) * ROUND_TO
    parts = [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
    taken = value_names(graph)
    names = _fresh(layer.weight.name, len(parts), taken)
    biases = _fresh(layer.bias.name, len(parts), taken) if layer.bias is not None else []
    outputs = _fresh(layer.node.output[0], len(parts), taken)
    before = (slice(None),) * layer.axis
    slabs = {name: Slab(layer.weight.name, (*before, part)) for name, part in zip(names, parts, strict=True)}
    for name, slab in slabs.items():
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array[slab.part]), name))
    if layer.bias is not None:
        whole = numpy_helper.to_array(layer.bias)
        for name, part in zip(biases, parts, strict=True):
            graph.initializer.append(numpy_helper.from_array(whole[part], name))
    bias = layer.bias.name if layer.bias is not None else ""
    _replace(graph, [layer.node], _slab_nodes(layer, names, biases, outputs))
    _drop_unused(graph, [layer.weight.name, bias])
    return slabs, {"axis": layer.axis, "slabs": names, "bias": bias, "biases": biases}


def _slab_nodes(layer: _Layer, names: list[str], biases: list[str], outputs: list[str]) -> list[NodeProto]:
    """A node for each slab, and the one that joins their outputs."""
    nodes = []
    for number, output in enumerate(outputs):
        node = NodeProto()
        node.CopyFrom(layer.node)
        node.input[1], node.output[0] = names[number], output
        if biases:
            node.input[2] = biases[number]
        node.ClearField("name")
        nodes.append(node)
    return [*nodes, helper.make_node("Concat", outputs, [layer.node.output[0]], axis=layer.output_axis)]


def _fresh(name: str, count: int, taken: set[str]) -> list[str]:
    while any(f"{name}.{number}" in taken for number in range(count)):
        name += "_"
    names = [f"{name}.{number}" for number in range(count)]
    taken.update(names)
    return names


def _join(graph: GraphProto, weight: str, record: Mapping[str, Any]) -> None:
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    pieces = {name: node for node in graph.node for name in node.input if name in record["slabs"]}
    ordered = [pieces[name] for name in record["slabs"]]
    concat = next(node for node in graph.node if ordered[0].output[0] in node.input)
    node = NodeProto()
    node.CopyFrom(ordered[0])
    node.input[1], node.output[0] = weight, concat.output[0]
    _add(graph, weight, np.concatenate([arrays[name] for name in record["slabs"]], axis=record["axis"]))
    if record["bias"]:
        node.input[2] = record["bias"]
        _add(graph, record["bias"], np.concatenate([arrays[name] for name in record["biases"]]))
    _replace(graph, [*ordered, concat], [node])
    _drop_unused(graph, [*record["slabs"], *record["biases"]])


def _add(graph: GraphProto, name: str, array: Array) -> None:
    if all(tensor.name != name for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(array, name))


def _replace(graph: GraphProto, old: list[NodeProto], new: list[NodeProto]) -> None:
    """Put `new` where the first of `old` stands."""
    gone = {id(node) for node in old}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if id(node) == id(old[0]):
            nodes.extend(new)
        elif id(node) not in gone:
            copy = NodeProto()
            copy.CopyFrom(node)
            nodes.append(copy)
    del graph.node[:]
    graph.node.extend(nodes)


def _drop_unused(graph: GraphProto, names: list[str]) -> None:
    used = {name for node in all_nodes(graph) for name in node.input} | {value.name for value in graph.output}
    for tensor in [t for t in graph.initializer if t.name in names and t.name not in used]:
        graph.initializer.remove(tensor)


__all__ = ["MARK", "Slab", "join_layers", "split_layers"]
