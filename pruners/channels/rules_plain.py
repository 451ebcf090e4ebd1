"""Rules for operators that act index by index, reduce, normalise or pool."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pruners.channels.calls import Call, Result, Rule, dims_of, freeze_dims, keep_planes
from pruners.channels.labels import Ids
from pruners.channels.planes import UNTAGGED, Scope, Value


def broadcast(scope: Scope, values: Sequence[Value], shape: Sequence[int]) -> dict[int, Ids]:
    """Unite the planes of operands that are broadcast together; one of full size without a plane freezes the rest."""
    planes: dict[int, Ids] = {}
    for dim, size in enumerate(shape):
        if size == 1:
            continue
        vectors = []
        for value in values:
            own = dim - (len(shape) - value.ndim)
            if own >= 0 and value.shape[own] == size:
                vectors.append(value.planes.get(own))
        if any(vector is not None for vector in vectors):
            found = scope.pair_all(vectors, UNTAGGED)
            assert found is not None
            planes[dim] = found
    return planes


def elementwise(scope: Scope, call: Call) -> Result:
    """Any number of operands, index by index; every output has the same planes."""
    values = call.values()
    return call.result([broadcast(scope, values, shape) for shape in call.shapes])


def _same(scope: Scope, call: Call) -> Result:
    """One operand whose values pass unchanged in place (clone, dropout, softmax)."""
    planes = dict(call.value("self", "input").planes)
    return call.result([planes for _ in call.shapes])


def _reduce(scope: Scope, call: Call) -> Result:
    """sum, mean, amax ...: labels end on reduced dims, others pass."""
    value = call.value("self", "input")
    gone = dims_of(call.args.get("dim"), value.ndim)
    return call.result([_reduced(value, gone, bool(call.args.get("keepdim", False))) for _ in call.shapes])


def _reduced(value: Value, gone: Sequence[int], keepdim: bool) -> dict[int, Ids]:
    kept = [dim for dim in range(value.ndim) if dim not in gone]
    return {(dim if keepdim else kept.index(dim)): value.planes[dim] for dim in kept if dim in value.planes}


def _reduce_position(scope: Scope, call: Call) -> Result:
    """argmax, max along a dim, median: which position won is (part of) the answer."""
    value = call.value("self")
    gone = dims_of(call.args.get("dim"), value.ndim)
    freeze_dims(scope, value, gone, "position-bound operator")
    planes = _reduced(value, gone, bool(call.args.get("keepdim", False)))
    return call.result([planes for _ in call.shapes])


def _along_position(scope: Scope, call: Call) -> Result:
    """cumsum, sort, topk: the order of positions along the dim matters."""
    value = call.value("self")
    dims = dims_of(call.args.get("dim", -1), value.ndim)
    freeze_dims(scope, value, dims, "position-bound operator")
    planes = keep_planes(value, [dim for dim in range(value.ndim) if dim not in dims])
    return call.result([planes for _ in call.shapes])


def _channel_vectors(scope: Scope, call: Call, names: Sequence[str], dim: int) -> Ids | None:
    """Pair a dim of the input with vector operands of its size."""
    value = call.value("input", "self")
    size = value.shape[dim]
    vectors = [value.planes.get(dim)]
    for name in names:
        operand = call.optional(name)
        if operand is not None and operand.shape == (size,):
            vectors.append(operand.planes.get(0))
    return scope.pair_all(vectors, UNTAGGED) if size > 1 else None


def _batch_norm(scope: Scope, call: Call) -> Result:
    """Batch and instance norm: statistics per channel; outputs are the values, then vectors over channels."""
    value = call.value("input")
    channels = _channel_vectors(scope, call, ("weight", "bias", "running_mean", "running_var"), 1)
    planes = dict(value.planes)
    if channels is not None:
        planes[1] = channels
    vector = {0: channels} if channels is not None else {}
    return call.result([planes] + [vector if shape == (value.shape[1],) else {} for shape in call.shapes[1:]])


def _prelu(scope: Scope, call: Call) -> Result:
    value, weight = call.value("self"), call.value("weight")
    if int(np.prod(weight.shape)) > 1:
        scope.pair(value.planes.get(1), weight.planes.get(0), UNTAGGED)
    return call.result([dict(value.planes)])


def _layer_norm(scope: Scope, call: Call) -> Result:
    value = call.value("input")
    width = len(call.args["normalized_shape"])
    for name in ("weight", "bias"):
        operand = call.optional(name)
        if operand is not None:
            for place in range(width):
                dim = value.ndim - width + place
                if value.shape[dim] > 1:
                    scope.pair(value.planes.get(dim), operand.planes.get(place), UNTAGGED)
    return call.result([dict(value.planes)] + [{} for _ in call.shapes[1:]])


def unite_rows(scope: Scope, ids: Ids, groups: int) -> None:
    """Unite the g parts of a vector index by index: the same ones go from each part."""
    rows = ids.reshape(groups, -1)
    scope.unite(np.tile(rows[0], groups - 1), rows[1:].reshape(-1))


def _group_norm(scope: Scope, call: Call) -> Result:
    value = call.value("input")
    ids = value.planes.get(1)
    if ids is not None:
        unite_rows(scope, ids, int(call.args["num_groups"]))
    _channel_vectors(scope, call, ("weight", "bias"), 1)
    return call.result([dict(value.planes)])


def _glu(scope: Scope, call: Call) -> Result:
    """a * sigmoid(b) over the halves of a dim."""
    value = call.value("self")
    dim = int(call.args.get("dim", -1)) % value.ndim
    planes = dict(value.planes)
    if dim in planes:
        unite_rows(scope, planes[dim], 2)
        planes[dim] = planes[dim][: len(planes[dim]) // 2]
    return call.result([planes])


def _weight_norm(scope: Scope, call: Call) -> Result:
    """g * v / norm(v): one g per index of `dim`."""
    value, gain = call.value("v"), call.value("g")
    dim = int(call.args.get("dim", 0))
    if gain.ndim == value.ndim and 0 <= dim < value.ndim and value.shape[dim] > 1:
        scope.pair(value.planes.get(dim), gain.planes.get(dim), UNTAGGED)
    return call.result([dict(value.planes)] + [dict(gain.planes) for _ in call.shapes[1:]])


def _resample(scope: Scope, call: Call) -> Result:
    """Pooling and interpolation: the last dims are spatial, batch and channels pass."""
    value = call.value("self", "input")
    spatial = _SPATIAL[call.key.removeprefix("aten::")]
    dims = [dim for dim in range(value.ndim) if dim >= value.ndim - spatial]
    freeze_dims(scope, value, dims, "spatial dim")
    planes = keep_planes(value, range(value.ndim - spatial))
    return call.result([planes for _ in call.shapes])


def _grid_sample(scope: Scope, call: Call) -> Result:
    value = call.value("input")
    scope.freeze_value(call.args.get("grid"), "sampling grid")
    freeze_dims(scope, value, range(2, value.ndim), "spatial dim")
    return call.result([keep_planes(value, (0, 1))])


def _grid_generator(scope: Scope, call: Call) -> Result:
    scope.freeze_value(call.values(), "sampling grid")
    return call.result([{} for _ in call.shapes])


_SPATIAL = {
    **{f"{kind}_pool{n}d": n for n in (1, 2, 3) for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "lp")},
    **{f"max_pool{n}d_with_indices": n for n in (2, 3)},
    **{f"adaptive_max_pool{n}d": n for n in (1, 2, 3)},
    **{f"_adaptive_avg_pool{n}d": n for n in (2, 3)},
    **{f"upsample_{kind}{n}d": n for n in (1, 2, 3) for kind in ("nearest", "_nearest_exact")},
    **{f"_upsample_nearest_exact{n}d": n for n in (1, 2, 3)},
    "upsample_linear1d": 1,
    "upsample_bilinear2d": 2,
    "upsample_bicubic2d": 2,
    "_upsample_bilinear2d_aa": 2,
    "_upsample_bicubic2d_aa": 2,
    "upsample_trilinear3d": 3,
}


def _named(names: str, rule: Rule) -> dict[str, Rule]:
    return {f"aten::{name}": rule for name in names.split()}


_UNTAGGED_POINTWISE = ("hardswish", "log_sigmoid", "relu6", "gelu", "mish", "rrelu_with_noise")
"""Index by index too, though torch does not tag them, or their in-place twins, as such."""

HARMLESS_WRITES = {
    f"aten::{name}_"
    for name in [
        *("copy", "dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "fill", "zero", "detach"),
        *_UNTAGGED_POINTWISE,
    ]
}
"""Writes after which every index still stands for the same channel, or for a constant."""

RULES: dict[str, Rule] = {
    **_named("clone contiguous _to_copy to alias detach lift_fresh_copy lift_fresh dropout native_dropout", _same),
    **_named(
        "type_as alpha_dropout feature_dropout feature_alpha_dropout fill softmax log_softmax _softmax _log_softmax",
        _same,
    ),
    **_named("copy", elementwise),
    **_named(" ".join(_UNTAGGED_POINTWISE), elementwise),
    **_named("sum nansum mean prod var std var_mean std_mean amax amin logsumexp norm linalg_vector_norm", _reduce),
    **_named("any all count_nonzero", _reduce),
    **_named("argmax argmin max min median mode kthvalue", _reduce_position),
    **_named("cumsum cumprod sort topk argsort cummax cummin logcumsumexp", _along_position),
    **_named("batch_norm instance_norm _native_batch_norm_legit_no_training native_batch_norm", _batch_norm),
    **_named("_native_batch_norm_legit _native_batch_norm_legit_functional _batch_norm_with_update", _batch_norm),
    **_named("_batch_norm_with_update_functional _batch_norm_no_update cudnn_batch_norm", _batch_norm),
    **_named("prelu _prelu_kernel", _prelu),
    **_named("layer_norm native_layer_norm rms_norm _fused_rms_norm", _layer_norm),
    **_named("group_norm", _group_norm),
    **_named("glu", _glu),
    **_named("_weight_norm _weight_norm_interface", _weight_norm),
    **_named("grid_sampler grid_sampler_2d grid_sampler_3d", _grid_sample),
    **_named("affine_grid_generator", _grid_generator),
    **_named(" ".join(_SPATIAL), _resample),
}
