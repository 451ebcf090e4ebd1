"""Find which channels go, under a bound on every task's loss or a cost target; the model is not changed."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import nn

from pruners.channels import ChannelsPlan, CostModel, Groups, NothingToRemove, analyse, apply_, make_plan
from pruners.channels.errors import BadChannelOptions
from pruners.pagcp.options import PagcpOptions, floor_of, most_removed
from pruners.pagcp.oracle import Oracle, make_oracle, reestimate_batchnorm_
from pruners.pagcp.path import Cut, Progress, cut_path
from pruners.pagcp.ranking import Chosen, ascending, make_path, worst_task
from pruners.pagcp.result import FinalCheck, Found, SearchRecord, Sensitivity
from pruners.pagcp.scores import Scores, fisher_scores, l1_scores
from pruners.pagcp.sweep import Swept, sweep
from pruners.pagcp.tasks import Losses, TaskData, evaluate, mean, rises

MOST_STEPS_BACK = 40


def plan(
    model: nn.Module,
    example_inputs: Sequence[Any],
    data: TaskData,
    options: PagcpOptions,
    *,
    groups: Groups | None = None,
    recalibrate: Callable[[nn.Module], object] | None = None,
    on_step: Callable[[str, int, int], None] | None = None,
) -> Found:
    """Search, cut a copy, and check every task on it; give channels back until the bounds hold.

    With a cost target the target is the goal and the check only says whether the bounds hold.

    Args:
        groups: the analysis of this model, when it was made before.
        recalibrate: re-estimates batch-norm statistics of a cut copy in place, as will be done with the real one;
            None: from the calibration batches, when the search used batch statistics (`reestimate_batchnorm_`).
        on_step: called with (part, done, total).

    Raises:
        NothingToRemove: no channel may go.
        InfeasibleBudget: the target is out of reach.
        BadChannelOptions: bounds for tasks that are not there, or tolerances that do not fit.
    """
    inputs = tuple(example_inputs)
    clock = _Clock()
    if recalibrate is None and options.batch_statistics:

        def recalibrate(small: nn.Module) -> None:
            reestimate_batchnorm_(small, data)

    groups = groups or analyse(model, inputs)
    clock.lap("analysis")
    if not groups.groups:
        raise NothingToRemove(tuple(dict.fromkeys(str(item.reason) for item in groups.frozen)))
    before = evaluate(data, model)
    _check_tasks(options, before)
    oracle = make_oracle(model, groups, data, options, inputs)
    clock.lap("reference")
    scores = _scores(model, groups, data, options, oracle)
    clock.lap("scores")
    spent = oracle.forwards
    table = sensitivity(oracle, scores, options.probe, _named(on_step, "sensitivity"))
    extra, calls = oracle.forwards - spent, oracle.effort.calls
    clock.lap("sensitivity")
    found: Cut | Swept
    if options.search == "path":
        found = cut_path(oracle, make_path(groups, scores, options), options, _named(on_step, "search"))
    else:
        fixed = None if options.ranking == "l1" else scores
        found = sweep(oracle, options, fixed, _named(on_step, "search"))
    clock.lap("search")
    found, check = _settle(model, groups, data, options, found, before, recalibrate)
    clock.lap("final check")
    record = SearchRecord(
        search=options.search,
        options=asdict(options),
        quantity=options.quantity,
        dense=_cost(groups, {}, options),
        found=_cost(groups, found.removal, options),
        target=options.target,
        samples=len(next(iter(before.values()))),
        floors=dict(data.floors),
        steps=found.steps,
        check=check,
        full_forwards=oracle.forwards - extra,
        calls=oracle.effort.calls - calls + 1,
        gradient_passes=oracle.effort.gradient_passes,
        early=oracle.effort.early,
        test_errors=oracle.effort.errors,
        sensitivity=table,
        sensitivity_forwards=extra,
        decay=found.decay if isinstance(found, Swept) else None,
        seconds=clock.seconds,
    )
    return Found(_plan(groups, found.removal, options), record, groups)


def sensitivity(
    oracle: Oracle, scores: Scores, share: float, on_step: Progress | None = None
) -> tuple[Sensitivity, ...]:
    """Every group alone: what switching off this share of its lowest channels saves and does to each task."""
    if not share:
        return ()
    cost, rows = CostModel(oracle.groups), []
    for place, group in enumerate(oracle.groups.groups):
        units = ascending(scores[place])[: max(1, int(share * group.units))]
        dense = (cost.macs, cost.params)
        cost.remove_all((place, unit) for unit in units)
        saved = (dense[0] - cost.macs, dense[1] - cost.params)
        for unit in units:
            cost.restore(place, unit)
        found = oracle.rises(oracle.losses({place: units}))
        worst = max(found, key=lambda task: found[task])
        rows.append(Sensitivity(group.name, group.units, len(units), saved[0], saved[1], found, worst))
        if on_step is not None:
            on_step(place + 1, len(oracle.groups.groups))
    return tuple(rows)


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
        apply_(small, _plan(groups, removal, options))
        if recalibrate is not None:
            recalibrate(small)
    after = evaluate(data, small) if removal else before
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
    )


def _settle(
    model: nn.Module,
    groups: Groups,
    data: TaskData,
    options: PagcpOptions,
    found: Cut | Swept,
    before: Losses,
    recalibrate: Callable[[nn.Module], object] | None,
) -> tuple[Cut | Swept, FinalCheck]:
    """Check the cut model, and without a cost target give channels back until every bound holds."""
    check = final_check(model, groups, found.removal, data, options, before, recalibrate)
    back = 0
    while check.holds is False and options.target is None:
        shorter = found.shorter(back + 1)
        if shorter is None:
            break
        found, back = shorter, back + 1
        check = final_check(model, groups, found.removal, data, options, before, recalibrate)
    return found, replace(check, backed_off=back)


def _scores(model: nn.Module, groups: Groups, data: TaskData, options: PagcpOptions, oracle: Oracle) -> Scores:
    if options.ranking == "l1":
        return l1_scores(model, groups)
    oracle.effort.gradient_passes += 1
    return worst_task(fisher_scores(model, groups, data))


def _check_tasks(options: PagcpOptions, losses: Losses) -> None:
    unknown = [task for task in options.max_rise if task not in losses]
    if unknown:
        raise BadChannelOptions(f"there is no task {unknown[0]!r}; tasks: {', '.join(losses)}")
    empty = [task for task, values in losses.items() if bool(values.isnan().all())]
    if empty:
        raise BadChannelOptions(f"no calibration sample has a target for the task {empty[0]!r}")


def _plan(groups: Groups, removal: Chosen, options: PagcpOptions) -> ChannelsPlan:
    return make_plan(groups, removal, {"search": options.search, "score": options.ranking})


def _cost(groups: Groups, removal: Chosen, options: PagcpOptions) -> int:
    cost = CostModel(groups)
    cost.remove_all((group, unit) for group, units in removal.items() for unit in units)
    return cost.macs if options.quantity == "macs" else cost.params


def _named(on_step: Callable[[str, int, int], None] | None, part: str) -> Progress | None:
    return None if on_step is None else lambda done, total: on_step(part, done, total)


class _Clock:
    """Seconds of each part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Close a part."""
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now


__all__ = ["final_check", "floor_of", "most_removed", "plan", "sensitivity"]
