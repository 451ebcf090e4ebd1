"""Solvers against every combination of a few small layers."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from decomposers.solvers import Choices, Infeasible, Solution, frontier, minimise_max, minimise_sum


def layers(seed: int, count: int = 3, options: int = 7) -> list[Choices]:
    generator = np.random.default_rng(seed)
    return [
        frontier(
            np.append(20.0, generator.integers(1, 20, options)).astype(float),
            np.append(0.0, generator.random(options)),
        )
        for _ in range(count)
    ]


def every(choices: list[Choices], budget: float) -> list[tuple[float, float]]:
    """(largest, summed) error of every combination within the budget."""
    found = []
    for picks in product(*(range(len(item.cost)) for item in choices)):
        cost = sum(item.cost[pick] for item, pick in zip(choices, picks, strict=True))
        errors = [item.error[pick] for item, pick in zip(choices, picks, strict=True)]
        if cost <= budget:
            found.append((max(errors), sum(errors)))
    return found


def cost_of(choices: list[Choices], solution: Solution) -> float:
    return sum(float(c.cost[list(c.rows).index(row)]) for c, row in zip(choices, solution.rows, strict=True))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("spend", [False, True])
def test_largest_error_is_the_least_of_all_combinations(seed: int, spend: bool) -> None:
    choices = layers(seed)
    for budget in range(10, 62, 3):
        possible = every(choices, budget)
        if not possible:
            with pytest.raises(Infeasible):
                minimise_max(choices, budget, spend)
            continue
        found = minimise_max(choices, budget, spend)
        assert found.max_error == min(largest for largest, _ in possible)
        assert found.cost == cost_of(choices, found) <= budget


@pytest.mark.parametrize("seed", range(12))
def test_summed_error_lies_between_the_optimum_and_the_hull(seed: int) -> None:
    choices = layers(seed)
    optimal = 0
    budgets = [budget for budget in range(10, 62, 3) if every(choices, budget)]
    for budget in budgets:
        best = min(summed for _, summed in every(choices, budget))
        found = minimise_sum(choices, budget)
        assert found.cost == cost_of(choices, found) <= budget
        assert best - 1e-12 <= found.sum_error <= minimise_sum(choices, budget, spend=False).sum_error
        optimal += found.sum_error <= best * 1.0001 + 1e-12
    assert optimal >= len(budgets) // 2


def test_corners_of_the_hull_are_optimal() -> None:
    choices = layers(3)
    for budget in range(15, 61):
        corner = minimise_sum(choices, budget, spend=False)
        exact = min(summed for _, summed in every(choices, corner.cost))
        assert corner.sum_error == pytest.approx(exact, abs=1e-12)


def test_spending_never_makes_any_layer_worse() -> None:
    choices = layers(5)
    for budget in range(20, 60, 5):
        plain, spent = minimise_max(choices, budget, spend=False), minimise_max(choices, budget, spend=True)
        assert spent.sum_error <= plain.sum_error
        assert plain.cost <= spent.cost <= budget


def test_frontier_drops_dominated_options_and_breaks_ties_by_cost_error_row() -> None:
    cost = np.array([9.0, 5.0, 5.0, 7.0, np.inf, 9.0, 5.0])
    error = np.array([0.0, 0.4, 0.3, 0.3, 0.0, 0.0, 0.3])
    found = frontier(cost, error)
    assert found.rows.tolist() == [2, 0]  # 6 ties with 2 and comes later, 3 costs more for no less error, 5 ties with 0
    assert found.cost.tolist() == [5.0, 9.0]
    assert found.error.tolist() == [0.3, 0.0]


def test_infeasible_names_the_smallest_cost() -> None:
    choices = layers(1)
    smallest = sum(float(item.cost[0]) for item in choices)
    for solve in (minimise_max, minimise_sum):
        with pytest.raises(Infeasible) as caught:
            solve(choices, smallest - 1)
        assert caught.value.smallest == smallest
        assert solve(choices, smallest).cost == smallest


def test_full_budget_keeps_every_layer_dense() -> None:
    choices = layers(2)
    for solve in (minimise_max, minimise_sum):
        found = solve(choices, 60.0)
        assert found.rows == (0, 0, 0)
        assert found.max_error == 0.0
