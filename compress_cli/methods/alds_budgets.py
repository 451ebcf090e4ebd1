"""From `--max-params`, `--max-flops`, `--max-size` and `--max-latency` to a plan that meets all of them.

A plan is solved for one additive cost. With several limits each is solved in turn, a little tighter every time, until
its plan meets the others too; of those plans the one with the least error is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import Any

from compress_cli.errors import UsageError
from decomposers import alds
from decomposers.errors import InfeasibleBudget
from decomposers.folding import Form
from decomposers.tables import Quantity

ONNX_OVERHEAD = 600
"""Bytes that a second node, its name and its attributes add to an ONNX file, at most."""
TIGHTEN = 0.98
STEPS = 60

FLAGS: dict[Quantity, str] = {
    "params": "--max-params",
    "macs": "--max-flops",
    "bytes": "--max-size",
    "ms": "--max-latency",
}


@dataclass(frozen=True, slots=True)
class Budget:
    """One limit on the whole model: `bound` of `total`, the original's, both in `quantity`; `asked` as typed."""

    quantity: Quantity
    asked: str
    bound: float
    total: float


def solve(
    analysis: alds.Analysis,
    budgets: Sequence[Budget],
    timings: Mapping[str, Mapping[Form | None, float]] | None = None,
) -> alds.AldsPlan:
    """Choose a form for every layer so that all budgets are met.

    Raises:
        UsageError: a budget cannot be met, alone or together with the others.
    """
    plans = [plan for budget in budgets if (plan := _solve_one(analysis, budget, budgets, timings)) is not None]
    if not plans:
        asked = " and ".join(f"{FLAGS[budget.quantity]} {budget.asked}" for budget in budgets)
        raise UsageError(f"{asked} cannot be met together", "loosen one of them")
    return min(plans, key=lambda plan: plan.max_minimised)


def _solve_one(
    analysis: alds.Analysis,
    budget: Budget,
    budgets: Sequence[Budget],
    timings: Mapping[str, Mapping[Form | None, float]] | None,
) -> alds.AldsPlan | None:
    """Solve for one budget, tighter until the others hold too; None when they never do."""
    limit = budget.bound
    for step in range(STEPS):
        try:
            plan = alds.choose(analysis, cost=budget.quantity, budget=limit, total=budget.total, timings=timings)
        except InfeasibleBudget as error:
            if step == 0:
                raise UsageError(*_refusal(budget, error, analysis)) from error
            return None
        costs = costs_of_plan(analysis, plan, timings)
        if all(other.total - costs[other.quantity] <= other.bound for other in budgets):
            return plan
        limit = min(limit, plan.planned) * TIGHTEN
    return None


def costs_of_plan(
    analysis: alds.Analysis, plan: alds.AldsPlan, timings: Mapping[str, Mapping[Form | None, float]] | None
) -> dict[Quantity, float]:
    """What a plan saves of each quantity."""
    weights = sum(layer.weights_before - layer.weights_after for layer in plan.layers)
    macs = sum(layer.macs_before - layer.macs_after for layer in plan.layers)
    ms = 0.0
    for layer in plan.layers:
        known = (timings or {}).get(layer.name, {})
        ms += known.get(None, 0.0) - known.get(layer.form, float("inf")) if timings else 0.0
    return {"params": weights, "macs": macs, "bytes": 4 * weights, "ms": ms}


def _refusal(budget: Budget, error: InfeasibleBudget, analysis: alds.Analysis) -> tuple[str, str]:
    """What cannot be met, what could be, and what to type."""
    flag, share = FLAGS[budget.quantity], error.smallest / budget.total
    least = floor(share * 1000 + 1) / 10  # rounded up to a tenth of a percent
    limit = analysis.options.max_groups
    groups = "" if limit is None else f", or a larger --max-groups than {limit}"
    return (
        f"{flag} {budget.asked} cannot be met: the smallest decomposition of this network has"
        f" {error.smallest:,.10g} of {budget.total:,.10g} {error.unit} ({share:.1%})",
        f"{flag} {least:g}%{groups}, or fewer layers in --ignore",
    )


def achieved_counts(budget: Budget, complexity: Any) -> int | None:
    """What was found of a quantity that is counted in the reloaded model; None for those measured elsewhere."""
    counted = {"params": "params", "macs": "macs"}
    return int(getattr(complexity, counted[budget.quantity])) if budget.quantity in counted else None
