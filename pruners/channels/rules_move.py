"""Rules for operators that only move data: the real operator is run on the ids of each plane."""

from __future__ import annotations

import numpy as np
import torch

from pruners.channels.calls import (
    Call,
    Result,
    Rule,
    dims_of,
    freeze_dims,
    keep_planes,
    run_on_planes,
    zeros_index,
)
from pruners.channels.labels import Ids
from pruners.channels.planes import UNTAGGED, UNTAGGED_INPUT, Scope, Value, spread, spread_all


def _move(scope: Scope, call: Call) -> Result:
    """View, permute, split ...: commutes with the removal of indices."""
    value = call.value("self", "input")
    return call.result(run_on_planes(scope, call, value, dict(value.planes)))


def _view(scope: Scope, call: Call) -> Result:
    """View and reshape: ids are spread without strides of their own, so both are run as a reshape."""
    value, size = call.value("self"), call.shapes[0]
    found = [scope.tie(spread(value.shape, dim).reshape(size), ids) for dim, ids in value.planes.items()]
    return call.result([scope.merge(found)])


def _spread(scope: Scope, call: Call) -> Result:
    """Expand and repeat: a dim grown from size 1 is constant along it, so each of its indices may go."""
    value = call.value("self")
    planes = run_on_planes(scope, call, value, dict(value.planes))[0]
    shape = call.shapes[0]
    ahead = len(shape) - value.ndim
    for dim, size in enumerate(shape):
        before = value.shape[dim - ahead] if dim >= ahead else 1
        if size > 1 and before == 1 and dim not in planes:
            planes[dim] = scope.labels.fresh(size)
    return call.result([planes])


def _expand_as(scope: Scope, call: Call) -> Result:
    """As `expand`, but as wide as another tensor, whose indices the new ones then are."""
    value, other = call.value("self"), call.value("other")
    planes = dict(value.planes)
    ahead = other.ndim - value.ndim
    planes = {dim + ahead: ids for dim, ids in planes.items()}
    for dim, size in enumerate(other.shape):
        if size > 1 and (dim < ahead or value.shape[dim - ahead] == 1):
            planes[dim] = other.planes.get(dim, scope.labels.fresh(size))
    return call.result([planes])


def _flat_repeat(scope: Scope, call: Call) -> Result:
    value = call.value("self")
    if not isinstance(call.args.get("repeats"), int):
        scope.freeze_value(value, "position-bound operator")
        return call.result([{}])
    return call.result(run_on_planes(scope, call, value, dict(value.planes)))


def _slice(scope: Scope, call: Call) -> Result:
    value, dim = call.value("self"), int(call.args["dim"] or 0)
    return _bound_unless(scope, call, value, dim, int(call.args.get("step") or 1) == 1)


def _bound_unless(scope: Scope, call: Call, value: Value, dim: int, fine: bool) -> Result:
    planes = dict(value.planes)
    if not fine:
        dim %= max(value.ndim, 1)
        freeze_dims(scope, value, [dim], "position-bound operator")
        planes.pop(dim, None)
    return call.result(run_on_planes(scope, call, value, planes))


def _bound(scope: Scope, call: Call) -> Result:
    """Select, unfold ...: the meaning of a position along `dim` is fixed."""
    dim = int(call.args.get("dim", call.args.get("dimension", 0)))
    return _bound_unless(scope, call, call.value("self"), dim, False)


def _diagonal(scope: Scope, call: Call) -> Result:
    """Two dims become one, the last; what is left of the others moves up."""
    value = call.value("self")
    dims = [int(call.args.get(name, default)) % value.ndim for name, default in (("dim1", 0), ("dim2", 1))]
    freeze_dims(scope, value, dims, "position-bound operator")
    others = [dim for dim in range(value.ndim) if dim not in dims]
    return call.result([{place: value.planes[dim] for place, dim in enumerate(others) if dim in value.planes}])


def _roll(scope: Scope, call: Call) -> Result:
    value = call.value("self")
    dims = dims_of(call.args.get("dims"), value.ndim)
    freeze_dims(scope, value, dims, "position-bound operator")
    return call.result([keep_planes(value, [dim for dim in range(value.ndim) if dim not in dims])])


def _triangle(scope: Scope, call: Call) -> Result:
    value = call.value("self")
    freeze_dims(scope, value, [value.ndim - 2, value.ndim - 1], "position-bound operator")
    return call.result([keep_planes(value, range(value.ndim - 2))])


