"""The published search (PAGCP): one walk over the channel groups, each pruned as far as its tolerance allows.

Ye et al. 2023, arXiv 2303.11923, in our own words (specs/pagcp.md sections 3 and 4). Groups are walked from the one
that saves most (from the one that saves least when the tolerances grow); in each, counts of lowest-score channels are
tried upward until a task leaves its tolerance. Then the groups with the worst rise per saving are given back.

Mended defects of the released code, by their number in the specification: 3 a group that passes every count is
committed; 4 channels are kept as indices, and the result is checked on the cut model; 6 the filter of groups uses the
largest relative rise of a task, not the sum of unlike losses; 7 losses are means over samples; 9 savings are those of
the network as it is by then; 10 the decay is bisected; 11 losses near 0 have a floor; 12 only counts of 1 or more are
steps; 13, 14 groups come from the traced dependency analysis, and candidates are masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pruners.channels import CostModel
from pruners.channels.errors import InfeasibleBudget
from pruners.pagcp.budgets import Tolerances, suggested_first, tolerances
from pruners.pagcp.options import RATIOS, PagcpOptions, floor_of, most_removed
from pruners.pagcp.oracle import Oracle
from pruners.pagcp.path import Progress
from pruners.pagcp.ranking import Chosen, ascending, cost_of
from pruners.pagcp.result import Step
from pruners.pagcp.scores import Scores, l1_scores
from pruners.pagcp.tasks import Losses, mean, rise

PROBE = 0.3
"""Share of each group's channels whose saving orders the walk."""

STALLED = 0.02
"""Share of the whole cost that a round must save; after less, the next round's tolerances are twice as wide."""


@dataclass(frozen=True, slots=True)
class Committed:
    """One group's cut in one round; `harm` is the largest relative rise of a task over the round's start."""

    group: int
    units: tuple[int, ...]
    harm: float
    saved: int


@dataclass(frozen=True, slots=True)
class Swept:
    """Cuts in the order in which they were made."""

    cuts: tuple[Committed, ...]
    steps: tuple[Step, ...]
    decay: float

    @property
    def removal(self) -> Chosen:
        """What goes."""
        return merged(self.cuts)

    def shorter(self, times: int) -> Swept | None:
        """Without the last cut; None where nothing is left to give back."""
        return Swept(self.cuts[:-1], self.steps, self.decay) if self.cuts else None


def merged(cuts: Sequence[Committed]) -> Chosen:
    """All units of all cuts, by group."""
    found: dict[int, set[int]] = {}
    for cut in cuts:
        found.setdefault(cut.group, set()).update(cut.units)
    return {group: tuple(sorted(units)) for group, units in found.items()}


def sweep(oracle: Oracle, options: PagcpOptions, scores: Scores | None, on_step: Progress | None = None) -> Swept:
    """Walk the groups, up to `options.rounds` times, until the cost target is met.

    Nothing is trained between the rounds here, so the published tolerances soon let nothing go any more: where only a
    cost target is given, a round that saved next to nothing doubles them.

    Args:
        scores: fixed channel scores; None: L1 of the weights as they are.

    Raises:
        InfeasibleBudget: not even the least channels of every group meet the target.
        BadChannelOptions: the first tolerance exceeds the bound.
    """
    _require_feasible(oracle, options)
    base = oracle.reference
    allowed = dict(options.max_rise) or dict.fromkeys(base, options.round_rise)
    cuts: list[Committed] = []
    steps: list[Step] = []
    decay, first = 1.0, options.first_rise
    dense = cost = _cost(oracle, options, {})
    for number in range(1, options.rounds + 1):
        if number > 1:
            oracle.reference = oracle.losses()
        bounds = allowed
        if options.max_rise and number > 1:  # what earlier rounds have left of the bound
            so_far = {task: _rise(oracle, oracle.reference, base, task) for task in base}
            bounds = {task: max(0.0, (1 + bound) / (1 + so_far[task]) - 1) for task, bound in allowed.items()}
        ranked = scores or l1_scores(oracle.model, oracle.groups)
        walk = _Round(oracle, options, ranked, tolerances(bounds, len(ranked), first), merged(cuts), number)
        walk.run(on_step)
        decay = walk.decay if number == 1 else decay
        steps += walk.steps
        kept = best_share(walk.cuts, options.top)
        if len(kept) < len(walk.cuts):
            oracle.reset(merged([*cuts, *kept]))
        cuts += kept
        before, cost = cost, _cost(oracle, options, merged(cuts))
        if options.target is None or cost <= options.target or (options.max_rise and not kept):
            break
        if not options.max_rise and before - cost < STALLED * dense:
            first = 2 * (suggested_first(min(allowed.values()), len(ranked)) if first is None else first)
            allowed = {task: 2 * bound for task, bound in allowed.items()}
    return Swept(tuple(cuts), tuple(steps), decay)


def best_share(cuts: Sequence[Committed], share: float) -> list[Committed]:
    """The floor(share * n) cuts, at least one, with the least harm per saving, in their order."""
    count = max(1, int(share * len(cuts) + 1e-9))
    ranked = sorted(range(len(cuts)), key=lambda place: cuts[place].harm / (cuts[place].saved or 1e-20))
    return [cuts[place] for place in sorted(ranked[:count])]


