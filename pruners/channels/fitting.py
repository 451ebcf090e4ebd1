"""Find the gentlest way to cut a model that can be proved: the tiers of `plan_type.TIERS`, tried in order.

1 slices the user's modules. 2 also edits int and tuple attributes that hold a width. 3 freezes channels behind sizes
written into the code and selects again. 4 runs the traced graph with new sizes. A tier counts only with its proof.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from pruners.channels.constraints import Constrained, constrained, run_error
from pruners.channels.detectors import is_detector, traceable
from pruners.channels.emission import emit_, example_from, graph_hash, programs_of
from pruners.channels.errors import CannotTrace, ChannelsMismatch, InfeasibleBudget, NothingToRemove, SurgeryFailed
from pruners.channels.groups import Groups, analyse
from pruners.channels.plan_type import ChannelsPlan
from pruners.channels.planning import removed_roots
from pruners.channels.proofs import Check, Proof, prove
from pruners.channels.repair import repaired
from pruners.channels.surgery import cut_

Choose = Callable[[Groups], ChannelsPlan]
ROUNDS = 6
WORSE = 0.1
"""Tier 3 is taken when it leaves at most this share of the dense parameters and MACs more than asked for."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A cut model, how it was cut, and the evidence."""

    model: nn.Module
    plan: ChannelsPlan
    proof: Proof
    groups: Groups
    refused: tuple[str, ...]


def fit(
    model: nn.Module,
    example_inputs: Sequence[Any],
    groups: Groups,
    choose: Choose,
    *,
    tiers: Sequence[int] = (1, 2, 3, 4),
) -> Fitted:
    """Cut a copy of the model in the first way that passes its proofs.

    Args:
        choose: makes the plan for an analysis; called again when more channels had to be frozen.
        tiers: which ways may be tried.

    Raises:
        SurgeryFailed: none did; the model is as it was in any case.
    """
    if is_detector(model):
        return _detector(model, example_inputs, groups, choose, [tier for tier in tiers if tier < 4])
    first, refused = choose(groups), []
    attempts: list[tuple[int, Callable[[], Fitted]]] = [
        (1, lambda: _in_place(model, example_inputs, groups, first)),
        (2, lambda: _with_edits(model, example_inputs, groups, first)),
        (3, lambda: _with_constraints(model, example_inputs, groups, first, choose)),
        (4, lambda: _as_graph(model, example_inputs, groups, first)),
    ]
    for tier, attempt in attempts:
        if tier not in tiers:
            continue
        try:
            found = attempt()
        except (SurgeryFailed, CannotTrace, NothingToRemove, InfeasibleBudget) as error:
            refused.append(f"tier {tier}: {error.reason if isinstance(error, SurgeryFailed) else error}")
            continue
        return replace(found, refused=tuple(refused))
    raise SurgeryFailed(max(tiers), "; ".join(refused))


def _detector(model: nn.Module, inputs: Sequence[Any], groups: Groups, choose: Choose, tiers: Sequence[int]) -> Fitted:
    """Cut a detector as its raw heads were, and run it whole."""
    form, batch = traceable(model, inputs)
    found = fit(form, batch, groups, choose, tiers=tiers)
    small = copy.deepcopy(model)
    cut_(small, found.plan)
    if len(inputs) != 1 or not isinstance(inputs[0], list):
        return replace(found, model=small)
    error = run_error(small, inputs)
    if error is not None:
        raise SurgeryFailed(found.plan.tier, f"the whole detector does not run: {type(error).__name__}: {error}"[:300])
    ran = Check("whole detector", True, "it runs on the example images")
    return replace(found, model=small, proof=Proof((*found.proof.checks, ran)))


def _proved(original: nn.Module, small: nn.Module, plan: ChannelsPlan, inputs: Sequence[Any], groups: Groups) -> Fitted:
    proof = prove(original, small, plan, inputs, groups=groups)
    for check in proof.checks:
        if not check.passed:
            raise SurgeryFailed(plan.tier, f"{check.name}: {check.detail}")
    return Fitted(small, replace(plan, proved=True), proof, groups, ())