def _index(scope: Scope, call: Call) -> Result:
    """`x[:, idx]`: indexed dims are bound to positions; where the others go is learnt with indices of zero."""
    value = call.value("self")
    indices = call.args["indices"]
    taken = [dim for dim, index in enumerate(indices) if index is not None]
    freeze_dims(scope, value, taken, "position-bound operator")
    for index in indices:
        scope.freeze_value(index, "index")
    planes = keep_planes(value, [dim for dim in range(value.ndim) if dim not in taken])
    if not planes:
        return call.result([{}])
    where = [None if index is None else zeros_index(index.shape) for index in indices]
    found = []
    for dim, ids in planes.items():
        output = torch.ops.aten.index.Tensor(spread(value.shape, dim), where)
        if tuple(output.shape) != call.shapes[0]:  # a mask: how many it takes depends on the data
            scope.freeze(ids, "index that depends on the data")
            continue
        found.append(scope.tie(output, ids))
    return call.result([scope.merge(found)])


def _index_select(scope: Scope, call: Call) -> Result:
    """index_select and gather along `dim`."""
    value, index = call.value("self"), call.value("index")
    dim = int(call.args["dim"]) % max(value.ndim, 1)
    freeze_dims(scope, value, [dim], "position-bound operator")
    scope.freeze_value(index, "index")
    found = []
    for other, ids in value.planes.items():
        if other != dim:
            source = spread(value.shape, other)
            zeros = zeros_index(index.shape)
            select = torch.index_select if call.key == "aten::index_select" else torch.gather
            found.append(scope.tie(select(source, dim, zeros), ids))
    return call.result([scope.merge(found)])


def _plane(scope: Scope, value: Value, dim: int) -> Ids:
    ids = value.planes.get(dim)
    return scope.untagged(value.shape[dim], UNTAGGED_INPUT) if ids is None else ids


def _cat(scope: Scope, call: Call) -> Result:
    values = [item for item in call.args["tensors"] if isinstance(item, Value)]
    values = [item for item in values if item.shape != (0,)]
    dim = int(call.args.get("dim") or 0) % len(call.shapes[0])
    found = []
    for other in sorted({key for value in values for key in value.planes}):
        vectors = [_plane(scope, value, other) for value in values]
        if other == dim:
            found.append({dim: np.concatenate(vectors)})
            continue
        fields, table = spread_all(values, vectors, other)
        found.append(scope.tie(torch.cat(fields, dim), table))
    return call.result([scope.merge(found)])


def _stack(scope: Scope, call: Call) -> Result:
    values = [item for item in call.args["tensors"] if isinstance(item, Value)]
    found = []
    for dim in sorted({key for value in values for key in value.planes}):
        vectors = [_plane(scope, value, dim) for value in values]
        fields, table = spread_all(values, vectors, dim)
        found.append(scope.tie(torch.stack(fields, int(call.args.get("dim") or 0)), table))
    return call.result([scope.merge(found)])


