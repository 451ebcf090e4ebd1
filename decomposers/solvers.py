"""Choose one option per layer under one additive budget. Exact for the largest error, near-exact for a sum.

Largest error: let pick(l, eps) be the cheapest option of layer l with error <= eps and S(eps) the sum of their costs.
If any choice meets the budget with largest error eps', every layer costs at least pick(l, eps'), so S(eps') fits too:
the least eps with S(eps) <= budget is the global optimum. S only steps at errors of options, so bisection over those
finds it. Sum of errors: the multiplier form min sum(error + lambda cost) reaches the corners of each layer's lower
convex hull; they are taken in the order of lambda, and what is left of the budget is spent greedily.

Everything is deterministic: ties go to the cheaper option, then the smaller error, then the earlier row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from decomposers.spectra import Floats

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """The options of one layer that are worth taking: cost ascending, error strictly descending.

    Attributes:
        rows: where each option stands in the layer's table.
        cost: additive cost.
        error: what is minimised.
    """

    rows: Ints
    cost: Floats
    error: Floats


@dataclass(frozen=True, slots=True)
class Solution:
    """One table row per layer, their summed cost, and the largest and summed error."""

    rows: tuple[int, ...]
    cost: float
    max_error: float
    sum_error: float


class Infeasible(ValueError):
    """Even the cheapest options cost more than the budget; `smallest` is what they cost."""

    def __init__(self, smallest: float) -> None:
        self.smallest = smallest
        super().__init__(f"the cheapest options cost {smallest}")


def frontier(cost: Floats, error: Floats) -> Choices:
    """Drop options that cost infinitely much, or no less than another of no larger error."""
    order = np.lexsort((np.arange(len(cost)), error, cost))
    order = order[np.isfinite(cost[order])]
    best_before = np.concatenate([[np.inf], np.minimum.accumulate(error[order])[:-1]])
    kept = order[error[order] < best_before]
    return Choices(kept, cost[kept], error[kept])


def minimise_max(layers: Sequence[Choices], budget: float, spend: bool = True) -> Solution:
    """Make the largest error of all layers as small as the budget allows.

    Args:
        layers: the options of every layer, see `frontier`.
        budget: largest allowed sum of costs.
        spend: use what the step function leaves over for the layers with the largest errors.

    Raises:
        Infeasible: the cheapest options cost more.
    """
    _require_feasible(layers, budget)
    levels = np.unique(np.concatenate([choices.error for choices in layers]))
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        picks = _cheapest_within(layers, float(levels[middle]))
        low, high = (low, middle) if _cost(layers, picks) <= budget else (middle + 1, high)
    picks = _cheapest_within(layers, float(levels[low]))
    return _solution(layers, _spend_on_worst(layers, picks, budget) if spend else picks)


def minimise_sum(layers: Sequence[Choices], budget: float, spend: bool = True) -> Solution:
    """Make the sum of the errors as small as the multiplier form and a greedy spending of the rest can.

    Raises:
        Infeasible: the cheapest options cost more.
    """
    _require_feasible(layers, budget)
    picks = [0] * len(layers)
    left = budget - _cost(layers, picks)
    for _, index, option in sorted(_hull_steps(layers), key=lambda step: (-step[0], step[1], step[2])):
        step_cost = float(layers[index].cost[option] - layers[index].cost[picks[index]])
        if step_cost > left:
            break
        picks[index], left = option, left - step_cost
    return _solution(layers, _spend_on_best(layers, picks, left) if spend else picks)


def _require_feasible(layers: Sequence[Choices], budget: float) -> None:
    smallest = _cost(layers, [0] * len(layers))
    if smallest > budget:
        raise Infeasible(smallest)


def _cost(layers: Sequence[Choices], picks: Sequence[int]) -> float:
    return float(sum(choices.cost[pick] for choices, pick in zip(layers, picks, strict=True)))


def _solution(layers: Sequence[Choices], picks: Sequence[int]) -> Solution:
    errors = [float(choices.error[pick]) for choices, pick in zip(layers, picks, strict=True)]
    rows = tuple(int(choices.rows[pick]) for choices, pick in zip(layers, picks, strict=True))
    return Solution(rows, _cost(layers, picks), max(errors, default=0.0), sum(errors))


def _cheapest_within(layers: Sequence[Choices], eps: float) -> list[int]:
    """Return the first option of each layer whose error is at most eps; the last where none is."""
    return [min(int(np.searchsorted(-c.error, -eps)), len(c.error) - 1) for c in layers]


def _spend_on_worst(layers: Sequence[Choices], picks: Sequence[int], budget: float) -> list[int]:
    """Improve the layer with the largest error by one option as long as the budget allows, then the next worst."""
    result = list(picks)
    left = budget - _cost(layers, result)
    open_layers = {index for index, pick in enumerate(result) if pick + 1 < len(layers[index].cost)}
    while open_layers:
        worst = max(open_layers, key=lambda index: (layers[index].error[result[index]], -index))
        choices, pick = layers[worst], result[worst]
        step_cost = float(choices.cost[pick + 1] - choices.cost[pick])
        if step_cost <= left:
            result[worst], left = pick + 1, left - step_cost
        if step_cost > left or result[worst] + 1 == len(choices.cost):
            open_layers.discard(worst)
    return result


def _hull_steps(layers: Sequence[Choices]) -> list[tuple[float, int, int]]:
    """Return (error saved per cost, layer, option reached) for every edge of each layer's lower convex hull."""
    steps = []
    for index, choices in enumerate(layers):
        corners = [0]
        for option in range(1, len(choices.cost)):
            while len(corners) > 1 and _slope(choices, corners[-1], option) >= _slope(
                choices, corners[-2], corners[-1]
            ):
                corners.pop()
            corners.append(option)
        edges = pairwise(corners)
        steps += [(_slope(choices, before, after), index, after) for before, after in edges]
    return steps


def _slope(choices: Choices, before: int, after: int) -> float:
    """Return the error saved per unit of cost; options are strictly ordered, so the cost difference is positive."""
    return float((choices.error[before] - choices.error[after]) / (choices.cost[after] - choices.cost[before]))


def _spend_on_best(layers: Sequence[Choices], picks: Sequence[int], left: float) -> list[int]:
    """Take the affordable step that saves most error per cost, of any length, until none is left."""
    result = list(picks)
    while True:
        best = max((_best_step(c, result[i], left, i) for i, c in enumerate(layers)), default=None)
        if best is None or best[0] <= 0:
            return result
        _, negative, option = best
        index = -negative
        left -= float(layers[index].cost[option] - layers[index].cost[result[index]])
        result[index] = option


def _best_step(choices: Choices, pick: int, left: float, index: int) -> tuple[float, int, int]:
    """Return (saved per cost, -layer, option) of one layer's best affordable step; a saving of 0 if there is none."""
    costs = choices.cost[pick + 1 :] - choices.cost[pick]
    fits = int(np.searchsorted(costs, left, side="right"))
    if not fits:
        return 0.0, -index, pick
    saved = (choices.error[pick] - choices.error[pick + 1 : pick + 1 + fits]) / costs[:fits]
    option = int(np.argmax(saved))
    return float(saved[option]), -index, pick + 1 + option
