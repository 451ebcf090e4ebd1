"""Where a layer's output ends in a sum, found from the graph, and what the layer must add to correct that sum.

A layer whose output reaches an addition through per-channel scales and changes of layout only, with no other reader,
can repair the error of the other operand: with s0, s the dense and compressed values of that operand and c the scale
in between, the target y0 becomes y0 + (s0 - s) / c. Channels with a scale under 0.05 are left as they are.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from compress_cli.recovery.trace import Traced, _arguments

_aten = torch.ops.aten
_NORM, _NORM_TUPLE = _aten.batch_norm.default, _aten._native_batch_norm_legit_no_training.default
SMALLEST_SCALE = 0.05
_SAME = {_aten.clone.default, _aten.dropout.default, _aten.contiguous.default, _aten.alias.default}
_LAYOUT = {
    _aten.view.default,
    _aten._unsafe_view.default,
    _aten.permute.default,
    _aten.transpose.int,
    _aten.unsqueeze.default,
    _aten.squeeze.dim,
}


@dataclass(frozen=True, slots=True)
class Sum:
    """The addition that a layer's output ends in.

    Attributes:
        steps: operators between the layer and the addition, in order.
        node: the addition.
        other: its other operand.
    """

    steps: tuple[Node, ...]
    node: Node
    other: Node


def is_fixed_norm(traced: Traced, node: Node) -> bool:
    """Whether an operator is a batch norm with stored statistics."""
    if node.target not in (_NORM, _NORM_TUPLE) or _arguments(node).get("training", False):
        return False
    return all(map(traced.is_fixed, node.args[1:])) and _arguments(node)["running_var"] is not None


def only_user(node: Node) -> Node | None:
    """The single operator that reads a value, or None."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def find_sum(traced: Traced, start: Node) -> Sum | None:
    """Follow a layer's output to the addition it ends in; None when something else happens to it first."""
    steps: list[Node] = []
    node = start
    while (user := only_user(node)) is not None and node not in traced.outputs:
        if user.target is _aten.add.Tensor and user.kwargs.get("alpha", 1) == 1 and len(user.args) == 2:
            other = user.args[1] if user.args[0] is node else user.args[0]
            if traced.is_fixed(other):
                return None
            return Sum(tuple(steps), user, other) if isinstance(other, Node) and other is not node else None
        if not _passes(traced, node, user):
            return None
        steps.append(user)
        node = user
    return None


def _passes(traced: Traced, node: Node, user: Node) -> bool:
    """Whether an operator only scales per channel, or moves values."""
    target: Any = user.target
    if target in _SAME or target in _LAYOUT:
        return user.args[0] is node
    if target in (_NORM, _NORM_TUPLE):
        return user.args[0] is node and is_fixed_norm(traced, user)
    if target is operator.getitem:
        return node.target is _NORM_TUPLE and bool(user.args[1] == 0)
    if target is _aten.mul.Tensor:
        return traced.is_fixed(user.args[1] if user.args[0] is node else user.args[0])
    return False


def depends_on(node: Node, others: Collection[Node]) -> bool:
    """Whether a value needs one of some others, or is one of them."""
    stack, seen = [node], {node}
    while stack:
        current = stack.pop()
        if current in others:
            return True
        fresh = [source for source in current.all_input_nodes if source not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    return False


def has_layout(found: Sum) -> bool:
    """Whether the values are moved between the layer and the sum."""
    return any(step.target in _LAYOUT for step in found.steps)


def pull_back(traced: Traced, found: Sum, difference: Tensor) -> Tensor:
    """Carry a difference at the sum back to the layer's output: undo layouts, divide by scales.

    Args:
        traced: the compressed network, whose scales count.
        found: where the sum is.
        difference: of the size of the sum.
    """
    for step in reversed(found.steps):
        if step.target in _LAYOUT:
            difference = _undo_layout(step, difference)
        elif step.target in (_NORM, _NORM_TUPLE):
            scale = norm_scale(traced, step)
            sizes = (1, -1, *(1,) * (difference.dim() - 2))
            difference = _divide(difference, scale.reshape(sizes))
        elif step.target is _aten.mul.Tensor:
            factor = next(value for value in step.args if traced.is_fixed(value))
            value = traced.fixed_value(factor)
            difference = _divide(difference, torch.as_tensor(value, dtype=difference.dtype, device=difference.device))
    return difference


def norm_scale(traced: Traced, norm: Node) -> Tensor:
    """Return gamma / sqrt(var + eps) of a batch norm in evaluation: (channels,)."""
    arguments = _arguments(norm)
    variance: Tensor = traced.fixed_value(arguments["running_var"])
    gamma = traced.fixed_value(arguments["weight"])
    scale = (variance + arguments["eps"]).rsqrt()
    found: Tensor = scale if gamma is None else scale * gamma
    return found


def _divide(values: Tensor, scale: Tensor) -> Tensor:
    usable = scale.abs() >= SMALLEST_SCALE
    return torch.where(usable, values / torch.where(usable, scale, 1.0), 0.0)


def _undo_layout(step: Node, values: Tensor) -> Tensor:
    before = step.args[0].meta["val"].shape  # type: ignore[union-attr]
    if step.target is _aten.permute.default:
        order: Any = step.args[1]
        return values.permute([list(order).index(axis) for axis in range(len(order))])
    if step.target is _aten.transpose.int:
        return values.transpose(*step.args[1:])  # type: ignore[arg-type]
    return values.reshape(before)
