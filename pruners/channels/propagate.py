"""Carry channel identities through a functional graph: one rule per operator, everything unknown is frozen."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from pruners.channels import rules_move, rules_plain, rules_product
from pruners.channels.calls import Call, Result, Rule
from pruners.channels.labels import Ids
from pruners.channels.planes import Scope, Value
from pruners.channels.tracing import Entry, Mode, export, functional, source_line

RULES: dict[str, Rule] = {**rules_plain.RULES, **rules_move.RULES, **rules_product.RULES}


@dataclass(slots=True)
class Trace:
    """What one entry's graph says.

    Attributes:
        values: planes of every node's result.
        macs: (factor, vectors) terms.
        reached: names of tensors that some operator reads.
        targets: placeholder node name -> tensor name.
        calls: operator calls by node name.
    """

    mode: Mode
    program: ExportedProgram
    values: dict[str, Any] = field(default_factory=dict)
    calls: dict[str, Call] = field(default_factory=dict)
    macs: list[tuple[int, list[Ids]]] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)
    targets: dict[str, str] = field(default_factory=dict)


def propagate(program: ExportedProgram, mode: Mode, tensors: Mapping[str, Value], scope: Scope) -> Trace:
    """Run every rule once, in order, and freeze what leaves the model.

    Args:
        tensors: parameters and buffers by every name, with their planes.
    """
    trace = Trace(mode, program)
    for spec in program.graph_signature.input_specs:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR) and spec.target:
            trace.targets[spec.arg.name] = spec.target
    for node in program.graph.nodes:
        scope.operator, scope.source = "", ""
        if node.op == "placeholder":
            trace.values[node.name] = _placeholder(node, trace, tensors)
        elif node.op == "get_attr":
            trace.values[node.name] = _shaped(node.meta.get("val"))
        elif node.op == "call_function":
            scope.operator = str(node.target).removeprefix("aten.").removesuffix(".default")
            scope.source = source_line(node)
            trace.values[node.name] = _call(node, trace, scope)
        elif node.op == "output":
            scope.operator = "output"
            _output(trace, tensors, scope)
    return trace


def _placeholder(node: fx.Node, trace: Trace, tensors: Mapping[str, Value]) -> Result:
    name = trace.targets.get(node.name)
    if name is None:
        return _shaped(node.meta.get("val"))
    if node.users:
        trace.reached.add(name)
    return tensors.get(name) or _shaped(node.meta.get("val"))


def _shaped(item: Any) -> Result:
    """A value without planes for a tensor, the same nesting for lists, None for the rest."""
    if isinstance(item, Tensor):
        return Value(tuple(int(size) for size in item.shape))
    if isinstance(item, (list, tuple)):
        return tuple(_shaped(each) for each in item)
    return None


def _argument(trace: Trace, item: Any) -> Any:
    if isinstance(item, fx.Node):
        return trace.values.get(item.name)
    if isinstance(item, (list, tuple)):
        return [_argument(trace, each) for each in item]
    return item


def _call(node: fx.Node, trace: Trace, scope: Scope) -> Result:
    if node.target is operator.getitem:
        source, place = node.args
        found = _argument(trace, source)
        return found[place] if isinstance(found, (list, tuple)) and isinstance(place, int) else None
    result = _shaped(node.meta.get("val"))
    positional = tuple(_argument(trace, item) for item in node.args)
    keywords = {name: _argument(trace, item) for name, item in node.kwargs.items()}
    if not isinstance(node.target, torch._ops.OpOverload):
        scope.freeze_value((positional, keywords), "no rule for this operator")
        return result
    call = make_call(node, node.target, positional, keywords, result)
    if not call.shapes:
        return result
    rule = find_rule(node.target)
    if rule is None:
        scope.freeze_value((positional, keywords), "no rule for this operator")
        return result
    try:
        found = rule(scope, call)
    except (LookupError, RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        scope.freeze_value((positional, keywords), f"the rule failed ({type(error).__name__})")
        return result
    trace.calls[node.name] = call
    if trace.mode == "eval":
        trace.macs += _weighted(node, scope, rules_product.cost_terms(call.key, call))
    return found


def _weighted(node: fx.Node, scope: Scope, terms: list[tuple[int, list[Ids]]]) -> list[tuple[int, list[Ids]]]:
    """The same terms for the rows that the node's module really gets (`detectors.head_rows`)."""
    stack = [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    for name, (real, traced) in scope.rows.items():
        if any(path == name or path.startswith(f"{name}.") for path in stack):
            return [(factor * real // traced, vectors) for factor, vectors in terms]
    return terms


def make_call(
    node: fx.Node,
    target: torch._ops.OpOverload[Any, Any],
    positional: tuple[Any, ...],
    keywords: dict[str, Any],
    result: Result,
) -> Call:
    """Name the arguments by the operator's schema."""
    schema = target._schema
    named: dict[str, Any] = {}
    for place, argument in enumerate(schema.arguments):
        if place < len(positional):
            named[argument.name] = positional[place]
        elif argument.name in keywords:
            named[argument.name] = keywords[argument.name]
        elif argument.has_default_value():
            named[argument.name] = argument.default_value
    values = [result] if isinstance(result, Value) else [item for item in result or () if isinstance(item, Value)]
    shapes = tuple(value.shape for value in values)
    return Call(node, schema.name, named, positional, keywords, shapes, isinstance(result, Value))


def find_rule(target: torch._ops.OpOverload[Any, Any]) -> Rule | None:
    """The rule of an operator; those that torch itself tags as pointwise need none of their own.

    In-place operators have one only where the identity of an index outlives the write: pointwise ones and `copy_`.
    """
    schema = target._schema
    pointwise = torch.Tag.pointwise in target.tags
    if schema.is_mutable:
        return rules_plain.elementwise if pointwise or schema.name in rules_plain.HARMLESS_WRITES else None
    if pointwise and any(argument.name == "other" for argument in schema.arguments):
        return rules_plain.elementwise
    found = RULES.get(schema.name)
    if found is None and pointwise:
        return rules_plain.elementwise
    return found


def read_graph(model: nn.Module, entry: Entry, dynamic_shapes: Any = None) -> ExportedProgram:
    """Trace an entry; writes that the rules cannot follow are turned into pure operators first (that is slow).

    Raises:
        CannotTrace: `torch.export` refuses.
    """
    program = export(model, entry, dynamic_shapes)
    for node in program.graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        if not makes_tensors(node):
            continue
        if not isinstance(node.target, torch._ops.OpOverload) or find_rule(node.target) is None:
            return functional(program, entry.mode)
    return program


def makes_tensors(node: fx.Node) -> bool:
    """Whether a call returns a tensor or several (not a symbolic size, not nothing)."""
    value = node.meta.get("val")
    listed = value if isinstance(value, (list, tuple)) else [value]
    return any(isinstance(item, Tensor) for item in listed)


def _output(trace: Trace, tensors: Mapping[str, Value], scope: Scope) -> None:
    for spec in trace.program.graph_signature.output_specs:
        name = getattr(spec.arg, "name", None)
        value = trace.values.get(name) if isinstance(name, str) else None
        if not isinstance(value, Value):
            continue
        if spec.kind is not OutputKind.BUFFER_MUTATION:
            scope.freeze_value(value, "output of the model")
            continue
        buffer = tensors.get(spec.target or "")
        for dim, ids in (buffer.planes if buffer is not None else {}).items():
            scope.pair(ids, value.planes.get(dim), "a buffer updated without channels to follow")
