"""Ridge solutions against torch.linalg.lstsq on the rows themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from compress_cli.recovery.normal import NormalEquations, ridge_changes, solve_and_price


def problem(outputs: int = 4, columns: int = 6, rows: int = 200) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    patches = (torch.randn(1, rows, columns, generator=g) @ torch.randn(columns, columns, generator=g)).double()
    return patches, torch.randn(1, rows, outputs, generator=g).double() + 1


def with_constant(patches: Tensor) -> Tensor:
    return torch.cat([patches, patches.new_ones(*patches.shape[:2], 1)], 2)


def gathered(patches: Tensor, targets: Tensor) -> NormalEquations:
    sums = NormalEquations.empty(1, patches.shape[2], targets.shape[2], patches.device)
    half = patches.shape[1] // 2
    sums.add(patches[:, :half], targets[:, :half])
    sums.add(patches[:, half:], targets[:, half:])
    return sums


def test_full_support_equals_lstsq_with_a_constant_column() -> None:
    patches, targets = problem()
    rows = with_constant(patches)
    sums = gathered(rows, targets)
    (found,) = ridge_changes(sums, torch.ones(1, 7, 4, dtype=torch.bool), (0.0,))
    expected = torch.linalg.lstsq(rows[0], targets[0]).solution
    torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(sums.errors(found)[0], (rows[0] @ expected - targets[0]).square().sum(0))


def test_every_output_is_solved_on_its_own_support() -> None:
    patches, targets = problem()
    sums = gathered(patches, targets)
    support = torch.tensor([[1, 0, 0, 1], [1, 1, 0, 1], [0, 1, 0, 1], [0, 0, 0, 1], [1, 1, 0, 1], [0, 0, 0, 1]])
    (found,) = ridge_changes(sums, support.bool()[None], (0.0,))
    for output in range(4):
        on = support[:, output].bool()
        assert (found[0, ~on, output] == 0).all()
        if on.any():
            expected = torch.linalg.lstsq(patches[0][:, on], targets[0][:, output]).solution
            torch.testing.assert_close(found[0, on, output], expected, rtol=1e-6, atol=1e-7)


def test_ridge_pulls_towards_the_old_weights() -> None:
    patches, targets = problem()
    old = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sums = gathered(patches, targets - patches @ old)
    small, large = ridge_changes(sums, torch.ones(1, 6, 4, dtype=torch.bool), (1e-3, 1e9))
    torch.testing.assert_close(large, torch.zeros_like(large), atol=1e-6, rtol=0)
    # the ridge problem as an ordinary one: extra rows sqrt(ridge * diag G) whose target is the old weight
    extra = (1e-3 * sums.gram[0].diagonal()).sqrt()
    rows = torch.cat([patches[0], extra.diag()])
    right = torch.cat([targets[0], extra[:, None] * old])
    torch.testing.assert_close(old + small[0], torch.linalg.lstsq(rows, right).solution, rtol=1e-6, atol=1e-7)


def test_singular_gram_matrices_are_solved() -> None:
    patches, targets = problem()
    sums = gathered(torch.cat([patches, patches[:, :, :2], torch.zeros(1, 200, 1)], 2), targets)
    (found,) = ridge_changes(sums, torch.ones(1, 9, 4, dtype=torch.bool), (0.0,))
    least = (patches[0] @ torch.linalg.lstsq(patches[0], targets[0]).solution - targets[0]).square().sum(0)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(sums.errors(found)[0], least, rtol=1e-6, atol=0)
    assert (found[0, 8] == 0).all()  # a column that is always zero


def test_removal_costs_are_what_solving_without_the_weight_adds() -> None:
    patches, targets = problem()
    support = torch.ones(1, 6, 4, dtype=torch.bool)
    support[0, 2, 1] = False
    sums = gathered(patches, targets)
    (best,) = ridge_changes(sums, support, (0.0,))
    solved, costs = solve_and_price(sums, torch.zeros_like(best), support, 0.0)
    torch.testing.assert_close(solved, best)
    assert costs[0, 2, 1] == 0
    for column, output in ((0, 0), (3, 1), (5, 3)):
        fewer = support.clone()
        fewer[0, column, output] = False
        (without,) = ridge_changes(sums, fewer, (0.0,))
        added = sums.errors(without)[0, output] - sums.errors(best)[0, output]
        torch.testing.assert_close(costs[0, column, output], added, rtol=1e-5, atol=0)
