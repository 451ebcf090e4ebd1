"""Normal equations of one layer, gathered over batches in float64, and their ridge solutions.

With patches p (a constant column for the bias where there is one), targets y and weights W, per group:
G = sum p'p, R = sum p'y, and |p W - y|^2 = tr(W'GW) - 2 tr(W'R) + sum y^2. The solution W near the old weights V is
W = V + D with (G + L) D = R - G V on each output's support, L = ridge * diag(G); it leaves everything outside the
support at zero, and is V itself when V already fits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1 << 24
"""Most elements of a block of patches in float64 (128 MiB)."""
BLOCKS = 6
"""Into so many stripes a Gram matrix is cut to use its symmetry."""
JITTER = 1e-10


@dataclass(slots=True)
class NormalEquations:
    """Sums over rows.

    Attributes:
        gram: (groups, columns, columns).
        cross: (groups, columns, outputs).
        energy: (groups, outputs), sum of squared targets.
        rows: how many rows went in.
    """

    gram: Tensor
    cross: Tensor
    energy: Tensor
    rows: int = 0

    @classmethod
    def empty(cls, groups: int, columns: int, outputs: int, device: torch.device) -> NormalEquations:
        """Sums over nothing."""
        sizes = ((groups, columns, columns), (groups, columns, outputs), (groups, outputs))
        return cls(*(torch.zeros(size, dtype=torch.float64, device=device) for size in sizes))

    def add(self, patches: Tensor, targets: Tensor) -> None:
        """Add rows.

        Args:
            patches: (groups, rows, columns); without the constant column, which is added when the sums have one more.
            targets: (groups, rows, outputs).
        """
        groups, rows, columns = patches.shape
        constant = self.gram.shape[1] == columns + 1
        step = max(CHUNK // max(groups * (columns + 1), 1), 1)
        for begin in range(0, rows, step):
            p = patches[:, begin : begin + step].double()
            y = targets[:, begin : begin + step].double()
            if constant:
                p = torch.cat([p, p.new_ones(*p.shape[:2], 1)], dim=2)
            self._add_gram(p)
            self.cross += p.mT @ y
            self.energy += y.square().sum(1)
        self.rows += rows

    def _add_gram(self, p: Tensor) -> None:
        """Add p'p, computing the blocks on and below the diagonal only."""
        columns = p.shape[2]
        step = max(-(-columns // BLOCKS), 64)
        for begin in range(0, columns, step):
            end = min(begin + step, columns)
            block = p[:, :, begin:end].mT @ p[:, :, :end]
            self.gram[:, begin:end, :end] += block
            self.gram[:, :begin, begin:end] += block[:, :, :begin].mT

    def errors(self, weights: Tensor) -> Tensor:
        """Squared error of weights (groups, columns, outputs), summed over rows: (groups, outputs)."""
        quadratic = (weights * (self.gram @ weights - 2 * self.cross)).sum(1)
        return (quadratic + self.energy).clamp(min=0)


def ridge_solutions(
    equations: NormalEquations, old: Tensor, support: Tensor, ridges: tuple[float, ...]
) -> list[Tensor]:
    """Return one solution near the old weights for each ridge.

    Args:
        equations: of the rows to fit.
        old: (groups, columns, outputs), zero outside the support.
        support: same shape, True where a weight may be other than zero.
        ridges: relative to the diagonal of the Gram matrix.
    """
    residual = equations.cross - equations.gram @ old
    diagonal = equations.gram.diagonal(dim1=1, dim2=2)
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()  # (groups, columns)
    gram = equations.gram * scale.unsqueeze(2) * scale.unsqueeze(1)
    right = residual * scale.unsqueeze(2)
    found = []
    for ridge in ridges:
        step = torch.zeros_like(old)
        for group in range(old.shape[0]):
            step[group] = _masked_solve(gram[group], right[group], support[group], ridge + JITTER)
        found.append(old + step * scale.unsqueeze(2))
    return found


def _masked_solve(gram: Tensor, right: Tensor, support: Tensor, ridge: float) -> Tensor:
    """Solve (gram + ridge I) x = right on the support of each column of `right`."""
    if bool(support.all()):
        return _solve(gram.unsqueeze(0), right.unsqueeze(0), ridge)[0]
    solution = torch.zeros_like(right)
    counts = support.sum(0)
    order = torch.argsort(counts).tolist()
    while order:
        # rows of about the same size together: padded to the largest, at most CHUNK elements
        size = int(counts[order[-1]])
        if size == 0:
            break
        batch = max(min(CHUNK // (size * size), len(order)), 1)
        taken, order = order[-batch:], order[:-batch]
        _solve_columns(gram, right, support, ridge, taken, size, solution)
    return solution


def _solve_columns(
    gram: Tensor, right: Tensor, support: Tensor, ridge: float, taken: list[int], size: int, solution: Tensor
) -> None:
    """Solve for some columns at once, each on its own support, padded with unknowns that are zero."""
    chosen = support[:, taken].T  # (columns taken, unknowns)
    places = torch.argsort(chosen, dim=1, descending=True, stable=True)[:, :size]
    real = chosen.gather(1, places)
    block = gram[places.unsqueeze(2), places.unsqueeze(1)] * (real.unsqueeze(2) & real.unsqueeze(1))
    block.diagonal(dim1=1, dim2=2).add_((~real).double())
    values = right[:, taken].T.gather(1, places) * real
    found = _solve(block, values.unsqueeze(2), ridge).squeeze(2) * real
    solution[:, taken] = torch.zeros_like(right[:, taken]).T.scatter(1, places, found).T


def _solve(gram: Tensor, right: Tensor, ridge: float) -> Tensor:
    """Solve symmetric systems, with a larger ridge where they are numerically singular."""
    while True:
        system = gram.clone()
        system.diagonal(dim1=1, dim2=2).add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(system)
        if not bool(failed.any()):
            return torch.cholesky_solve(right, factor)
        ridge = max(ridge * 10, JITTER)
