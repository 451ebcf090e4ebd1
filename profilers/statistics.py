"""Percentiles, spread and the ratio of two interleaved series with its interval: arithmetic on milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]

RESAMPLES = 1000
COVERAGE = 0.95


@dataclass(frozen=True, slots=True)
class Summary:
    """Percentiles of a series in its own unit; `spread` = 90th - 10th percentile."""

    p50: float
    p90: float
    p95: float
    p99: float
    minimum: float
    spread: float


def summarize(times: Sequence[float] | Times) -> Summary:
    """Percentiles of at least one time (linear interpolation)."""
    p10, p50, p90, p95, p99 = (float(value) for value in np.percentile(times, (10, 50, 90, 95, 99)))
    return Summary(p50, p90, p95, p99, float(np.min(times)), p90 - p10)


@dataclass(frozen=True, slots=True)
class Ratio:
    """compressed / original: median over blocks, and the middle 95 % of that median over bootstrap resamples."""

    value: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Interval width relative to the ratio."""
        return (self.high - self.low) / self.value


def block_ratio(original: Times, compressed: Times, seed: int = 0) -> Ratio:
    """Ratio of two series that were taken block by block.

    A block's ratio is that of its two fastest runs: what disturbs single runs drops out by the minimum, what slows the
    machine for longer than a block (clock, heat) cancels in the quotient.

    Args:
        original: (blocks, runs) times; compressed: (blocks, runs) times of the same blocks.
        seed: of the bootstrap over blocks.

    Example:
        original [[2, 9], [4, 4]], compressed [[1, 1], [2, 8]]: block ratios 1/2 and 2/4, so 0.5.
    """
    ratios = compressed.min(axis=1) / original.min(axis=1)
    low, high = median_interval(ratios, seed)
    return Ratio(float(np.median(ratios)), low, high)


def median_interval(values: Times, seed: int = 0) -> tuple[float, float]:
    """Bootstrap interval (95 %) of the median of `values` (n,)."""
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, len(values), size=(RESAMPLES, len(values)))
    medians = np.median(values[picks], axis=1)
    tail = (1 - COVERAGE) / 2
    return float(np.quantile(medians, tail)), float(np.quantile(medians, 1 - tail))


def drift(blocks: Times) -> float:
    """How much the second half of the blocks is slower than the first: 0.1 = 10 %, negative when faster.

    Args:
        blocks: (blocks, runs) times of one model.
    """
    minima = blocks.min(axis=1)
    half = len(minima) // 2
    if half == 0:
        return 0.0
    return float(np.median(minima[-half:]) / np.median(minima[:half]) - 1)


def as_json(summary: Summary) -> dict[str, Any]:
    """A summary as milliseconds for a report."""
    return {
        "p50_ms": summary.p50,
        "p90_ms": summary.p90,
        "p95_ms": summary.p95,
        "p99_ms": summary.p99,
        "min_ms": summary.minimum,
        "spread_ms": summary.spread,
    }
