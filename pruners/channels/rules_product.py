"""Rules for convolutions, matrix products, attention and look-ups; these also say what the operator costs.

A cost term is factor * product of alive counts of its vectors: conv = positions * kernel * |out| * |in|, linear =
rows * |in| * |out|, product = batch * m * k * n, attention = heads * queries * keys * (|q| + |v|). MACs, not FLOPs.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from pruners.channels.calls import Call, Result, Rule, freeze_dims, keep_planes
from pruners.channels.labels import Ids
from pruners.channels.planes import UNTAGGED, UNTAGGED_INPUT, UNTAGGED_WEIGHT, Scope, Value
from pruners.channels.rules_plain import broadcast, unite_rows


def _linear(scope: Scope, call: Call) -> Result:
    value, weight, bias = call.value("input"), call.value("weight"), call.optional("bias")
    pair_dims(scope, value, value.ndim - 1, weight, weight.ndim - 1)
    planes = keep_planes(value, range(value.ndim - 1))
    if weight.ndim == 2:
        out = _with_bias(scope, weight.planes.get(0), bias, weight.shape[0])
        if out is not None:
            planes[value.ndim - 1] = out
    return call.result([planes])


def pair_dims(scope: Scope, left: Value, left_dim: int, right: Value, right_dim: int) -> None:
    """Unite a dim of one value with the equally long dim of another (size 1: nothing to remove)."""
    if left.shape[left_dim] > 1:
        missing = UNTAGGED_WEIGHT if left.planes.get(left_dim) is not None else UNTAGGED_INPUT
        scope.pair(left.planes.get(left_dim), right.planes.get(right_dim), missing)


def _with_bias(scope: Scope, out: Ids | None, bias: Value | None, size: int) -> Ids | None:
    if bias is None or size == 1 or bias.shape[-1] == 1:
        return out
    return scope.pair(out, bias.planes.get(bias.ndim - 1), UNTAGGED)


def _matmul(scope: Scope, call: Call) -> Result:
    left, right = call.values()[-2:]
    return call.result([product(scope, left, right, call.shapes[0])])


def _add_matmul(scope: Scope, call: Call) -> Result:
    """addmm, baddbmm: bias + product."""
    bias, left, right = call.values()
    made = Value(call.shapes[0], product(scope, left, right, call.shapes[0]))
    return call.result([broadcast(scope, (bias, made), call.shapes[0])])


def product(scope: Scope, left: Value, right: Value, shape: tuple[int, ...]) -> dict[int, Ids]:
    """(..., m, k) @ (..., k, n): pair k, carry m and n, batch dims index by index."""
    contracted = right.ndim - 2 if right.ndim > 1 else 0
    pair_dims(scope, left, left.ndim - 1, right, contracted)
    batches = [Value(v.shape[:-2], keep_planes(v, range(v.ndim - 2))) for v in (left, right) if v.ndim > 2]
    rank = max((v.ndim for v in batches), default=0)
    planes = broadcast(scope, batches, shape[:rank])
    if left.ndim > 1 and left.ndim - 2 in left.planes:
        planes[rank] = left.planes[left.ndim - 2]
    if right.ndim > 1 and right.ndim - 1 in right.planes:
        planes[rank + (left.ndim > 1)] = right.planes[right.ndim - 1]
    return planes


def _einsum(scope: Scope, call: Call) -> Result:
    """One vector per letter, united over the operands."""
    text = str(call.args["equation"]).replace(" ", "")
    values = [item for item in call.args["tensors"] if isinstance(item, Value)]
    inputs, arrow, output = text.partition("->")
    terms = inputs.split(",")
    if not arrow or "." in text or any(len(set(term)) < len(term) for term in (*terms, output)):
        scope.freeze_value(values, "einsum with a repeated letter or an ellipsis")
        return call.result([{}])
    vectors: dict[str, list[Ids | None]] = {}
    for term, value in zip(terms, values, strict=True):
        for dim, letter in enumerate(term):
            if value.shape[dim] > 1:
                vectors.setdefault(letter, []).append(value.planes.get(dim))
    ids = {letter: scope.pair_all(found, UNTAGGED) for letter, found in vectors.items()}
    planes = {dim: ids[letter] for dim, letter in enumerate(output) if ids.get(letter) is not None}
    return call.result([{dim: vector for dim, vector in planes.items() if vector is not None}])


def _attention(scope: Scope, call: Call) -> Result:
    """softmax(q k^T * scale + mask) v: widths of q and k pair, v's width is the result's, heads index by index."""
    query, key, value, mask = call.value("query"), call.value("key"), call.value("value"), call.optional("attn_mask")
    rank = query.ndim
    pair_dims(scope, query, rank - 1, key, key.ndim - 1)
    freeze_dims(scope, query, [rank - 2], "tokens of attention")
    freeze_dims(scope, key, [key.ndim - 2], "tokens of attention")
    freeze_dims(scope, value, [value.ndim - 2], "tokens of attention")
    scope.freeze_value(mask, "attention mask")
    operands = [query, key, value]
    heads = [Value(v.shape[:-2], keep_planes(v, range(v.ndim - 2))) for v in operands]
    if mask is not None and mask.ndim > 2:
        heads.append(Value(mask.shape[:-2], keep_planes(mask, range(mask.ndim - 2))))
    if call.args.get("enable_gqa"):
        for item in heads:
            scope.freeze_value(item, "grouped queries")
    planes = broadcast(scope, heads, call.shapes[0][:-2])
    if value.ndim - 1 in value.planes:
        planes[len(call.shapes[0]) - 1] = value.planes[value.ndim - 1]
    return call.result([planes])


def _conv(scope: Scope, call: Call) -> Result:
    value, weight = call.value("input", "self"), call.value("weight")
    transposed = bool(call.args.get("transposed", False)) or "transpose" in call.key
    groups, spatial = int(call.args.get("groups", 1)), weight.ndim - 2
    channel = value.ndim - spatial - 1
    freeze_dims(scope, weight, range(2, weight.ndim), "kernel dims")
    freeze_dims(scope, value, range(channel + 1, value.ndim), "spatial dim")
    planes = keep_planes(value, range(channel))
    ids = value.planes.get(channel)
    if transposed:
        out = _transposed_channels(scope, ids, weight, groups, value.shape[channel])
        size = weight.shape[1] * groups
    else:
        out = _conv_channels(scope, ids, weight, groups, value.shape[channel])
        size = weight.shape[0]
    out = _with_bias(scope, out, call.optional("bias"), size)
    if out is not None:
        planes[channel] = out
    return call.result([planes])


def _conv_channels(scope: Scope, ids: Ids | None, weight: Value, groups: int, channels: int) -> Ids | None:
    """Tie the input's channels with the weight, (out, in / groups, ...); return those of the output."""
    out, inner = weight.planes.get(0), weight.planes.get(1)
    if groups == 1:
        if channels > 1:
            scope.pair(ids, inner, UNTAGGED_INPUT if ids is None else UNTAGGED_WEIGHT)
        return out
    if groups == channels and 1 not in weight.remains:  # depthwise: the number of groups shrinks with the channels
        if ids is None or out is None:
            return scope.pair(ids, out, UNTAGGED_INPUT if ids is None else UNTAGGED_WEIGHT)
        scope.unite(out, np.repeat(ids, len(out) // groups))
        return out
    _tie_groups(scope, ids, weight.remains.get(1) if inner is None else inner, groups, weight.shape[1])
    if out is not None:
        unite_rows(scope, out, groups)
    return out


def _tie_groups(scope: Scope, ids: Ids | None, inner: Ids | None, groups: int, width: int) -> None:
    """The same channels go from each group, together with the weight's inner index."""
    if ids is not None:
        unite_rows(scope, ids, groups)
    if width > 1 or inner is not None:
        scope.pair(None if ids is None else ids[:width], inner, UNTAGGED)
    else:
        scope.freeze(ids, "group of one channel")


def _transposed_channels(scope: Scope, ids: Ids | None, weight: Value, groups: int, channels: int) -> Ids | None:
    """The weight is (in, out / groups, ...)."""
    inner, out = weight.planes.get(0), weight.planes.get(1)
    if channels > 1:
        scope.pair(ids, inner, UNTAGGED_INPUT if ids is None else UNTAGGED_WEIGHT)
    if groups == 1:
        return out
    if groups == channels and weight.shape[1] == 1 and 1 not in weight.remains:
        return inner  # depthwise, one output per channel
    out = weight.remains.get(1) if out is None else out
    if inner is not None:
        unite_rows(scope, inner, groups)
    return None if out is None else np.tile(out, groups)


def _embedding(scope: Scope, call: Call) -> Result:
    weight = call.value("weight")
    freeze_dims(scope, weight, [0], "rows of a table")
    last = len(call.shapes[0]) - 1
    return call.result([{last: weight.planes[1]} if 1 in weight.planes else {}])


def _roi(scope: Scope, call: Call) -> Result:
    value = call.value("input")
    scope.freeze_value(call.args.get("rois"), "boxes")
    freeze_dims(scope, value, (2, 3), "spatial dim")
    planes = keep_planes(value, (1,))
    return call.result([planes] + [{} for _ in call.shapes[1:]])


def _deform_conv(scope: Scope, call: Call) -> Result:
    value, weight = call.value("input"), call.value("weight")
    for name in ("offset", "mask"):
        scope.freeze_value(call.args.get(name), "offset of a deformable convolution")
    freeze_dims(scope, weight, (2, 3), "kernel dims")
    groups = int(call.args.get("groups", 1))
    if int(call.args.get("offset_groups", 1)) > 1:
        scope.freeze(value.planes.get(1), "offset groups")
    out = _conv_channels(scope, value.planes.get(1), weight, groups, value.shape[1])
    out = _with_bias(scope, out, call.optional("bias"), weight.shape[0])
    return call.result([{1: out} if out is not None else {}])


def _named(names: str, rule: Rule) -> dict[str, Rule]:
    return {f"aten::{name}": rule for name in names.split()}


RULES: dict[str, Rule] = {
    **_named("linear", _linear),
    **_named("matmul mm bmm mv dot", _matmul),
    **_named("addmm baddbmm addmv", _add_matmul),
    **_named("einsum", _einsum),
    **_named("scaled_dot_product_attention", _attention),
    **_named("conv1d conv2d conv3d convolution _convolution conv_transpose1d conv_transpose2d conv_transpose3d", _conv),
    **_named("embedding", _embedding),
    "torchvision::roi_align": _roi,
    "torchvision::deform_conv2d": _deform_conv,
}


def cost_terms(key: str, call: Call) -> list[tuple[int, list[Ids]]]:
    """Return the MACs of a call as (factor, vectors) terms; empty for everything that is not a product."""
    name = key.removeprefix("aten::")
    if name == "linear":
        value, weight = call.value("input"), call.value("weight")
        out = weight.shape[0] if weight.ndim == 2 else 1
        return [_term([_sizes(value), ((out,), _one(weight, 0) if weight.ndim == 2 else {})])]
    if name in ("matmul", "mm", "bmm", "mv", "dot", "addmm", "baddbmm", "addmv"):
        left, right = call.values()[-2:]
        return [_product_term(left, right, call.shapes[0])]
    if name == "einsum":
        return [_einsum_term(call)]
    if name == "scaled_dot_product_attention":
        return _attention_terms(call)
    if call.key in RULES and RULES[call.key] in (_conv, _deform_conv):
        return [_conv_term(call)]
    return []


Sized = tuple[tuple[int, ...], dict[int, Ids]]


def _sizes(value: Value) -> Sized:
    return value.shape, dict(value.planes)


def _one(value: Value, dim: int) -> dict[int, Ids]:
    return {0: value.planes[dim]} if dim in value.planes else {}


def _term(parts: list[Sized]) -> tuple[int, list[Ids]]:
    factor, vectors = 1, []
    for shape, planes in parts:
        for dim, size in enumerate(shape):
            if dim in planes:
                vectors.append(planes[dim])
            else:
                factor *= size
    return factor, vectors


def _product_term(left: Value, right: Value, shape: tuple[int, ...]) -> tuple[int, list[Ids]]:
    rank = max(left.ndim - 2, right.ndim - 2, 0)
    planes: dict[int, Ids] = {}
    for value in (left, right):
        for dim in range(value.ndim - 2):
            place = dim + rank - (value.ndim - 2)
            if dim in value.planes and value.shape[dim] == shape[place]:
                planes.setdefault(place, value.planes[dim])
    parts: list[Sized] = [(shape[:rank], planes), (left.shape[-2:], _last(left, 2))]
    if right.ndim > 1:
        parts.append((right.shape[-1:], _last(right, 1)))
    return _term(parts)


def _last(value: Value, count: int) -> dict[int, Ids]:
    start = max(value.ndim - count, 0)
    return {dim - start: ids for dim, ids in value.planes.items() if dim >= start}


def _einsum_term(call: Call) -> tuple[int, list[Ids]]:
    text = str(call.args["equation"]).replace(" ", "").partition("->")[0]
    values = [item for item in call.args["tensors"] if isinstance(item, Value)]
    if "." in text:
        return 0, []
    sizes: dict[str, int] = {}
    planes: dict[str, Ids] = {}
    for term, value in zip(text.split(","), values, strict=True):
        for dim, letter in enumerate(term):
            sizes[letter] = max(sizes.get(letter, 1), value.shape[dim])
            if dim in value.planes:
                planes.setdefault(letter, value.planes[dim])
    if len(values) < 2:
        return 0, []
    return prod(size for letter, size in sizes.items() if letter not in planes), list(planes.values())


def _attention_terms(call: Call) -> list[tuple[int, list[Ids]]]:
    query, key, value = call.value("query"), call.value("key"), call.value("value")
    heads: Any = (call.shapes[0][:-2], {d: v for d, v in query.planes.items() if d < query.ndim - 2})
    tokens: Sized = ((query.shape[-2], key.shape[-2]), {})
    return [
        _term([heads, tokens, (query.shape[-1:], _last(query, 1))]),
        _term([heads, tokens, (value.shape[-1:], _last(value, 1))]),
    ]


def _conv_term(call: Call) -> tuple[int, list[Ids]]:
    value, weight = call.value("input", "self"), call.value("weight")
    transposed = bool(call.args.get("transposed", False)) or "transpose" in call.key
    spatial = weight.ndim - 2
    where = value.shape if transposed else call.shapes[0]
    positions = prod(where[len(where) - spatial :]) * prod(value.shape[: value.ndim - spatial - 1])
    return _term([((positions, prod(weight.shape[2:])), {}), (weight.shape[:2], keep_planes(weight, (0, 1)))])