def _pad(scope: Scope, call: Call) -> Result:
    """Padding of a labelled dim: with a constant, the new indices are free ones; else positions matter."""
    value, pad = call.value("self"), [int(item) for item in call.args["pad"]]
    constant = call.args.get("mode", "constant") == "constant"
    planes = dict(value.planes)
    for place in range(len(pad) // 2):
        dim, before, after = value.ndim - 1 - place, pad[2 * place], pad[2 * place + 1]
        if not (before or after):
            continue
        ids = planes.get(dim)
        if ids is None:
            continue
        if not constant:
            scope.freeze(planes.pop(dim), "padding that repeats channels")
            continue
        ids = ids[max(-before, 0) : len(ids) - max(-after, 0)]
        planes[dim] = np.concatenate([_padding(scope, before), ids, _padding(scope, after)])
    return call.result([planes])


def _padding(scope: Scope, count: int) -> Ids:
    return scope.labels.fresh(max(count, 0))


def _slice_scatter(scope: Scope, call: Call) -> Result:
    """A slice write: ids of the source where it lands, of the base elsewhere."""
    base, source = call.value("self"), call.value("src")
    dim = int(call.args.get("dim") or 0) % base.ndim
    rest = {key: call.args.get(key) for key in ("dim", "start", "end", "step")}
    if int(rest["step"] or 1) != 1:
        freeze_dims(scope, base, [dim], "position-bound operator")
        freeze_dims(scope, source, [dim], "position-bound operator")
    found = []
    for other in sorted({*base.planes, *source.planes}):
        if base.shape[other] == 1:
            continue
        vectors = [_plane(scope, base, other), _plane(scope, source, other)]
        (below, above), table = spread_all((base, source), vectors, other)
        field = torch.ops.aten.slice_scatter.default(below.clone(), above.clone(), **rest)
        found.append(scope.tie(field, table))
    return call.result([scope.merge(found)])


def _select_scatter(scope: Scope, call: Call) -> Result:
    base, source = call.value("self"), call.value("src")
    dim = int(call.args["dim"]) % base.ndim
    freeze_dims(scope, base, [dim], "position-bound operator")
    planes = keep_planes(base, [other for other in range(base.ndim) if other != dim])
    for other in range(base.ndim):
        if other != dim and base.shape[other] > 1:
            mine, theirs = planes.get(other), source.planes.get(other - (other > dim))
            if mine is not None or theirs is not None:
                kept = scope.pair(mine, theirs, UNTAGGED)
                assert kept is not None
                planes[other] = kept
    return call.result([planes])


def _unfold_image(scope: Scope, call: Call) -> Result:
    """im2col: (batch, channels, *space) -> (batch, channels * kernel, positions)."""
    value = call.value("self")
    kernel = int(np.prod(call.args["kernel_size"]))
    channel = value.ndim - 3
    freeze_dims(scope, value, [channel + 1, channel + 2], "spatial dim")
    planes = keep_planes(value, range(channel))
    if channel in value.planes:
        planes[channel] = np.repeat(value.planes[channel], kernel)
    return call.result([planes])


def _constant(scope: Scope, call: Call) -> Result:
    """zeros, full, ones_like ...: the same value everywhere, so every index may go."""
    planes = {dim: scope.labels.fresh(size) for dim, size in enumerate(call.shapes[0]) if size > 1}
    return call.result([planes])


def _constant_like(scope: Scope, call: Call) -> Result:
    """zeros_like ...: as wide as the operand, so its planes stay, and the other dims are constant."""
    kept = dict(call.value("self").planes)
    planes = {dim: kept.get(dim, scope.labels.fresh(size)) for dim, size in enumerate(call.shapes[0]) if size > 1}
    return call.result([planes])


def _plain_factory(scope: Scope, call: Call) -> Result:
    """arange, eye, rand ...: values bound to positions; what they meet is frozen as untagged."""
    scope.freeze_value(call.values(), "operand of a factory")
    return call.result([{} for _ in call.shapes])


def _shape_only(scope: Scope, call: Call) -> Result:
    """randn_like ...: noise as wide as the operand, the same whichever index goes."""
    return call.result([dict(call.value("self").planes)])


MOVES = (
    "permute transpose t unsqueeze squeeze split split_with_sizes unsafe_split"
    " unsafe_split_with_sizes unsafe_chunk unbind flip fliplr flipud pixel_shuffle pixel_unshuffle"
    " channel_shuffle native_channel_shuffle movedim moveaxis swapaxes swapdims narrow chunk"
    " tensor_split numpy_T matrix_H mT mH rot90 adjoint hsplit vsplit dsplit"
)


def _named(names: str, rule: Rule) -> dict[str, Rule]:
    return {f"aten::{name}": rule for name in names.split()}


RULES: dict[str, Rule] = {
    **_named(MOVES, _move),
    **_named("view view_as _unsafe_view reshape flatten unflatten ravel _reshape_alias view_copy", _view),
    **_named("expand repeat tile", _spread),
    **_named("expand_as", _expand_as),
    **_named("repeat_interleave", _flat_repeat),
    **_named("slice", _slice),
    **_named("select unfold", _bound),
    **_named("diagonal", _diagonal),
    **_named("roll", _roll),
    **_named("tril triu", _triangle),
    **_named("index", _index),
    **_named("index_select gather", _index_select),
    **_named("cat concat concatenate", _cat),
    **_named("stack", _stack),
    **_named("pad constant_pad_nd", _pad),
    **_named("slice_scatter", _slice_scatter),
    **_named("select_scatter", _select_scatter),
    **_named("im2col", _unfold_image),
    **_named("zeros ones full empty new_zeros new_ones new_full new_empty scalar_tensor", _constant),
    **_named("zeros_like ones_like full_like empty_like zero", _constant_like),
    **_named("arange linspace eye rand randn randint randperm", _plain_factory),
    **_named("rand_like randn_like bernoulli", _shape_only),
}
