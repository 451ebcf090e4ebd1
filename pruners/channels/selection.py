"""Which units go: one walk over all units in ascending order of their scores, until the exact budget holds.

Ties are broken by group and unit index, never by a threshold, so equal scores do not take whole groups. No step raises
the cost, so the first position that meets the budget removes the least; what the last step took too much of is then
given back where that is possible.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, gcd, lcm
from typing import Literal, get_args

import numpy as np

from pruners.channels.cost import CostModel
from pruners.channels.errors import BadChannelOptions, InfeasibleBudget, NothingToRemove
from pruners.channels.groups import Group, Groups
from pruners.channels.plan_type import ChannelsPlan
from pruners.channels.planning import frozen_summary, make_plan
from pruners.channels.scores import Scores

Scope = Literal["global", "layer", "isomorphic"]
GIVE_BACK = 512
"""How many of the last removed units are offered back."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that may be left; None: no limit. MACs are those of the example's batch."""

    params: int | None = None
    macs: int | None = None

    def holds(self, cost: CostModel) -> bool:
        """Whether a model of this cost is small enough."""
        fits = self.params is None or cost.params <= self.params
        return fits and (self.macs is None or cost.macs <= self.macs)


@dataclass(frozen=True, slots=True)
class SelectionOptions:
    """How units are compared and what must stay.

    Attributes:
        scope: `global` ranks all units together; `layer` takes the same share of every group; `isomorphic` the same
            share of every set of groups with the same kinds of members.
        round_to: kept channels of every weight are a multiple of this, where its width allows.
        min_channels: units that every group keeps, a count such as "8" or a share such as "5%"; at least one.

    Raises:
        BadChannelOptions: a value that makes no sense.
    """

    scope: Scope = "global"
    round_to: int = 1
    min_channels: str = "5%"

    def __post_init__(self) -> None:
        if self.scope not in get_args(Scope):
            raise BadChannelOptions(f"there is no scope {self.scope!r}: choose among {', '.join(get_args(Scope))}")
        if self.round_to < 1:
            raise BadChannelOptions(f"round_to {self.round_to} is not a positive number")
        self.least(1)

    def least(self, units: int) -> int:
        """How many units of a group stay.

        Raises:
            BadChannelOptions: text that is neither a count nor a percentage.
        """
        text = str(self.min_channels).strip()
        try:
            value = float(text.removesuffix("%"))
        except ValueError:
            value = -1.0
        bad = value < 0 or (text.endswith("%") and value > 100) or (not text.endswith("%") and value != int(value))
        if bad:
            raise BadChannelOptions(f"min_channels {text!r}: give a count such as 8 or a percentage such as 5%")
        count = ceil(units * value / 100 - 1e-9) if text.endswith("%") else int(value)
        return min(units, max(1, count))


def plan(
    groups: Groups,
    scores: Scores,
    budget: Budget,
    options: SelectionOptions | None = None,
    *,
    more: Mapping[str, object] | None = None,
) -> ChannelsPlan:
    """Choose units until the budget holds and write the plan down.

    Args:
        more: entries to record among the plan's options (score name, normaliser).

    Raises:
        NothingToRemove: no unit may go.
        InfeasibleBudget: the floors forbid the budget; says how far it can go.
    """
    options = options or SelectionOptions()
    removed = select(groups, scores, budget, options)
    recorded = {
        "scope": options.scope,
        "round_to": options.round_to,
        "min_channels": options.min_channels,
        "max_params": budget.params,
        "max_macs": budget.macs,
        **(more or {}),
    }
    return make_plan(groups, removed, recorded)


def select(groups: Groups, scores: Scores, budget: Budget, options: SelectionOptions) -> dict[int, list[int]]:
    """Group index -> units that go; see `plan`."""
    cost = CostModel(groups)
    if budget.holds(cost):
        return {}
    if not groups.groups:
        raise NothingToRemove(tuple(text for text, _, _ in frozen_summary(groups)))
    walk = _Walk(groups, options, cost)
    for place, unit in ranking(groups, scores, options.scope):
        if walk.offer(place, unit) and budget.holds(cost):
            walk.give_back(budget)
            return walk.result()
    quantity = "macs" if budget.macs is not None and cost.macs > budget.macs else "params"
    limit = budget.macs if quantity == "macs" else budget.params
    smallest, dense = (cost.macs, cost.dense_macs) if quantity == "macs" else (cost.params, cost.dense_params)
    raise InfeasibleBudget(quantity, int(limit or 0), smallest, dense)


