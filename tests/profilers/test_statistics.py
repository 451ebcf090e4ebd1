"""Percentiles, block ratios and their interval, on numbers that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from profilers.statistics import block_ratio, drift, median_interval, summarize


def test_percentiles_of_101_numbers() -> None:
    found = summarize([float(value) for value in range(101)])
    assert (found.minimum, found.p50, found.p90, found.p95, found.p99, found.spread) == (0, 50, 90, 95, 99, 80)


def test_block_ratio_takes_the_fastest_run_of_each_block() -> None:
    found = block_ratio(np.array([[2.0, 9.0], [4.0, 4.0]]), np.array([[1.0, 1.0], [2.0, 8.0]]))
    assert (found.value, found.low, found.high, found.width) == (0.5, 0.5, 0.5, 0.0)


def test_ratio_survives_a_machine_that_slows_down_and_single_outliers() -> None:
    speed = np.linspace(1.0, 3.0, 40)[:, None]
    outliers = np.where(np.random.default_rng(1).random((40, 6)) < 0.3, 10.0, 1.0)
    found = block_ratio(2.0 * speed * outliers, 1.5 * speed * np.fliplr(outliers))
    assert found.value == pytest.approx(0.75)
    assert found.low <= 0.75 <= found.high


def test_interval_covers_the_median_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        low, high = median_interval(generator.normal(10.0, 1.0, 30))
        hits += low <= 10.0 <= high
    assert 0.88 <= hits / 200 <= 1.0


def test_drift_compares_halves() -> None:
    assert drift(np.array([[1.0], [1.0], [1.2], [1.2]])) == pytest.approx(0.2)
    assert drift(np.array([[1.0]])) == 0.0
