"""New sizes for the operators of a traced graph: every literal that counts channels is replaced by what survives.

Only positions whose dim carries a plane that loses channels are touched; symbolic sizes (the batch) stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from pruners.channels.calls import Call
from pruners.channels.groups import Groups
from pruners.channels.labels import Ids
from pruners.channels.planes import Planes, Value

Alive = Callable[[Ids], "np.ndarray[Any, np.dtype[np.bool_]]"]


class Rewriter:
    """Knows which ids are gone; rewrites one copied node at a time."""

    def __init__(self, groups: Groups, gone: Ids) -> None:
        self._groups = groups
        self._gone = gone
        self.scales: list[tuple[str, float]] = []

    @property
    def names(self) -> set[str]:
        """Tensors that the module itself holds."""
        return set(self._groups.atoms.by_name)

    def alive(self, ids: Ids) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which indices of a plane stay."""
        stays: np.ndarray[Any, np.dtype[np.bool_]] = ~np.isin(self._groups.labels.find(ids), self._gone)
        return stays

    def count(self, ids: Ids) -> int:
        """How many indices of a plane stay."""
        return int(self.alive(ids).sum())

    def loses(self, value: Any) -> bool:
        """Whether any plane of a value, or of a list of values, loses indices."""
        if isinstance(value, Value):
            return any(not self.alive(ids).all() for ids in value.planes.values())
        return isinstance(value, (list, tuple)) and any(self.loses(item) for item in value)

    def rewrite(self, node: fx.Node, call: Call, result: Any) -> None:
        """Change the literal arguments of a node (a copy in the new graph) for the surviving channels."""
        rule = _RULES.get(call.key.removeprefix("aten::").removesuffix("_"))
        if rule is not None and (self.loses(result) or any(self.loses(value) for value in call.values())):
            rule(self, node, call, result)


def argument(node: fx.Node, call: Call, name: str) -> Any:
    """An argument of a node by schema name."""
    place = _position(call, name)
    return node.args[place] if place < len(node.args) else node.kwargs.get(name, call.args.get(name))


def set_argument(node: fx.Node, call: Call, name: str, value: Any) -> None:
    """Set an argument of a node by schema name."""
    place = _position(call, name)
    if place < len(node.args):
        node.update_arg(place, value)
    else:
        node.update_kwarg(name, value)


def _position(call: Call, name: str) -> int:
    target: Any = call.node.target
    return [item.name for item in target._schema.arguments].index(name)


def _sizes(rewriter: Rewriter, sizes: Sequence[Any], planes: Planes, first: int = 0) -> list[Any]:
    found = list(sizes)
    for place, size in enumerate(found):
        ids = planes.get(place + first)
        if ids is not None and isinstance(size, int) and size >= 0:
            found[place] = rewriter.count(ids)
    return found


def _resize(name: str) -> Callable[[Rewriter, fx.Node, Call, Any], None]:
    """Operators whose argument `name` is the shape of the result."""

    def rule(rewriter: Rewriter, node: fx.Node, call: Call, result: Value) -> None:
        set_argument(node, call, name, _sizes(rewriter, argument(node, call, name), result.planes))

    return rule


def _repeat(rewriter: Rewriter, node: fx.Node, call: Call, result: Value) -> None:
    value, repeats = call.value("self"), list(argument(node, call, "repeats"))
    ahead = len(repeats) - value.ndim
    for dim, ids in result.planes.items():
        if dim < ahead or value.shape[dim - ahead] == 1:
            repeats[dim] = rewriter.count(ids)
    set_argument(node, call, "repeats", repeats)


def _unflatten(rewriter: Rewriter, node: fx.Node, call: Call, result: Value) -> None:
    dim = int(call.args["dim"]) % call.value("self").ndim
    set_argument(node, call, "sizes", _sizes(rewriter, argument(node, call, "sizes"), result.planes, dim))


