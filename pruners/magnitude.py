"""Global magnitude pruning: zero the k smallest weights of a whole network, exactly as many as asked.

After Gupta et al., "Is Complexity Required for Neural Network Pruning?" (arXiv 2209.14624), with a floor per tensor
under the one threshold, an exact count, deterministic ties and true +0.0. With N ranked weights and sparsity s:
k = floor(s * N + 1/2); order = ascending (abs(w), tensor, index); the first k become zero, where each tensor keeps its
min(n_l, floor) largest. Zeros already present are the smallest weights, count towards k and are never revived.
Other shares of the layers: the same sparsity in each (scope layer), LAMP scores, Erdos-Renyi-Kernel densities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pruners.allocation import allocate
from pruners.candidates import (
    Candidates,
    Skipped,
    candidates_in_module,
    candidates_in_state_dict,
    narrow,
)
from pruners.errors import (
    BadFloor,
    BadOptions,
    BadPlan,
    BadSparsity,
    BadWeights,
    InfeasibleSparsity,
    LayerCollapse,
    NoMatch,
    NothingToPrune,
    PlanMismatch,
    PruningError,
)
from pruners.keys import KINDS, count_zero, first_key, probe, zero_below, zero_ties
from pruners.lamp import lamp_counts
from pruners.magnitude_options import MagnitudeOptions, count_zeros_asked, parse_floor
from pruners.magnitude_plan import Cut, MagnitudePlan, dtype_name
from pruners.schedules import CubicSchedule, OneShot, Schedule
from pruners.selection import Infeasible, LocalCut, NotFinite, global_cuts, local_cut, scan_zeros, untouched

__all__ = [
    "BadFloor",
    "BadOptions",
    "BadPlan",
    "BadSparsity",
    "BadWeights",
    "Candidates",
    "CubicSchedule",
    "Cut",
    "InfeasibleSparsity",
    "LayerCollapse",
    "MagnitudeOptions",
    "MagnitudePlan",
    "NoMatch",
    "NothingToPrune",
    "OneShot",
    "PlanMismatch",
    "PruningError",
    "Schedule",
    "Skipped",
    "apply_",
    "candidates_in_module",
    "candidates_in_state_dict",
    "count_zeros",
    "plan",
]

THIN = 0.01


def plan(ranked: Candidates, options: MagnitudeOptions, schedule: Schedule | None = None) -> MagnitudePlan:
    """Decide which weights become zero; changes nothing.

    With a gradual schedule the cuts are those of its first step, and `options.sparsity` is where it ends.

    Raises:
        NoMatch: an ignore or only pattern matches nothing.
        NothingToPrune: no weight is left to rank.
        BadWeights: NaN, infinity, or a tensor without values (meta).
        InfeasibleSparsity: the floor leaves too few weights to remove.
        LayerCollapse: a tensor would lose its last weight (only with floor 0).
    """
    chosen = narrow(ranked, options.only, options.ignore)
    if not chosen.ranked:
        raise NothingToPrune(len(chosen.left_out), [item.reason for item in chosen.left_out])
    names, tensors = [item.name for item in chosen.ranked], [item.tensor for item in chosen.ranked]
    for name, tensor in zip(names, tensors, strict=True):
        if tensor.is_meta:
            raise BadWeights(name, "has no values (meta device)")
    now = options.sparsity if schedule is None else repr(schedule.sparsity_at(schedule.begin))
    asked, floor = count_zeros_asked(now, chosen.weights), parse_floor(options.floor, chosen.weights)
    try:
        threshold, local = _choose(tensors, asked, floor, options)
    except NotFinite as error:
        name = next(name for name, tensor in zip(names, tensors, strict=True) if tensor is error.tensor)
        raise BadWeights(name, "holds NaN or infinity") from error
    except Infeasible as error:
        raise InfeasibleSparsity(now, error.room / chosen.weights, floor) from error
    cuts = tuple(
        Cut(
            name=item.name,
            shape=tuple(item.tensor.shape),
            dtype=dtype_name(item.tensor),
            numel=item.tensor.numel(),
            zeros_before=cut.zeros_before,
            zeros_after=cut.zeros_after,
            threshold=cut.threshold,
            ties=cut.ties,
            ties_taken=cut.taken,
            aliases=item.aliases,
        )
        for item, cut in zip(chosen.ranked, local, strict=True)
    )
    _refuse_collapse(cuts)
    return MagnitudePlan(
        sparsity=options.sparsity,
        scope=options.scope,
        score=options.score,
        floor=options.floor,
        floor_count=floor,
        weights=chosen.weights,
        zeros_asked=asked,
        zeros_before=sum(cut.zeros_before for cut in cuts),
        threshold=threshold,
        cuts=cuts,
        left_out=chosen.left_out,
        warnings=_warnings(cuts, asked, chosen.weights),
        fingerprint=_fingerprint(tensors, cuts),
        schedule=schedule,
    )


def apply_(tensors: Mapping[str, Tensor] | nn.Module, plan: MagnitudePlan) -> dict[str, int]:
    """Zero the planned weights in place; a second time it changes nothing.

    Args:
        tensors: the module, or the tensors of a state dict, that the plan was made for; nothing else is written.

    Returns:
        The zeros of each ranked tensor, counted while writing.

    Raises:
        PlanMismatch: names, shapes, element types or values are not those of the plan; nothing was changed.
    """
    named = _named(tensors)
    plan.applies_to(named)
    chosen = [named[cut.name] for cut in plan.cuts]
    if _fingerprint(chosen, plan.cuts) != plan.fingerprint:
        raise PlanMismatch(("the weights are not those the plan was made for",))
    zeros = {cut.name: _cut_(tensor, cut) for tensor, cut in zip(chosen, plan.cuts, strict=True)}
    wrong = [cut for cut in plan.cuts if zeros[cut.name] != cut.zeros_after]
    if wrong:
        texts = (f"{cut.name} has {zeros[cut.name]:,} zeros, planned {cut.zeros_after:,}" for cut in wrong)
        raise PlanMismatch(tuple(texts))
    return zeros


def count_zeros(tensors: Mapping[str, Tensor] | nn.Module) -> dict[str, int]:
    """Count the zeros of floating-point tensors exactly, block by block; other tensors are passed over."""
    named = _named(tensors)
    return {name: count_zero(tensor) for name, tensor in named.items() if tensor.dtype in KINDS}


def _named(tensors: Mapping[str, Tensor] | nn.Module) -> Mapping[str, Tensor]:
    if isinstance(tensors, nn.Module):
        return dict(tensors.named_parameters(remove_duplicate=False))
    return tensors


def _choose(
    tensors: Sequence[Tensor], k: int, floor: int, options: MagnitudeOptions
) -> tuple[float | None, list[LocalCut]]:
    """Return the common threshold, if there is one, and the cut of each tensor."""
    if options.scope == "global" and options.score == "magnitude":
        return global_cuts(tensors, k, floor)
    zeros = scan_zeros(tensors)
    if k <= sum(zeros):
        return None, [untouched(count) for count in zeros]
    sizes = [tensor.numel() for tensor in tensors]
    low = [min(size - count, floor) for size, count in zip(sizes, zeros, strict=True)]
    if k > sum(sizes) - sum(low):
        raise Infeasible(sum(sizes) - sum(low))
    if options.score == "lamp":
        dropped = lamp_counts(tensors, k, [size - least for size, least in zip(sizes, low, strict=True)])
    else:
        high = [size - count for size, count in zip(sizes, zeros, strict=True)]
        shares = [sum(tensor.shape) for tensor in tensors] if options.score == "erk" else sizes
        kept = allocate(shares, low, high, sum(sizes) - k)
        dropped = [size - keep for size, keep in zip(sizes, kept, strict=True)]
    return None, [local_cut(*each) for each in zip(tensors, dropped, zeros, strict=True)]


def _keys(tensor: Tensor, cut: Cut) -> tuple[int, int]:
    """Return (first key that surely stays or ties, first key that surely stays) of a tensor, both at least 1."""
    partial = cut.ties_taken < cut.ties
    lower = first_key(tensor.dtype, cut.threshold, above=not partial)
    upper = first_key(tensor.dtype, cut.threshold, above=cut.ties_taken > 0)
    return max(lower, 1), max(upper, 1)


def _fingerprint(tensors: Sequence[Tensor], cuts: Sequence[Cut]) -> int:
    seed = 0
    for tensor, cut in zip(tensors, cuts, strict=True):
        seed = probe(tensor, _keys(tensor, cut)[1], seed)
    return seed


def _cut_(tensor: Tensor, cut: Cut) -> int:
    """Zero what one cut says and return the zeros of the tensor."""
    lower, upper = _keys(tensor, cut)
    zeros = tensor.numel() - zero_below(tensor, lower)
    if upper > lower:
        # counting from the zeros there, not from ties_taken, makes a second application do nothing
        wanted = max(cut.zeros_after - zeros, 0)
        zeros += wanted - zero_ties(tensor, lower, wanted)
    if not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)
    return zeros


def _refuse_collapse(cuts: Sequence[Cut]) -> None:
    empty = tuple(cut.name for cut in cuts if cut.removed and cut.zeros_after == cut.numel)
    if empty:
        raise LayerCollapse(empty)


def _warnings(cuts: Sequence[Cut], asked: int, weights: int) -> tuple[str, ...]:
    """Return what the user should know before going on."""
    present = sum(cut.zeros_before for cut in cuts)
    texts = []
    if present > asked:
        texts.append(
            f"{present:,} weights ({present / weights:.4%}) are zero already, more than the {asked:,} asked for:"
            " nothing is removed"
        )
    for cut in cuts:
        if cut.zeros_after == cut.numel:
            texts.append(f"{cut.name} was all zeros already")
        elif cut.density < THIN:
            kept = cut.numel - cut.zeros_after
            texts.append(f"{cut.name} keeps {kept:,} of {cut.numel:,} weights ({cut.density:.3%})")
    return tuple(texts)