def _in_place(model: nn.Module, inputs: Sequence[Any], groups: Groups, plan: ChannelsPlan) -> Fitted:
    small = copy.deepcopy(model)
    cut_(small, plan)
    return _proved(model, small, plan, inputs, groups)


def _with_edits(model: nn.Module, inputs: Sequence[Any], groups: Groups, plan: ChannelsPlan) -> Fitted:
    small = copy.deepcopy(model)
    cut_(small, plan)
    edits = repaired(small, plan, groups, inputs)
    if not edits:
        raise SurgeryFailed(2, "no attribute holds the size that is wrong")
    edited = replace(plan, tier=2, attributes=tuple(edits))
    fresh = copy.deepcopy(model)
    cut_(fresh, edited)
    return _proved(model, fresh, edited, inputs, groups)


def _with_constraints(
    model: nn.Module, inputs: Sequence[Any], groups: Groups, first: ChannelsPlan, choose: Choose
) -> Fitted:
    state = Constrained(groups, first, ())
    for _ in range(ROUNDS):
        state = constrained(model, inputs, state, choose)
        plan = replace(state.plan, tier=3, constraints=state.log)
        small = copy.deepcopy(model)
        cut_(small, plan)
        try:
            found = _proved(model, small, plan, inputs, state.groups)
        except SurgeryFailed as error:
            last = error
            continue
        allowed = (first.params_after + WORSE * first.params_before, first.macs_after + WORSE * first.macs_before)
        if plan.params_after > allowed[0] or plan.macs_after > allowed[1]:
            raise SurgeryFailed(3, "too little is left to remove when the sizes in the code stay")
        return found
    raise last


def _as_graph(model: nn.Module, inputs: Sequence[Any], groups: Groups, plan: ChannelsPlan) -> Fitted:
    shapes = [text for entry in groups.entries if entry.mode == "eval" for text in entry.shapes()]
    small = copy.deepcopy(model)
    note, scales = emit_cut_(small, groups, plan)
    made = replace(
        plan,
        tier=4,
        scales=scales,
        graph={"inputs": shapes, "hash": graph_hash(groups)},
        warnings=(*plan.warnings, *note),
    )
    return _proved(model, small, made, inputs, groups)


def emit_cut_(
    model: nn.Module, groups: Groups, plan: ChannelsPlan
) -> tuple[tuple[str, ...], tuple[tuple[str, float], ...]]:
    """Cut a model and let it run its rewritten graphs; returns remarks and the attention scales that were pinned."""
    gone = removed_roots(groups, {place: cut.removed for place, cut in enumerate(plan.groups) if cut.removed})
    programs, rewriter = programs_of(model, groups, gone)
    cut_(model, plan)
    emit_(model, programs)
    sizes = " and ".join(" x ".join(map(str, shape[1:])) for shape in programs[0].sizes if len(shape) > 1)
    notes = [f"the traced graph runs on inputs of {sizes} only"] if sizes else []
    if not all(program.dynamic for program in programs):
        notes.append("the traced graph runs at the traced batch size only")
    if all(program.mode != "train" for program in programs):
        notes.append("in train mode the graph traced in eval mode runs: without dropout")
    return tuple(notes), tuple(dict(rewriter.scales).items())


def repeat_graph_(model: nn.Module, plan: ChannelsPlan) -> None:
    """Repeat a tier 4 plan on a dense model: trace it again, check that nothing differs, rewrite.

    Raises:
        ChannelsMismatch: this torch traces the model differently; the model is unchanged.
    """
    recorded = plan.graph or {}
    inputs = example_from(recorded["inputs"])
    groups = analyse(model, inputs, ignore=plan.options.get("ignore", ()), only=plan.options.get("only", ()))
    same = [(cut.name, cut.units) for cut in plan.groups] == [(group.name, group.units) for group in groups.groups]
    if not same or graph_hash(groups) != recorded.get("hash"):
        raise ChannelsMismatch(("the traced graph differs from the one the plan was made on (another torch version?)",))
    emit_cut_(model, groups, plan)
