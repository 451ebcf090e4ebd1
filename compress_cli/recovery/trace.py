"""A network as a graph of operators: which run on stored weights, what depends on what, and running parts of it.

The graph comes from `torch.export` in evaluation mode, made functional, so that no operator writes into a value that
is kept. The module's own parameters and buffers are read whenever a part runs: what recovery writes counts at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node

from compress_cli.recovery.errors import CannotTrace
from compress_cli.recovery.geometry import Geometry, Kind
from profilers.modes import eval_mode

_aten = torch.ops.aten


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One use of a stored weight.

    Attributes:
        node: the operator; its first argument is the input.
        weight: the weight's first name in the module.
        bias: the bias's first name, or None.
        geometry: sizes of the operator.
    """

    node: Node
    weight: str
    bias: str | None
    geometry: Geometry

    @property
    def input(self) -> Node:
        """The node whose value the weight multiplies."""
        node: Node = self.node.args[0]  # type: ignore[assignment]
        return node


class Traced:
    """The graph of a module, bound to the module's live tensors."""

    def __init__(self, module: nn.Module, graph: Any, names: Mapping[Node, str], inputs: Sequence[Node]) -> None:
        self.module = module
        self.inputs = tuple(inputs)
        self.nodes: tuple[Node, ...] = tuple(graph.nodes)
        self.place = {node: index for index, node in enumerate(self.nodes)}
        self._names = dict(names)  # placeholder -> first name of the tensor
        self._tensors = {
            **dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers(remove_duplicate=False)),
        }
        self._constants: dict[Node, Any] = {}
        self.outputs: tuple[Node, ...] = ()

    def tensor_name(self, node: object) -> str | None:
        """The name of the parameter or buffer that a placeholder stands for."""
        return self._names.get(node) if isinstance(node, Node) else None

    def tensors(self) -> dict[str, Tensor]:
        """The module's parameters and buffers by all their names; what is written into them counts at once."""
        return self._tensors

    def is_fixed(self, node: object) -> bool:
        """Whether an argument is a stored tensor or a plain number, and so the same for all images."""
        return not isinstance(node, Node) or node in self._names or node in self._constants

    def fixed_value(self, node: object) -> Any:
        """The value of a fixed argument."""
        if not isinstance(node, Node):
            return node
        if node in self._names:
            return self.tensors()[self._names[node]]
        return self._constants[node]

    def needed(self, wanted: Iterable[Node], known: Iterable[Node]) -> list[Node]:
        """Return the operators to run, in order, to get `wanted` when the values of `known` are there."""
        have, found = set(known), set()
        stack = [node for node in wanted if node not in have]
        while stack:
            node = stack.pop()
            if node in found or node in have or self.is_fixed(node):
                continue
            found.add(node)
            stack.extend(node.all_input_nodes)
        return sorted(found, key=self.place.__getitem__)

    def evaluate(self, order: Sequence[Node], known: Mapping[Node, Tensor], keep: Sequence[Node]) -> dict[Node, Any]:
        """Run operators in order and return the values of `keep`; others are dropped after their last use.

        Args:
            order: from `needed`.
            known: values to start from.
            keep: nodes whose values are returned.
        """
        kept, tensors = set(keep), self.tensors()
        last = {source: index for index, node in enumerate(order) for source in node.all_input_nodes}
        values: dict[Node, Any] = dict(known)

        def value(node: Node) -> Any:
            if node in values:
                return values[node]
            return tensors[self._names[node]] if node in self._names else self._constants[node]

        for index, node in enumerate(order):
            arguments, keywords = torch.fx.map_arg((node.args, node.kwargs), value)
            values[node] = _operator(node)(*arguments, **keywords)
            for source in node.all_input_nodes:
                if last[source] == index and source not in kept:
                    values.pop(source, None)
        return {node: values[node] for node in dict.fromkeys(keep)}

    def calls(self) -> list[Call]:
        """All uses of stored weights by convolutions and matrix products, in execution order."""
        found = (self._call(node) for node in self.nodes if node.op == "call_function")
        return [call for call in found if call is not None]

    def _call(self, node: Node) -> Call | None:
        if node.target not in _GEOMETRIES:
            return None
        kind, axes = _GEOMETRIES[node.target]
        arguments = _arguments(node)
        weight, bias = self.tensor_name(arguments["weight"]), arguments.get("bias")
        if weight is None or (bias is not None and self.tensor_name(bias) is None):
            return None
        geometry = _geometry(kind, axes, self.tensors()[weight], arguments)
        return Call(node, weight, self.tensor_name(bias), geometry)


