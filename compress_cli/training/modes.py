"""From `--schedule` to what keeps the network sparse while it trains."""

from __future__ import annotations

from typing import Any

from torch import nn

from compress_cli.training.phases import Phases
from compress_cli.training.soft import SoftThreshold
from compress_cli.training.sparse import Dense, Frozen, Gradual
from pruners.magnitude_options import count_zeros_asked
from pruners.masks import Masks
from pruners.schedules import CubicSchedule, Schedule

RAMP_BEGIN, RAMP_END = 5 / 160, 80 / 160
"""Shares of all steps between which the sparsity grows: epochs 5 to 80 of 160, as ST-3's authors do for CIFAR."""
RESELECTIONS = 200
"""How often, about, the weights are ranked anew along a ramp."""


def choose_sparsifier(
    module: nn.Module, constraint: Any | None, plan: Any | None, mode: str, steps: int, schedule: Schedule | None = None
) -> Dense:
    """What holds while a module trains.

    Args:
        constraint: what must hold after every step, `pruners.masks.Masks` for zeros; None: nothing.
        plan: the `MagnitudePlan`; modes other than one-shot rank its tensors anew.
        mode: `one-shot` (zeros as they are), `gradual`, `st3` or `acdc`.
        schedule: of `gradual` and `st3`; None for the default ramp.
    """
    if constraint is None:
        return Dense()
    if mode == "one-shot" or not isinstance(constraint, Masks) or plan is None:
        return Frozen(constraint)
    if mode == "acdc":
        return Phases(module, plan, steps)
    ramp = schedule or default_ramp(constraint, plan, steps)
    return SoftThreshold(module, plan, ramp) if mode == "st3" else Gradual(constraint, ramp, plan)


def default_ramp(masks: Masks, plan: Any, steps: int) -> CubicSchedule:
    """The cubic ramp from the zeros that are there to the plan's sparsity, over the first half of the steps."""
    start = sum(masks.zeros().values()) / plan.weights
    final = max(_final(plan), start)
    begin = int(RAMP_BEGIN * steps)
    end = max(begin + 1, int(RAMP_END * steps))
    return CubicSchedule(start, final, begin, end, every=max(1, (end - begin) // RESELECTIONS))


def final_sparsity(module: nn.Module, constraint: Any | None, plan: Any | None) -> float | None:
    """Share of zeros among the constrained weights in the end; None where nothing is sparse."""
    if plan is not None and hasattr(plan, "zeros_after"):
        return _final(plan)
    if not isinstance(constraint, Masks):
        return None
    parameters = dict(module.named_parameters(remove_duplicate=False))
    zeros = constraint.zeros()
    total = sum(parameters[name].numel() for name in zeros)
    return sum(zeros.values()) / total if total else None


def _final(plan: Any) -> float:
    """The plan's sparsity as zeros / weights, or that of the zeros that were there before, if more."""
    asked: int = count_zeros_asked(plan.sparsity, plan.weights)
    return max(asked, int(plan.zeros_before)) / int(plan.weights)
