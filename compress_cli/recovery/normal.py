"""Normal equations of one layer, gathered over batches, and their ridge solutions.

With patches p (a constant column for the bias where there is one), old weights V and what they miss of the targets,
r = y - p V, the change D of the weights solves (G + L) D = R on each output's support, with G = sum p'p, R = sum p'r
and L = ridge * diag(G); the error becomes sum r^2 - 2 tr(D'R) + tr(D'GD). Written in r nothing cancels: products of
blocks of rows may be float32, their sums and the solutions are float64, and D is zero where V already fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 4096
"""Rows of which products are summed in the patches' own precision."""
CHUNK = 1 << 24
"""Most elements of a batch of systems that are solved together (128 MiB)."""
BLOCKS = 6
"""Into so many stripes a Gram matrix is cut to use its symmetry."""
JITTER = 1e-10


@dataclass(slots=True)
class NormalEquations:
    """Sums over rows.

    Attributes:
        gram: (groups, columns, columns).
        cross: (groups, columns, outputs), patches times what is missed.
        missed: (groups, outputs), sum of squares of what is missed.
        rows: how many rows went in.
    """

    gram: Tensor
    cross: Tensor
    missed: Tensor
    rows: int = 0

    @classmethod
    def empty(cls, groups: int, columns: int, outputs: int, device: torch.device) -> NormalEquations:
        """Sums over nothing."""

        def zeros(*sizes: int) -> Tensor:
            return torch.zeros(sizes, dtype=torch.float64, device=device)

        return cls(zeros(groups, columns, columns), zeros(groups, columns, outputs), zeros(groups, outputs))

    def add(self, patches: Tensor, rest: Tensor) -> None:
        """Add rows.

        Args:
            patches: (groups, rows, columns), the constant column included.
            rest: (groups, rows, outputs), what the old weights miss of the targets.
        """
        for begin in range(0, patches.shape[1], ROWS):
            p, r = patches[:, begin : begin + ROWS], rest[:, begin : begin + ROWS]
            self._add_gram(p)
            self.cross += p.mT @ r
            self.missed += r.double().square().sum(1)
        self.rows += patches.shape[1]

    def _add_gram(self, p: Tensor) -> None:
        """Add p'p, computing the blocks on and below the diagonal only."""
        columns = p.shape[2]
        step = max(-(-columns // BLOCKS), 64)
        for begin in range(0, columns, step):
            end = min(begin + step, columns)
            block = p[:, :, begin:end].mT @ p[:, :, :end]
            self.gram[:, begin:end, :end] += block
            self.gram[:, :begin, begin:end] += block[:, :, :begin].mT

    def errors(self, change: Tensor) -> Tensor:
        """Squared error, summed over rows, after a change of the weights (groups, columns, outputs)."""
        quadratic = (change * (self.gram @ change - 2 * self.cross)).sum(1)
        return (quadratic + self.missed).clamp(min=0)

    def shifted(self, change: Tensor) -> NormalEquations:
        """The same rows for other old weights: those of now plus a change (groups, columns, outputs)."""
        return NormalEquations(self.gram, self.cross - self.gram @ change, self.errors(change), self.rows)

    def part(self, columns: slice) -> NormalEquations:
        """The same rows where only some columns may change."""
        return NormalEquations(self.gram[:, columns, columns], self.cross[:, columns], self.missed, self.rows)


def ridge_changes(equations: NormalEquations, support: Tensor, ridges: tuple[float, ...]) -> list[Tensor]:
    """Return the best change of the weights for each ridge.

    Args:
        equations: of the rows to fit.
        support: (groups, columns, outputs), True where a weight may change.
        ridges: relative to the diagonal of the Gram matrix.
    """
    diagonal = equations.gram.diagonal(dim1=1, dim2=2)
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()  # (groups, columns)
    gram = equations.gram * scale.unsqueeze(2) * scale.unsqueeze(1)
    right = equations.cross * scale.unsqueeze(2)
    found = []
    for ridge in ridges:
        step = torch.zeros_like(right)
        for group in range(right.shape[0]):
            step[group] = _masked_solve(gram[group], right[group], support[group], ridge + JITTER)
        found.append(step * scale.unsqueeze(2))
    return found


def _masked_solve(gram: Tensor, right: Tensor, support: Tensor, ridge: float) -> Tensor:
    """Solve (gram + ridge I) x = right on the support of each column of `right`."""
    if bool(support.all()):
        return _solve(gram.unsqueeze(0), right.unsqueeze(0), ridge)[0]
    solution = torch.zeros_like(right)
    for taken, places, real, block in _blocks_of(gram, support):
        values = right[:, taken].T.gather(1, places) * real
        found = _solve(block, values.unsqueeze(2), ridge).squeeze(2) * real
        solution[:, taken] = torch.zeros_like(right[:, taken]).T.scatter(1, places, found).T
    return solution


def _blocks_of(gram: Tensor, support: Tensor) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor]]:
    """Cut the Gram matrix to the support of each output, outputs of about the same size together.

    Yields:
        (outputs, their places (outputs, size), which places are real, blocks (outputs, size, size)); what is not real
        fills up to the largest support of the batch and has a diagonal of 1.
    """
    counts = support.sum(0)
    order = torch.argsort(counts, stable=True).tolist()
    while order:
        size = int(counts[order[-1]])
        if size == 0:
            return
        batch = max(min(CHUNK // (size * size), len(order), 32), 1)
        taken, order = order[-batch:], order[:-batch]
        chosen = support[:, taken].T  # (outputs, columns)
        places = torch.argsort(chosen, dim=1, descending=True, stable=True)[:, :size]
        real = chosen.gather(1, places)
        block = gram[places.unsqueeze(2), places.unsqueeze(1)] * (real.unsqueeze(2) & real.unsqueeze(1))
        block.diagonal(dim1=1, dim2=2).add_((~real).double())
        yield taken, places, real, block


def _solve(gram: Tensor, right: Tensor, ridge: float) -> Tensor:
    """Solve symmetric systems, with a larger ridge where they are numerically singular."""
    while True:
        system = gram.clone()
        system.diagonal(dim1=1, dim2=2).add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(system)
        if not bool(failed.any()):
            found: Tensor = torch.cholesky_solve(right, factor)
            return found
        ridge = max(ridge * 10, JITTER)


def solve_and_price(equations: NormalEquations, old: Tensor, support: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Return the solved weights, and what removing each of them adds to the squared error after compensation.

    The price is the optimal brain surgeon's w_i^2 / [G_S^-1]_ii (Hassibi and Stork 1993), on each output's support S.

    Args:
        equations: of the rows that were fitted, for the old weights.
        old, support: (groups, columns, outputs).
        ridge: relative to the diagonal of the Gram matrix.

    Returns:
        Weights and prices (summed over rows), both (groups, columns, outputs); prices are 0 outside the support.
    """
    diagonal = equations.gram.diagonal(dim1=1, dim2=2)
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    gram = equations.gram * scale.unsqueeze(2) * scale.unsqueeze(1)
    right = equations.cross * scale.unsqueeze(2)
    parts = [_solve_and_invert(*each, ridge + JITTER) for each in zip(gram, right, support, strict=True)]
    solved = old + torch.stack([change for change, _ in parts]) * scale.unsqueeze(2)
    inverse = torch.stack([diagonal for _, diagonal in parts])
    prices = solved.square() / (scale.square().unsqueeze(2) * inverse)
    return solved, torch.where(support, prices, 0.0)


def _solve_and_invert(gram: Tensor, right: Tensor, support: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Return (gram + ridge I)^-1 right and the diagonal of the inverse, on the support of each output.

    Both are (columns, outputs); outside the support they are 0 and 1.
    """
    if bool(support.all()):  # one system for all outputs
        inverse = _inverse(gram.unsqueeze(0), ridge)[0]
        return inverse @ right, inverse.diagonal().unsqueeze(1).expand(right.shape)
    change, diagonal = torch.zeros_like(right), torch.ones_like(right)
    for taken, places, real, block in _blocks_of(gram, support):
        inverse = _inverse(block, ridge)
        values = right[:, taken].T.gather(1, places) * real
        found = (inverse @ values.unsqueeze(2)).squeeze(2) * real
        change[:, taken] = torch.zeros_like(right[:, taken]).T.scatter(1, places, found).T
        entries = torch.where(real, inverse.diagonal(dim1=1, dim2=2), 1.0)
        diagonal[:, taken] = torch.ones_like(right[:, taken]).T.scatter(1, places, entries).T
    return change, diagonal


def _inverse(gram: Tensor, ridge: float) -> Tensor:
    """Inverses of symmetric systems, with a larger ridge where they are numerically singular."""
    while True:
        system = gram.clone()
        system.diagonal(dim1=1, dim2=2).add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(system)
        if not bool(failed.any()):
            return torch.cholesky_inverse(factor)
        ridge = max(ridge * 10, JITTER)