def _operator(node: Node) -> Callable[..., Any]:
    if node.op != "call_function":
        raise CannotTrace("given", f"the graph holds a {node.op} ({node.target})")
    operator: Callable[..., Any] = node.target  # type: ignore[assignment]
    return operator


_GEOMETRIES: dict[Any, tuple[Kind, int]] = {
    _aten.linear.default: ("linear", 0),
    _aten.conv1d.default: ("conv", 1),
    _aten.conv2d.default: ("conv", 2),
    _aten.conv3d.default: ("conv", 3),
    _aten.conv1d.padding: ("conv", 1),
    _aten.conv2d.padding: ("conv", 2),
    _aten.conv3d.padding: ("conv", 3),
    _aten.conv_transpose1d.default: ("transposed", 1),
    _aten.conv_transpose2d.input: ("transposed", 2),
    _aten.conv_transpose3d.input: ("transposed", 3),
}


def _arguments(node: Node) -> dict[str, Any]:
    """All arguments of an operator by name, defaults included."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    found = {argument.name: argument.default_value for argument in schema}
    found |= {argument.name: value for argument, value in zip(schema, node.args, strict=False)}
    return {**found, **node.kwargs}


def _per_axis(value: Any, axes: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values


def _geometry(kind: Kind, axes: int, weight: Tensor, arguments: Mapping[str, Any]) -> Geometry:
    if kind == "linear":
        return Geometry("linear")
    kernel = tuple(weight.shape[2:])
    dilation = _per_axis(arguments["dilation"], axes)
    padding = arguments["padding"]
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        pads = tuple((size // 2, size - size // 2) for size in total)
    else:
        pads = tuple((size, size) for size in _per_axis(padding, axes))
    output = _per_axis(arguments["output_padding"], axes) if kind == "transposed" else ()
    stride = _per_axis(arguments["stride"], axes)
    return Geometry(kind, arguments["groups"], kernel, stride, pads, dilation, output)


def trace(module: nn.Module, inputs: tuple[Tensor, ...], which: str = "given") -> Traced:
    """Turn a module in evaluation mode into a graph for inputs of these sizes.

    Args:
        module: not changed.
        inputs: positional arguments; their batch size is built into the graph.
        which: named in the error.

    Raises:
        CannotTrace: torch.export refuses, or the graph holds something that cannot be run piece by piece.
    """
    try:
        with warnings.catch_warnings(), eval_mode(module):
            warnings.simplefilter("ignore")
            with torch.no_grad():
                program = torch.export.export(module, inputs)
                if not _is_functional(program.graph):
                    program = program.run_decompositions(decomp_table={})
    except Exception as error:  # the exporter raises whatever the model's code or its own guards raise
        raise CannotTrace(which, " ".join(str(error).split())[:300] or type(error).__name__) from error
    return _bind(module, program, which)


def _is_functional(graph: Any) -> bool:
    """Whether every node is an operator that writes into nothing; making a graph so is slow."""
    schemas = [getattr(node.target, "_schema", None) for node in graph.nodes if node.op == "call_function"]
    plain = all(schema is None or not schema.is_mutable for schema in schemas)
    return plain and all(node.op != "get_attr" for node in graph.nodes)


def _bind(module: nn.Module, program: Any, which: str) -> Traced:
    canonical = _first_names(module)
    kinds = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    names: dict[Node, str] = {}
    constants: dict[Node, Any] = {}
    inputs: list[Node] = []
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = kinds[node.name]
            if spec.kind is InputKind.USER_INPUT:
                inputs.append(node)
            elif spec.target in canonical:
                names[node] = canonical[spec.target]
            else:
                constants[node] = program.constants[spec.target]
        elif node.op == "get_attr":
            raise CannotTrace(which, f"it holds a sub-graph ({node.target})")
    traced = Traced(module, program.graph, names, inputs)
    traced._constants.update(constants)
    results = next(node for node in program.graph.nodes if node.op == "output").args[0]
    specs = program.graph_signature.output_specs
    if any(spec.kind is not OutputKind.USER_OUTPUT for spec in specs):
        raise CannotTrace(which, "it changes its own buffers while it runs")
    traced.outputs = tuple(node for node in results if isinstance(node, Node) and _is_float(node))
    return traced


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _first_names(module: nn.Module) -> dict[str, str]:
    """Map every name of a parameter or buffer to the first name of the same tensor object."""
    first: dict[int, str] = {}
    found = {}
    for named in (module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)):
        for name, tensor in named:
            found[name] = first.setdefault(id(tensor), name)
    return found
