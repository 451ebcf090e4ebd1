"""Loss budgets of PAGCP: from a bound on every task's loss to one tolerance per channel group.

Ye et al. 2023 (arXiv 2303.11923): the losses' ratio telescopes over the groups that were pruned one after another,
L(1..i)/L(0) = prod_j L(1..j)/L(1..j-1), so the bound 1 + D holds when group i may raise the loss by d_i only and
prod (1 + d_i) = 1 + D. The tolerances are geometric, d_i = d_1 * decay^(i-1), with `decay` the root of
sum_i log1p(d_1 * decay^(i-1)) = log(1 + D). With a bound D_t per task the decay is shared and the first tolerance
a_t is the root of sum_i log1p(a_t * decay^(i-1)) = log(1 + D_t).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, log, log1p

from pruners.channels.errors import BadChannelOptions

_SMALL = 0.25
"""Bounds below this one get a first tolerance in proportion; the published 0.05 would eat them at once."""


def decay_of(first: float, ratio: float, groups: int) -> float:
    """Solve for the factor from one group's tolerance to the next one's.

    Args:
        first: d_1, the tolerance of the first group (0.05 = 5 % more loss).
        ratio: 1 + D, the final loss allowed over the initial one.
        groups: how many there are.

    Returns:
        The root; above 1 for few groups. `decay_of(0.06, 6, 52)` is 0.976893 (YOLOv5s), `decay_of(0.06, 6, 2)` 77.67.

    Raises:
        BadChannelOptions: the first group alone may exceed the bound, or there is no group after it to spend the rest.
    """
    if groups < 1 or not first > 0:
        raise BadChannelOptions(f"a first tolerance of {first} for {groups} groups cannot be spread")
    if first > (ratio - 1) * (1 + 1e-12):
        raise BadChannelOptions(
            f"the first channel group alone may raise the loss by {first:.2%}, the bound for all is {ratio - 1:.2%}"
        )
    if groups == 1:
        return 1.0
    wanted = log(ratio)

    def total(decay: float) -> float:
        return sum(log1p(first * decay**place) for place in range(groups))

    return _root(total, wanted)


def first_of(bound: float, decay: float, groups: int) -> float:
    """The first tolerance a_t that spends the bound D_t exactly with this decay; 0 for a bound of 0."""
    if bound <= 0:
        return 0.0
    if bound == inf:
        return inf
    return _root(lambda first: sum(log1p(first * decay**place) for place in range(groups)), log1p(bound))


def _root(function: Callable[[float], float], wanted: float) -> float:
    """The x >= 0 with function(x) = wanted, for a growing function: bisection with an upper end found by doubling."""
    low, high = 0.0, 1.0
    while function(high) < wanted:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if function(middle) < wanted:
            low = middle
        else:
            high = middle
    return low


def suggested_first(bound: float, groups: int) -> float:
    """A first tolerance for a bound D: the published 0.05, or up to twice the even share for tight bounds."""
    even = (1 + bound) ** (1 / groups) - 1
    return 0.05 if bound >= _SMALL and groups > 1 else even * min(2.0, 1 + (groups - 1) / 5)


@dataclass(frozen=True, slots=True)
class Tolerances:
    """The loss rise that a step may cause, per task, and how it changes from one pruned group to the next.

    Attributes:
        first: a_t by task.
        decay: the common factor; groups are walked from the costliest when it is at most 1, else from the cheapest.
    """

    first: Mapping[str, float]
    decay: float

    def at(self, step: int) -> dict[str, float]:
        """Tolerances after `step` groups were pruned."""
        return {task: rise * self.decay**step if rise else 0.0 for task, rise in self.first.items()}


def tolerances(bounds: Mapping[str, float], groups: int, first: float | None = None) -> Tolerances:
    """Spread the bound D_t of every task over the groups.

    The decay comes from the tightest bound above 0 and `first` (d_1), so equal bounds give PAGCP's own tolerances.

    Raises:
        BadChannelOptions: `first` exceeds that bound.
    """
    tightest = min((bound for bound in bounds.values() if 0 < bound < inf), default=0.0)
    if not tightest:
        return Tolerances({task: bound if bound == inf else 0.0 for task, bound in bounds.items()}, 1.0)
    decay = decay_of(suggested_first(tightest, groups) if first is None else first, 1 + tightest, groups)
    return Tolerances({task: first_of(bound, decay, groups) for task, bound in bounds.items()}, decay)
