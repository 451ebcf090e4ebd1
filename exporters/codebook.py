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
    tries = [_lloyd(data, mass, start) for start in (_companded(data, size), _quantiles(data, size))]
    return min(tries, key=lambda found: found[0])[1].astype(np.float32)


def _lloyd(
    data: NDArray[np.float64], mass: NDArray[np.float64], centres: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """(squared error, centres) after the rounds; `data` is sorted."""
    mass_before = np.concatenate([[0.0], np.cumsum(mass)])
    moment_before = np.concatenate([[0.0], np.cumsum(mass * data)])
    for _ in range(ROUNDS):
        edges = np.searchsorted(data, _borders(centres), side="right")
        edges = np.concatenate([[0], edges, [len(data)]])
        total = np.diff(mass_before[edges])
        moment = np.diff(moment_before[edges])
        full = total > 0  # empty cells keep their centre
        centres = np.sort(np.where(full, moment / np.where(full, total, 1), centres))
    error = data - centres[np.searchsorted(_borders(centres), data, side="left")]
    return float((mass * error * error).sum()), centres


def assign(values: NDArray[Any], centres: NDArray[np.float32]) -> NDArray[np.int64]:
    """Index of the nearest centre for each of `values` (flattened); the lower one half-way between two."""
    borders = _borders(centres.astype(np.float64))
    return np.searchsorted(borders, values.astype(np.float64).reshape(-1), side="left").astype(np.int64)


def _borders(centres: NDArray[np.float64]) -> NDArray[np.float64]:
    return (centres[1:] + centres[:-1]) / 2


def _quantiles(data: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Quantiles (i + 1/2) / size of the sorted data: best for few values."""
    return _filled(data, data[((np.arange(size) + 0.5) / size * len(data)).astype(np.int64)], size)


def _companded(data: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Centres as dense as the cube root of the data's density: best for many centres (Panter and Dite, 1951)."""
    counts, edges = np.histogram(data, bins=int(2 * len(data) ** (1 / 3)))  # Rice's rule
    mass = np.concatenate([[0.0], np.cumsum(np.cbrt(counts))])
    places = np.interp((np.arange(size) + 0.5) / size * mass[-1], mass, edges)
    return _filled(data, data[np.clip(np.searchsorted(data, places), 0, len(data) - 1)], size)


def _filled(data: NDArray[np.float64], centres: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """`size` sorted centres; those that coincide are moved to a linear grid, as far as the data has so many values."""
    centres = np.unique(centres)
    if len(centres) < size:
        grid = np.setdiff1d(np.linspace(data[0], data[-1], 2 * size), centres)
        places = np.linspace(0, max(len(grid) - 1, 0), min(size - len(centres), len(grid))).astype(np.int64)
        centres = np.sort(np.concatenate([centres, grid[places]]))
    return np.concatenate([centres, np.full(size - len(centres), centres[-1])])
