"""One-dimensional k-means: the 2^b values that stand for all weights of a tensor.

Lloyd's rounds on the sorted values: cell borders are the midpoints between centres, a centre moves to the (weighted)
mean of its cell, which prefix sums give without a pass over the data. Deterministic.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUNDS = 25


def fit(values: NDArray[Any], size: int, weights: NDArray[Any] | None = None) -> NDArray[np.float32]:
    """`size` centres in increasing order that nearly minimise the (weighted) squared error of `values`.

    Args:
        values: finite numbers, any shape, at least one.
        size: number of centres.
        weights: how much each value matters, same shape, non-negative; None: all the same.
    """
    flat = values.astype(np.float64).reshape(-1)
    order = np.argsort(flat, kind="stable")
    data = flat[order]
    mass = np.ones_like(data) if weights is None else weights.astype(np.float64).reshape(-1)[order]
    mass_before = np.concatenate([[0.0], np.cumsum(mass)])
    moment_before = np.concatenate([[0.0], np.cumsum(mass * data)])
    centres = _start(data, size)
    for _ in range(ROUNDS):
        edges = np.searchsorted(data, _borders(centres), side="right")
        edges = np.concatenate([[0], edges, [len(data)]])
        total = np.diff(mass_before[edges])
        moment = np.diff(moment_before[edges])
        full = total > 0  # empty cells keep their centre
        centres[full] = moment[full] / total[full]
    return np.sort(centres).astype(np.float32)


def assign(values: NDArray[Any], centres: NDArray[np.float32]) -> NDArray[np.int64]:
    """Index of the nearest centre for each of `values` (flattened); the lower one half-way between two."""
    borders = _borders(centres.astype(np.float64))
    return np.searchsorted(borders, values.astype(np.float64).reshape(-1), side="left").astype(np.int64)


def _borders(centres: NDArray[np.float64]) -> NDArray[np.float64]:
    return (centres[1:] + centres[:-1]) / 2


def _start(data: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Quantiles (i + 1/2) / size of the sorted data; where they coincide, filled up from a linear grid."""
    places = ((np.arange(size) + 0.5) / size * len(data)).astype(np.int64)
    centres = np.unique(data[places])
    if len(centres) < size:
        grid = np.setdiff1d(np.linspace(data[0], data[-1], 2 * size), centres)
        spread = (
            grid[np.linspace(0, len(grid) - 1, min(size - len(centres), len(grid))).astype(np.int64)]
            if len(grid)
            else grid
        )
        centres = np.sort(np.concatenate([centres, spread]))
    return np.concatenate([centres, np.full(size - len(centres), centres[-1])])
