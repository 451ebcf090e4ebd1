"""Every task on a model that is really cut, in eval mode, against its bound."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from pruners.channels import ChannelsPlan, Groups, make_plan
from pruners.channels.surgery import cut_
from pruners.pagcp.options import PagcpOptions
from pruners.pagcp.ranking import Chosen
from pruners.pagcp.result import FinalCheck
from pruners.pagcp.tasks import Losses, TaskData, evaluate, fewest_targets, mean, rises


def plan_of(groups: Groups, removal: Chosen, options: PagcpOptions) -> ChannelsPlan:
    """The removal as a plan that records how it was searched for."""
    return make_plan(
        groups, removal, {"search": options.search, "score": "measured" if options.measured else options.ranking}
    )


def final_check(
    model: nn.Module,
    groups: Groups,
    removal: Chosen,
    data: TaskData,
    options: PagcpOptions,
    before: Losses,
    recalibrate: Callable[[nn.Module], object] | None = None,
) -> FinalCheck:
    """Cut a copy, re-estimate its batch norms, and compare every task in eval mode with the original's losses."""
    small = copy.deepcopy(model).eval()
    if removal:
        cut_(small, plan_of(groups, removal, options))
    return judge_cut(small, data, options, before, recalibrate if removal else None)


def judge_cut(
    small: nn.Module,
    data: TaskData,
    options: PagcpOptions,
    before: Losses,
    recalibrate: Callable[[nn.Module], object] | None = None,
) -> FinalCheck:
    """Compare a cut model's tasks with the original's losses, after re-estimating its batch norms in place."""
    if recalibrate is not None:
        recalibrate(small)
    after = evaluate(data, small)
    found = rises(after, before, data.floors)
    bounds = dict(options.max_rise)
    worst = max(bounds, key=lambda task: found[task] - bounds[task]) if bounds else ""
    return FinalCheck(
        before={task: mean(values) for task, values in before.items()},
        after={task: mean(values) for task, values in after.items()},
        rises=found,
        bounds=bounds,
        holds=all(found[task] <= bound for task, bound in bounds.items()) if bounds else None,
        worst=worst,
        backed_off=0,
        samples=fewest_targets(before),
    )