def _split(rewriter: Rewriter, node: fx.Node, call: Call, result: tuple[Value, ...]) -> None:
    """split, chunk, tensor_split become split_with_sizes."""
    value, dim = call.value("self"), int(call.args.get("dim") or 0)
    place = dim % value.ndim
    ids = value.planes.get(place)
    if ids is None:
        return
    alive = rewriter.alive(ids)
    ends = np.cumsum([part.shape[place] for part in result])
    sizes = [int(part.sum()) for part in np.split(alive, ends[:-1])]
    node.target = torch.ops.aten.split_with_sizes.default
    node.args, node.kwargs = (node.args[0], sizes, dim), {}


def _slice(rewriter: Rewriter, node: fx.Node, call: Call, result: Value) -> None:
    """Start and end move to the survivors before them."""
    base = call.value("self")
    dim = int(call.args.get("dim") or 0) % base.ndim
    ids = base.planes.get(dim)
    if ids is None:
        return
    size, alive = len(ids), rewriter.alive(ids)
    for name, default in (("start", 0), ("end", size)):
        bound = argument(node, call, name)
        if bound is None:
            continue
        if not isinstance(bound, int):
            return
        clipped = min(max(bound + size if bound < 0 else bound, 0), size)
        if clipped != default:
            set_argument(node, call, name, int(alive[:clipped].sum()))


def _pad(rewriter: Rewriter, node: fx.Node, call: Call, result: Value) -> None:
    pad, rank = list(argument(node, call, "pad")), len(result.shape)
    for place in range(len(pad) // 2):
        ids = result.planes.get(rank - 1 - place)
        before, after = int(pad[2 * place]), int(pad[2 * place + 1])
        if ids is None or not (before or after):
            continue
        alive = rewriter.alive(ids)
        if before > 0:
            pad[2 * place] = int(alive[:before].sum())
        if after > 0:
            pad[2 * place + 1] = int(alive[len(alive) - after :].sum())
    set_argument(node, call, "pad", pad)


def _layer_norm(rewriter: Rewriter, node: fx.Node, call: Call, result: Any) -> None:
    value, shape = call.value("input"), argument(node, call, "normalized_shape")
    first = value.ndim - len(shape)
    set_argument(node, call, "normalized_shape", _sizes(rewriter, shape, value.planes, first))


def _conv(rewriter: Rewriter, node: fx.Node, call: Call, result: Value) -> None:
    """Depthwise: one group per surviving channel."""
    value, weight = call.value("input", "self"), call.value("weight")
    channel = value.ndim - (weight.ndim - 2) - 1
    groups = int(call.args.get("groups", 1))
    ids = value.planes.get(channel)
    if groups > 1 and groups == value.shape[channel] and ids is not None:
        set_argument(node, call, "groups", rewriter.count(ids))


def _attention(rewriter: Rewriter, node: fx.Node, call: Call, result: Value) -> None:
    """The default scale depends on the width of q: keep the original one."""
    query = call.value("query")
    ids = query.planes.get(query.ndim - 1)
    if ids is not None and not rewriter.alive(ids).all() and call.args.get("scale") is None:
        scale = float(query.shape[-1]) ** -0.5
        node.update_kwarg("scale", scale)
        rewriter.scales.append((call.node.name, scale))


_RULES: dict[str, Callable[[Rewriter, fx.Node, Call, Any], None]] = {
    **{name: _resize("size") for name in ("view", "_unsafe_view", "expand", "zeros", "ones", "full", "empty")},
    **{name: _resize("size") for name in ("new_zeros", "new_ones", "new_full", "new_empty")},
    "reshape": _resize("shape"),
    "repeat": _repeat,
    "unflatten": _unflatten,
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_chunk", "unsafe_split"), _split),
    "slice": _slice,
    "slice_scatter": _slice,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    **{f"conv{n}d": _conv for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _conv for n in (1, 2, 3)},
    "convolution": _conv,
    "scaled_dot_product_attention": _attention,
}
