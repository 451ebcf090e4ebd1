"""Find which channels go, under a bound on every task's loss or a cost target; the model is not changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import nn

from pruners.channels import ChannelsPlan, CostModel, Groups, NothingToRemove, analyse
from pruners.channels.errors import BadChannelOptions
from pruners.channels.measuring import factors
from pruners.pagcp.options import PagcpOptions
from pruners.pagcp.oracle import Oracle, make_oracle, reestimate_batchnorm_
from pruners.pagcp.path import Cut, Progress, cut_path
from pruners.pagcp.ranking import ascending, make_path, worst_task
from pruners.pagcp.result import Found, SearchRecord, Sensitivity
from pruners.pagcp.scores import Scores, fisher_scores, l1_scores
from pruners.pagcp.settling import Clock, Searched, Settler
from pruners.pagcp.sweep import Swept, sweep
from pruners.pagcp.tasks import Losses, TaskData


def plan(
    model: nn.Module,
    example_inputs: Sequence[Any],
    data: TaskData,
    options: PagcpOptions,
    *,
    groups: Groups | None = None,
    recalibrate: Callable[[nn.Module, ChannelsPlan], object] | None = None,
    on_step: Callable[[str, int, int], None] | None = None,
) -> Found:
    """Search, cut and prove a copy, and check every task on it; give channels back until the bounds hold.

    The check sees the data's held-out batches where there are any: a bound that holds where it was searched for is
    optimistic.

    With a cost target the target is the goal and the check only says whether the bounds hold.

    Args:
        groups: the analysis of this model, when it was made before.
        recalibrate: re-estimates batch-norm statistics of a copy cut by a plan, as will be done with the real one;
            None: from the calibration batches, when the search used batch statistics (`reestimate_batchnorm_`).
        on_step: called with (part, done, total).

    Raises:
        NothingToRemove: no channel may go.
        SurgeryFailed: no way of cutting could be proved.
        InfeasibleBudget: the target is out of reach.
        BadChannelOptions: bounds for tasks that are not there, or tolerances that do not fit.
    """
    inputs = tuple(example_inputs)
    if recalibrate is None and options.batch_statistics:

        def recalibrate(small: nn.Module, _: ChannelsPlan) -> None:
            reestimate_batchnorm_(small, data)

    clock = Clock()
    groups = groups or analyse(model, inputs)
    clock.lap("analysis")
    judged, before = data.for_check(model)
    _check_tasks(options, before)

    def look(found: Groups) -> Searched:
        return search(model, inputs, data, options, found, clock, on_step)

    settled = Settler(model, inputs, judged, options, before, recalibrate).settle(look(groups), look)
    clock.lap("final check")
    last, made = settled.searched, settled.fitted.plan
    record = SearchRecord(
        search=options.search,
        options=asdict(options),
        quantity=options.quantity,
        dense=made.macs_before if options.quantity == "macs" else made.params_before,
        found=made.macs_after if options.quantity == "macs" else made.params_after,
        target=options.target,
        samples=last.samples,
        floors=dict(data.floors),
        steps=last.cut.steps,
        check=replace(settled.check, held_out=judged is not data),
        full_forwards=last.full_forwards,
        calls=last.effort.calls,
        gradient_passes=last.effort.gradient_passes,
        early=last.effort.early,
        test_errors=last.effort.errors,
        sensitivity=last.sensitivity,
        sensitivity_forwards=last.sensitivity_forwards,
        decay=last.cut.decay if isinstance(last.cut, Swept) else None,
        seconds=clock.seconds,
    )
    return Found(settled.fitted, record)


def search(
    model: nn.Module,
    inputs: tuple[Any, ...],
    data: TaskData,
    options: PagcpOptions,
    groups: Groups,
    clock: Clock,
    on_step: Callable[[str, int, int], None] | None = None,
) -> Searched:
    """Rank and search over one analysis; see `plan` for the errors."""
    if not groups.groups:
        raise NothingToRemove(tuple(dict.fromkeys(str(item.reason) for item in groups.frozen)))
    oracle = make_oracle(model, groups, data, options, inputs)
    _check_tasks(options, oracle.reference)
    clock.lap("reference")
    scores = _scores(model, groups, data, options, oracle)
    clock.lap("scores")
    spent, calls = oracle.forwards, oracle.effort.calls
    table = sensitivity(oracle, scores, options.probe, _named(on_step, "sensitivity"))
    extra, oracle.effort.calls = oracle.forwards - spent, calls
    clock.lap("sensitivity")
    cut: Cut | Swept
    if options.search == "path":
        if options.measured:
            scores = in_one_currency(oracle, scores, _named(on_step, "measured"))
            clock.lap("measured")
        cut = cut_path(oracle, make_path(groups, scores, options), options, _named(on_step, "search"))
    else:
        fixed = None if options.ranking == "l1" else scores
        cut = sweep(oracle, options, fixed, _named(on_step, "search"))
    clock.lap("search")
    samples = len(next(iter(oracle.reference.values())))
    return Searched(groups, cut, samples, oracle.effort, oracle.forwards - extra, table, extra)


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


def _scores(model: nn.Module, groups: Groups, data: TaskData, options: PagcpOptions, oracle: Oracle) -> Scores:
    if options.ranking == "l1":
        return l1_scores(model, groups)
    oracle.effort.gradient_passes += 1
    return worst_task(fisher_scores(model, groups, data))


def in_one_currency(oracle: Oracle, scores: Scores, on_step: Progress | None = None) -> Scores:
    """Scores times what the outputs show when half of each group is off (`pruners.channels.measuring`)."""
    found = factors(scores, oracle.outputs, on_step)
    return [values * factor for values, factor in zip(scores, found, strict=True)]


def _check_tasks(options: PagcpOptions, losses: Losses) -> None:
    unknown = [task for task in options.max_rise if task not in losses]
    if unknown:
        raise BadChannelOptions(f"there is no task {unknown[0]!r}; tasks: {', '.join(losses)}")
    empty = [task for task, values in losses.items() if bool(values.isnan().all())]
    if empty:
        raise BadChannelOptions(
            f"no calibration sample has a target for the task {empty[0]!r}, or the model's outputs are NaN for all"
        )


def _named(on_step: Callable[[str, int, int], None] | None, part: str) -> Progress | None:
    return None if on_step is None else lambda done, total: on_step(part, done, total)
