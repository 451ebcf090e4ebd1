"""Ridge solutions against torch.linalg.lstsq on the rows themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from compress_cli.recovery.normal import NormalEquations, ridge_solutions


def problem(outputs: int = 4, columns: int = 6, rows: int = 200) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    patches = torch.randn(1, rows, columns, generator=g) @ torch.randn(columns, columns, generator=g)
    return patches, torch.randn(1, rows, outputs, generator=g) + 1


def gathered(patches: Tensor, targets: Tensor, constant: bool) -> NormalEquations:
    sums = NormalEquations.empty(1, patches.shape[2] + constant, targets.shape[2], patches.device)
    half = patches.shape[1] // 2
    sums.add(patches[:, :half], targets[:, :half])
    sums.add(patches[:, half:], targets[:, half:])
    return sums


def test_full_support_equals_lstsq_with_a_constant_column() -> None:
    patches, targets = problem()
    sums = gathered(patches, targets, constant=True)
    old = torch.zeros(1, 7, 4, dtype=torch.float64)
    (found,) = ridge_solutions(sums, old, torch.ones_like(old, dtype=torch.bool), (0.0,))
    rows = torch.cat([patches[0].double(), torch.ones(200, 1).double()], 1)
    expected = torch.linalg.lstsq(rows, targets[0].double()).solution
    torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(sums.errors(found)[0], (rows @ expected - targets[0]).square().sum(0), rtol=1e-9, atol=0)


def test_every_output_is_solved_on_its_own_support() -> None:
    patches, targets = problem()
    sums = gathered(patches, targets, constant=False)
    support = torch.tensor([[1, 0, 0, 1], [1, 1, 0, 1], [0, 1, 0, 1], [0, 0, 0, 1], [1, 1, 0, 1], [0, 0, 0, 1]]).bool()[
        None
    ]
    old = torch.zeros(1, 6, 4, dtype=torch.float64)
    (found,) = ridge_solutions(sums, old, support, (0.0,))
    for output in range(4):
        on = support[0, :, output]
        assert (found[0, ~on, output] == 0).all()
        if on.any():
            expected = torch.linalg.lstsq(patches[0][:, on].double(), targets[0][:, output].double()).solution
            torch.testing.assert_close(found[0, on, output], expected, rtol=1e-6, atol=1e-7)


def test_ridge_pulls_towards_the_old_weights() -> None:
    patches, targets = problem()
    sums = gathered(patches, targets, constant=False)
    old = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    everywhere = torch.ones_like(old, dtype=torch.bool)
    small, large = ridge_solutions(sums, old, everywhere, (1e-3, 1e9))
    torch.testing.assert_close(large, old, atol=1e-6, rtol=0)
    # the ridge problem as an ordinary one: extra rows sqrt(ridge * diag G) whose target is the old weight
    extra = (1e-3 * sums.gram[0].diagonal()).sqrt()
    rows = torch.cat([patches[0].double(), extra.diag()])
    right = torch.cat([targets[0].double(), extra[:, None] * old[0]])
    torch.testing.assert_close(small[0], torch.linalg.lstsq(rows, right).solution, rtol=1e-6, atol=1e-7)


def test_singular_gram_matrices_are_solved() -> None:
    patches, targets = problem()
    twice = torch.cat([patches, patches[:, :, :2], torch.zeros(1, 200, 1)], 2)
    sums = gathered(twice, targets, constant=False)
    old = torch.zeros(1, 9, 4, dtype=torch.float64)
    (found,) = ridge_solutions(sums, old, torch.ones_like(old, dtype=torch.bool), (0.0,))
    best = torch.linalg.lstsq(patches[0].double(), targets[0].double()).solution
    least = (patches[0].double() @ best - targets[0]).square().sum(0)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(sums.errors(found)[0], least, rtol=1e-6, atol=0)
    assert (found[0, 8] == 0).all()  # a column that is always zero