class _Round:
    """One walk over all groups."""

    def __init__(
        self,
        oracle: Oracle,
        options: PagcpOptions,
        scores: Scores,
        spread: Tolerances,
        gone: Chosen,
        number: int,
    ) -> None:
        self.oracle, self.options, self.scores, self.number = oracle, options, scores, number
        self.groups = oracle.groups.groups
        self.gone = dict(gone)
        self.cost = CostModel(oracle.groups)
        for group, units in gone.items():
            self.cost.remove_all((group, unit) for unit in units)
        self.start = oracle.reference
        self.spread, self.decay = spread, spread.decay
        self.cuts: list[Committed] = []
        self.steps: list[Step] = []

    def run(self, on_step: Progress | None) -> None:
        order = self.order()
        for place, group in enumerate(order, 1):
            self.visit(group)
            if on_step is not None:
                on_step(place, len(order))
            if self.reached():
                return

    def order(self) -> list[int]:
        """Groups by what the probe saves: descending, so that the costliest gets the largest tolerance."""
        saved = {}
        for group in range(len(self.groups)):
            alive = self.alive(group)
            saved[group] = self.saving(group, alive[: int(PROBE * len(alive))])
        descending = self.decay <= 1
        return sorted(saved, key=lambda group: (-saved[group] if descending else saved[group], group))

    def alive(self, group: int) -> list[int]:
        """Units that are still there, lowest score first."""
        gone = set(self.gone.get(group, ()))
        return [unit for unit in ascending(self.scores[group]) if unit not in gone]

    def saving(self, group: int, units: Sequence[int]) -> int:
        """What the removal of these units would save now."""
        before = cost_of(self.cost, self.options.quantity)
        self.cost.remove_all((group, unit) for unit in units)
        after = cost_of(self.cost, self.options.quantity)
        for unit in units:
            self.cost.restore(group, unit)
        return before - after

    def counts(self, group: int, alive: Sequence[int]) -> list[int]:
        """How many channels are tried, ascending: the grid of ratios, floors and rounding held, each count once."""
        size, gone = self.groups[group].units, self.groups[group].units - len(alive)
        least = floor_of(self.options.min_channels, size)
        found = set()
        for ratio in RATIOS:
            wanted = gone + int(ratio * len(alive) + 1e-9)
            found.add(most_removed(size, wanted, least, self.options.round_to) - gone)
        counts = sorted(count for count in found if count > 0)
        return self.up_to_target(group, alive, counts)

    def up_to_target(self, group: int, alive: Sequence[int], counts: list[int]) -> list[int]:
        """The same counts, ended by the smallest one that meets the cost target, if any does."""
        target = self.options.target
        if target is None:
            return counts
        now = cost_of(self.cost, self.options.quantity)
        for place, count in enumerate(counts):
            if now - self.saving(group, alive[:count]) <= target:
                size, gone = self.groups[group].units, self.groups[group].units - len(alive)
                least = floor_of(self.options.min_channels, size)
                for fewer in range(counts[place - 1] + 1 if place else 1, count):
                    aligned = most_removed(size, gone + fewer, least, self.options.round_to) - gone
                    if aligned == fewer and now - self.saving(group, alive[:fewer]) <= target:
                        count = fewer
                        break
                return [*counts[:place], count]
        return counts

    def visit(self, group: int) -> None:
        """Remove as many of the group's lowest channels as every task's tolerance allows."""
        alive = self.alive(group)
        allowed = self.spread.at(len(self.cuts))
        passed: list[tuple[int, Losses | None]] = []
        for count in self.counts(group, alive):
            verdict = self.oracle.judge({group: alive[:count]}, allowed)
            if not verdict.holds:
                break
            passed.append((count, verdict.losses))
        accepted = self.completed(group, alive, passed, allowed)
        if accepted is None:
            return
        count, losses = accepted
        units = tuple(sorted(alive[:count]))
        saved = self.saving(group, units)
        before, rises = self.oracle.reference, self.oracle.rises(losses)
        harm = max(
            _rise(self.oracle, losses, self.start, t) - _rise(self.oracle, before, self.start, t) for t in losses
        )
        self.oracle.commit({group: units})
        self.cost.remove_all((group, unit) for unit in units)
        self.gone[group] = tuple(sorted({*self.gone.get(group, ()), *units}))
        self.oracle.reference = {t: losses[t] if mean(losses[t]) > mean(before[t]) else before[t] for t in before}
        self.cuts.append(Committed(group, units, harm, saved))
        cost = cost_of(self.cost, self.options.quantity)
        self.steps.append(Step(self.groups[group].name, count, cost, rises, allowed, True, self.number))

    def completed(
        self, group: int, alive: Sequence[int], passed: list[tuple[int, Losses | None]], allowed: dict[str, float]
    ) -> tuple[int, Losses] | None:
        """The largest count that all samples confirm: what was accepted early is completed first."""
        for count, losses in reversed(passed):
            if losses is not None:
                return count, losses
            verdict = self.oracle.judge({group: alive[:count]}, allowed, complete=True)
            if verdict.holds and verdict.losses is not None:
                return count, verdict.losses
            self.oracle.effort.errors += 1
        return None

    def reached(self) -> bool:
        target = self.options.target
        return target is not None and cost_of(self.cost, self.options.quantity) <= target


def _rise(oracle: Oracle, losses: Losses, start: Losses, task: str) -> float:
    return rise(mean(losses[task]), mean(start[task]), oracle.data.floors.get(task, 0.0))


def _cost(oracle: Oracle, options: PagcpOptions, removal: Chosen) -> int:
    cost = CostModel(oracle.groups)
    cost.remove_all((group, unit) for group, units in removal.items() for unit in units)
    return cost_of(cost, options.quantity)


def _require_feasible(oracle: Oracle, options: PagcpOptions) -> None:
    if options.target is None:
        return
    most: Chosen = {}
    for place, group in enumerate(oracle.groups.groups):
        least = floor_of(options.min_channels, group.units)
        most[place] = tuple(range(most_removed(group.units, group.units, least, options.round_to)))
    smallest = _cost(oracle, options, most)
    if smallest > options.target:
        raise InfeasibleBudget(options.quantity, options.target, smallest, _cost(oracle, options, {}))
