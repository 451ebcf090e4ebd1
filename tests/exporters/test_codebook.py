"""One-dimensional k-means against the best of all partitions, and on data where centres coincide."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from exporters import codebook


def error(values: np.ndarray, centres: np.ndarray, weights: np.ndarray | None = None) -> float:
    gap = (values - centres[codebook.assign(values, centres)].astype(np.float64)) ** 2
    return float((gap if weights is None else gap * weights).sum())


def best_error(values: np.ndarray, size: int) -> float:
    """The least squared error of all ways to cut the sorted values into `size` cells."""
    data = np.sort(values)
    cuts = combinations(range(1, len(data)), size - 1)
    return min(sum(float(((p - p.mean()) ** 2).sum()) for p in np.split(data, cut)) for cut in cuts)


@pytest.mark.parametrize("seed", range(5))
def test_close_to_the_best_partition(seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=14)
    found = error(values, codebook.fit(values, 4))
    assert best_error(values, 4) - 1e-6 <= found <= 1.6 * best_error(values, 4)


def test_separated_clusters_are_found_exactly() -> None:
    values = np.concatenate([np.full(50, c) for c in (-2.0, -1.0, 0.5, 3.0)])
    assert codebook.fit(values, 4).tolist() == [-2.0, -1.0, 0.5, 3.0]


def test_more_centres_fit_better_and_are_sorted() -> None:
    values = np.random.default_rng(0).normal(size=4000)
    errors = []
    for bits in range(1, 9):
        centres = codebook.fit(values, 2**bits)
        assert centres.dtype == np.float32
        assert len(centres) == 2**bits
        assert (np.diff(centres) >= 0).all()
        errors.append(error(values, centres))
    # Panter-Dite: an optimal quantiser of a normal variable loses 6 dB a bit; Max (1960) gives 0.1175 and 0.00950.
    assert errors == sorted(errors, reverse=True)
    assert errors[1] / 4000 == pytest.approx(0.1175, rel=0.05)
    assert errors[3] / 4000 == pytest.approx(0.0095, rel=0.1)


@pytest.mark.parametrize("values", [[1.5], [2.0, 2.0, 2.0], [1.0, 1.0, -1.0], [0.0, 1e-30]])
def test_fewer_values_than_centres(values: list[float]) -> None:
    data = np.array(values)
    centres = codebook.fit(data, 16)
    assert len(centres) == 16
    assert np.isfinite(centres).all()
    assert np.array_equal(centres[codebook.assign(data, centres)], data.astype(np.float32))


def test_weights_pull_the_centres() -> None:
    values = np.random.default_rng(1).normal(size=2000)
    weights = np.where(values > 1, 50.0, 1.0)
    plain, weighted = codebook.fit(values, 8), codebook.fit(values, 8, weights)
    assert error(values, weighted, weights) < error(values, plain, weights)
    assert error(values, plain) < error(values, weighted)


def test_deterministic() -> None:
    values = np.random.default_rng(2).normal(size=500)
    assert np.array_equal(codebook.fit(values, 16), codebook.fit(values.copy(), 16))