def select_share(groups: Groups, scores: Scores, share: float, options: SelectionOptions) -> dict[int, list[int]]:
    """The lowest `share` of all units, as far as the floors allow: group index -> units."""
    walk = _Walk(groups, options, CostModel(groups))
    wanted = int(groups.units * share)
    for place, unit in ranking(groups, scores, options.scope) if groups.groups else ():
        if sum(len(units) for units in walk.taken.values()) >= wanted:
            break
        walk.offer(place, unit)
    return walk.result()


def ranking(groups: Groups, scores: Scores, scope: Scope) -> list[tuple[int, int]]:
    """All (group, unit) in the order in which they would go."""
    place = np.repeat(np.arange(len(groups.groups)), [group.units for group in groups.groups])
    unit = np.concatenate([np.arange(group.units) for group in groups.groups])
    value = np.concatenate(scores)
    if scope != "global":
        sets = _scopes(groups, scope)
        value = value.copy()
        for members in sets:
            mine = np.flatnonzero(np.isin(place, members))
            order = mine[np.lexsort((unit[mine], place[mine], value[mine]))]
            value[order] = (np.arange(len(order)) + 1) / len(order)
    order = np.lexsort((unit, place, value))
    return list(zip(place[order].tolist(), unit[order].tolist(), strict=True))


def _scopes(groups: Groups, scope: Scope) -> list[list[int]]:
    if scope == "layer":
        return [[place] for place in range(len(groups.groups))]
    found: dict[tuple[tuple[str, int, int], ...], list[int]] = defaultdict(list)
    for place, group in enumerate(groups.groups):
        found[_kinds(groups, group)].append(place)
    return list(found.values())


def _kinds(groups: Groups, group: Group) -> tuple[tuple[str, int, int], ...]:
    """The kinds of a group's members: own name, rank of the tensor, dim; widths do not count."""
    listed = Counter(
        (member.tensor.rpartition(".")[2], len(groups.atoms.by_name[member.tensor].shape), member.dim)
        for member in group.members
    )
    return tuple(sorted((*key, count)[:3] for key, count in listed.items()))


@dataclass(slots=True)
class _Walk:
    """Units taken so far; with rounding, a group's units wait until a whole step of them can go."""

    groups: Groups
    options: SelectionOptions
    cost: CostModel
    taken: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    waiting: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    log: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)

    def offer(self, place: int, unit: int) -> bool:
        """Take a unit if its group may lose more; True when something went."""
        group = self.groups.groups[place]
        step = step_of(self.groups, group, self.options.round_to)
        kept = group.units - len(self.taken[place])
        waiting = self.waiting[place]
        waiting.append(unit)
        target = kept - len(waiting)
        if target % step or target < max(self.options.least(group.units), step if step > 1 else 1):
            if step == 1:
                waiting.clear()
            return False
        for each in waiting:
            self.cost.remove(place, each)
        self.taken[place] += waiting
        self.log.append((place, tuple(waiting)))
        waiting.clear()
        return True

    def give_back(self, budget: Budget) -> None:
        """Restore late removals that the budget has room for."""
        for place, units in reversed(self.log[-GIVE_BACK:-1]):
            for unit in units:
                self.cost.restore(place, unit)
            if budget.holds(self.cost) and self._aligned(place, len(units)):
                for unit in units:
                    self.taken[place].remove(unit)
            else:
                for unit in units:
                    self.cost.remove(place, unit)

    def _aligned(self, place: int, more: int) -> bool:
        group = self.groups.groups[place]
        step = step_of(self.groups, group, self.options.round_to)
        kept = group.units - len(self.taken[place]) + more
        return kept % step == 0 or kept == group.units

    def result(self) -> dict[int, list[int]]:
        """Group index -> units."""
        return {place: sorted(units) for place, units in self.taken.items() if units}


def step_of(groups: Groups, group: Group, round_to: int) -> int:
    """The multiple of units that a group must keep so that each weight dim keeps a multiple of `round_to`."""
    if round_to == 1:
        return 1
    counts: Sequence[int] = [
        int(member.index.shape[1]) for member in group.members if len(groups.atoms.by_name[member.tensor].shape) > 1
    ] or [1]
    return lcm(*(round_to // gcd(round_to, count) for count in counts))
