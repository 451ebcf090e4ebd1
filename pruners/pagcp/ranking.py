"""Orders of channels: inside each group, and over the whole network per saved cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruners.channels import CostModel, Groups
from pruners.pagcp.options import PagcpOptions, Quantity, floor_of, most_removed
from pruners.pagcp.scores import Scores

Chosen = dict[int, tuple[int, ...]]
"""Group index -> units that go, ascending."""


def ascending(scores: Tensor) -> list[int]:
    """Unit indices by score, ties by index."""
    return torch.argsort(scores, stable=True).tolist()


def worst_task(per_task: Mapping[str, Scores]) -> Scores:
    """The largest score of each channel over the tasks: what any task needs stays."""
    tables = list(per_task.values())
    return [torch.stack([table[place] for table in tables]).amax(0) for place in range(len(tables[0]))]


def cost_of(cost: CostModel, quantity: Quantity) -> int:
    """The quantity's present value."""
    return cost.macs if quantity == "macs" else cost.params


@dataclass(frozen=True, slots=True)
class Path:
    """All channels that may go, in the order in which they go.

    Attributes:
        order: (group, unit), ascending score per saved cost.
        costs: MACs or parameters after the first n of them, for n = 0 .. len(order); never growing.
    """

    order: tuple[tuple[int, int], ...]
    costs: tuple[int, ...]
    limits: tuple[tuple[int, int], ...]
    sizes: tuple[int, ...]
    multiple: int

    def removal(self, position: int) -> Chosen:
        """What goes at this position: kept counts are rounded up, the last channels of a group come back first."""
        taken: dict[int, list[int]] = {}
        for group, unit in self.order[:position]:
            taken.setdefault(group, []).append(unit)
        found: Chosen = {}
        for group, units in taken.items():
            count = most_removed(self.sizes[group], len(units), self.limits[group][0], self.multiple)
            if count:
                found[group] = tuple(sorted(units[:count]))
        return found

    def first_within(self, target: int) -> int | None:
        """The shortest position whose cost is at most `target`; None when even the whole path is above."""
        low, high = 0, len(self.order)
        if self.costs[high] > target:
            return None
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.costs[middle] <= target else (middle + 1, high)
        return low


def make_path(groups: Groups, scores: Scores, options: PagcpOptions) -> Path:
    """Rank every channel by its score over what its removal from the dense network saves.

    The best channels of each group, `min_channels` of them, are not on the path.
    """
    cost = CostModel(groups)
    limits, ranked = [], []
    for place, group in enumerate(groups.groups):
        least = floor_of(options.min_channels, group.units)
        most = most_removed(group.units, group.units, least, options.round_to)
        limits.append((least, most))
        for unit in ascending(scores[place])[:most]:
            saving = cost.saving(place, unit)
            saved = saving.macs if options.quantity == "macs" else saving.params
            if saved > 0:
                ranked.append((float(scores[place][unit]) / saved, place, unit))
    order = tuple((place, unit) for _, place, unit in sorted(ranked))
    sizes = tuple(group.units for group in groups.groups)
    return Path(order, _costs(cost, order, limits, sizes, options), tuple(limits), sizes, options.round_to)


def _costs(
    cost: CostModel,
    order: Sequence[tuple[int, int]],
    limits: Sequence[tuple[int, int]],
    sizes: Sequence[int],
    options: PagcpOptions,
) -> tuple[int, ...]:
    taken: dict[int, list[int]] = {}
    gone: dict[int, int] = {}
    costs = [cost_of(cost, options.quantity)]
    for group, unit in order:
        units = taken.setdefault(group, [])
        units.append(unit)
        count = most_removed(sizes[group], len(units), limits[group][0], options.round_to)
        for late in units[gone.get(group, 0) : count]:
            cost.remove(group, late)
        gone[group] = max(count, gone.get(group, 0))
        costs.append(cost_of(cost, options.quantity))
    return tuple(costs)
