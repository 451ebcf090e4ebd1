"""Shorter ONNX files without a change of meaning: node names, remarks and intermediate value names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import count

from onnx import GraphProto, ModelProto, NodeProto, defs, helper

from exporters import files
from exporters.proto import all_graphs, all_nodes, rename_values, strip_remarks, value_names

_WINDOW_DEFAULTS = {"dilations": 1, "strides": 1, "pads": 0}  # of convolutions and pools, in every dimension
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def shorten(model: ModelProto, keep: set[str]) -> None:
    """Drop names of nodes, remarks, inferred shapes and default attributes; rename values of the outer graph to ids.

    Args:
        model: changed in place.
        keep: names of values that stay (weights); graph inputs and outputs always stay.
    """
    strip_remarks(model)
    for graph in all_graphs(model.graph):
        graph.ClearField("value_info")
    version = files.opset(model)
    for node in all_nodes(model.graph):
        node.ClearField("name")
        _drop_defaults(node, version)
    graph = model.graph
    fixed = keep | {value.name for value in (*graph.input, *graph.output)}
    rename_values(graph, dict(zip(_often_used_first(graph, fixed), _ids(value_names(graph)), strict=False)))


def _drop_defaults(node: NodeProto, version: int) -> None:
    """Remove attributes that say what the standard says anyway (exporters write all of them)."""
    if node.domain not in ("", "ai.onnx") or not defs.has(node.op_type, version):
        return
    known = defs.get_schema(node.op_type, version).attributes
    windowed = "kernel_shape" in known
    for item in list(node.attribute):
        value = helper.get_attribute_value(item)
        if windowed and item.name in _WINDOW_DEFAULTS:
            usual = set(value) == {_WINDOW_DEFAULTS[item.name]}
        else:
            default = known[item.name].default_value if item.name in known else None
            usual = bool(default and default.type == item.type and helper.get_attribute_value(default) == value)
        if usual:
            node.attribute.remove(item)


def _often_used_first(graph: GraphProto, fixed: set[str]) -> list[str]:
    """Names that the outer graph defines and that may change."""
    defined = [name for node in graph.node for name in node.output if name]
    defined += [tensor.name for tensor in graph.initializer]
    uses = Counter(name for node in all_nodes(graph) for name in node.input)
    return sorted((name for name in defined if name not in fixed), key=lambda name: -uses[name])


def _ids(taken: set[str]) -> Iterator[str]:
    """Base-36 numbers that are no name yet."""
    for number in count():
        text = base36(number)
        if text not in taken:
            yield text


def base36(number: int) -> str:
    """`number` in digits 0-9a-z: 35 gives z, 36 gives 10."""
    text = ""
    while True:
        number, digit = divmod(number, 36)
        text = _DIGITS[digit] + text
        if not number:
            return text
