"""Operators for which removing a channel is not the same as zeroing it, and their value on surviving channels.

Norms, softmax, mean, variance and maxima over channels count the channels; zeros would take part. Such an operator is
judged on the surviving indices alone, and its result is put back between zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruners.channels.calls import Call, dims_of
from pruners.channels.groups import Groups
from pruners.channels.labels import Ids
from pruners.channels.planes import Value
from pruners.channels.propagate import Trace
from pruners.channels.tracing import is_assertion, source_line

SINGLE = (torch.float32, torch.float16, torch.bfloat16)
"""Of single precision, or less."""
_NORMS = {"layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm", "group_norm"}
_SOFTMAX = {"softmax", "log_softmax", "_softmax", "_log_softmax"}
_REDUCTIONS = {"mean", "var", "std", "var_mean", "std_mean", "amax", "amin", "prod", "logsumexp"}


def counted_dims(call: Call) -> tuple[Value, list[int]] | None:
    """The operand and the dims whose width takes part in the result; None for all other operators."""
    name = call.key.removeprefix("aten::")
    if name in _NORMS:
        value = call.value("input")
        first = value.ndim - len(call.args["normalized_shape"]) if "normalized_shape" in call.args else 1
        return value, [1] if name == "group_norm" else list(range(first, value.ndim))
    if name in _SOFTMAX:
        value = call.value("self", "input")
        return value, dims_of([call.args["dim"]], value.ndim)
    if name in _REDUCTIONS:
        value = call.value("self", "input")
        return value, dims_of(call.args.get("dim"), value.ndim)
    if name == "scaled_dot_product_attention":
        query = call.value("query")
        return (query, [query.ndim - 1]) if call.args.get("scale") is None else None
    if name in ("_weight_norm", "_weight_norm_interface"):
        value = call.value("v")
        return value, list(range(value.ndim))
    if name == "instance_norm":
        value = call.value("input")
        return value, list(range(2, value.ndim))
    return None


def affected(groups: Groups, trace: Trace, gone: Ids) -> dict[str, Call]:
    """Calls of one graph whose counted dims lose channels, by node name."""
    found = {}
    for name, call in trace.calls.items():
        counted = counted_dims(call)
        if counted is None:
            continue
        value, dims = counted
        for dim in dims:
            ids = value.planes.get(dim)
            if ids is not None and np.isin(groups.labels.find(ids), gone).any():
                found[name] = call
    return found


def changed_operators(groups: Groups, gone: Ids) -> list[str]:
    """Name and source of every such call in the eval graph, each once."""
    listed = {
        f"{call.key.removeprefix('aten::')} ({source_line(call.node)})": None
        for trace in groups.traces[:1]
        for call in affected(groups, trace, gone).values()
    }
    return list(listed)


def evaluate_masked(
    groups: Groups,
    trace: Trace,
    gone: Ids,
    tensors: Mapping[str, Tensor],
    inputs: list[Any],
    pinned: bool = False,
    double: bool = True,
) -> list[Tensor]:
    """Run a dense graph on zeroed tensors, with every affected operator on its surviving indices only.

    Args:
        tensors: parameters, buffers and plain tensors by name, removed slices zero.
        inputs: the flat user inputs, in order.
        pinned: attention keeps the scale of the dense width (tier 4 writes it into the graph).
        double: tensors and inputs are in float64; the graph's constants and requests for single precision become so.
            What the forward makes in single precision by default stays as it is made, as in the module itself.

    Returns:
        The user's outputs that are tensors.
    """
    special = affected(groups, trace, gone)
    cast = _double if double else _as_is
    env: dict[str, Any] = {}
    waiting = iter(inputs)
    module = trace.program.graph_module

    def load(item: Any) -> Any:
        return torch.fx.node.map_arg(item, lambda node: env[node.name])

    for node in trace.program.graph.nodes:
        if node.op == "placeholder":
            target = trace.targets.get(node.name)
            env[node.name] = next(waiting) if target is None else _tensor(trace, tensors, target, double)
        elif node.op == "get_attr":
            env[node.name] = getattr(module, node.target)
        elif node.op == "call_function" and not is_assertion(node):  # those are about the types of the dense graph
            args, kwargs = load(node.args), load(dict(node.kwargs))
            if node.name in special:
                env[node.name] = _on_survivors(groups, trace, special[node.name], gone, env, pinned, cast)
            else:
                env[node.name] = node.target(*cast(args), **cast(kwargs))
    return [env[name] for name in trace.program.graph_signature.user_outputs if isinstance(env.get(str(name)), Tensor)]


def _tensor(trace: Trace, tensors: Mapping[str, Tensor], name: str, double: bool) -> Tensor:
    found = tensors.get(name)
    if found is None:
        constant = trace.program.constants[name]
        if not isinstance(constant, Tensor):
            raise TypeError(f"{name} is not a tensor")
        return constant.double() if double and constant.is_floating_point() else constant
    return found


def _as_is(item: Any) -> Any:
    return item


def _double(item: Any) -> Any:
    """Requests for single precision inside the graph become double."""
    if isinstance(item, torch.dtype):
        return torch.float64 if item in SINGLE else item
    if isinstance(item, dict):
        return {key: _double(value) for key, value in item.items()}
    if isinstance(item, (list, tuple)):
        return type(item)(_double(value) for value in item) if type(item) in (list, tuple) else item
    return item


def _on_survivors(
    groups: Groups,
    trace: Trace,
    call: Call,
    gone: Ids,
    env: dict[str, Any],
    pinned: bool,
    cast: Callable[[Any], Any],
) -> Any:
    """Cut the operands to surviving indices, run, and put the results back between zeros."""
    node = call.node

    def narrow(item: Any, value: Any) -> Any:
        if isinstance(item, torch.fx.Node):
            item = env[item.name]
        if isinstance(value, Value) and isinstance(item, Tensor):
            for dim, index in _survivors(groups, value, gone).items():
                item = item.index_select(dim, index)
        return item

    target: Any = node.target
    args = [narrow(item, value) for item, value in zip(node.args, call.positional, strict=True)]
    kwargs = {name: narrow(item, call.keywords[name]) for name, item in node.kwargs.items()}
    if "normalized_shape" in call.args:
        args[1] = list(args[0].shape[args[0].dim() - len(args[1]) :])
    if pinned and call.key == "aten::scaled_dot_product_attention":
        kwargs["scale"] = float(call.value("query").shape[-1]) ** -0.5
    found = target(*args, **cast(kwargs))
    values = trace.values[node.name]
    if isinstance(found, Tensor):
        return _put_back(found, values, _survivors(groups, values, gone))
    return tuple(
        _put_back(item, value, _survivors(groups, value, gone)) if isinstance(item, Tensor) else item
        for item, value in zip(found, values, strict=True)
    )


def _survivors(groups: Groups, value: Value, gone: Ids) -> dict[int, Tensor]:
    """Surviving indices of each dim that loses some."""
    found = {}
    for dim, ids in value.planes.items():
        alive = ~np.isin(groups.labels.find(ids), gone)
        if not alive.all():
            found[dim] = torch.from_numpy(np.flatnonzero(alive))
    return found


def _put_back(tensor: Tensor, value: Value, index: Mapping[int, Tensor]) -> Tensor:
    for dim, places in index.items():
        shape = list(tensor.shape)
        shape[dim] = value.shape[dim]
        tensor = tensor.new_zeros(shape).index_copy(dim, places, tensor)
    return tensor
