"""Fitting the time model to all runs at once: every run has its own costs, runs of one kind of device resemble.

For run d and network n: log T = log(sum_k exp(p_dk) F_nk) + error, error ~ Laplace (scale 0.08).
p_d ~ Normal(W x_d, S) with x_d = family, clock and threads of the run; W (ridge regression) and S (shrunk covariance)
are re-estimated while p is fitted by gradient descent (empirical Bayes). Networks that only a few devices have, and
devices with only a few networks, are held by the prior instead of running off as in separate fits.

Measured, networks left out one at a time: `benchmarks/devices_baseline.py` sets it beside a separate three-parameter
roofline per run. What helped (median / 90th percentile over all runs with up to 8 threads, from 12.2 / 35 %): separate
prices for exponentials and moved activations and a larger penalty for few channels, an absolute loss and a wider prior
(to 9.7 / 33 %), the correction by alike networks (to 9.2 / 31 %). What did not: the larger of compute and memory per
layer instead of their sum, cache sizes, superlinear memory, averaging with the roofline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from profilers.devices.features import COMPUTE

Array = NDArray[np.float64]

SCALE = 0.08
PRIOR_SPREAD, PRIOR_WEIGHT = 0.5, 20.0
REFRESH = 10
_START = (-1.2, -0.8, -0.5, 0.6, 0.6, -0.3, 0.0, -1.2, 0.0, -1.0, -1.0, -0.7)
"""Log cost of every kind of compute and memory against the mean cost of a MAC."""


@dataclass(frozen=True, slots=True)
class Fit:
    """`costs`: log milliseconds per unit, (runs, features); `weights`: (descriptors, features); `covariance`."""

    costs: Array
    weights: Array
    covariance: Array

    def of(self, descriptors: Array) -> Array:
        """Log costs of a device that is known by its descriptors alone."""
        return descriptors @ self.weights


def fit(features: Array, times: Array, descriptors: Array, *, steps: int = 300, rate: float = 0.05) -> Fit:
    """Fit all runs.

    Args:
        features: (networks, features) units of each network.
        times: (runs, networks) milliseconds, NaN where a run lacks a network.
        descriptors: (runs, descriptors), the first column 1.
    """
    known = ~np.isnan(times)
    target = torch.tensor(np.log(np.where(known, times, 1.0)), dtype=torch.float32)
    mask = torch.tensor(known, dtype=torch.float32)
    units = torch.tensor(features.T, dtype=torch.float32)
    x = torch.tensor(descriptors, dtype=torch.float32)
    costs = torch.tensor(_start(features, times), dtype=torch.float32).requires_grad_()
    optimizer = torch.optim.Adam([costs], lr=rate, betas=(0.9, 0.98))
    prior = _prior(x, costs)
    for step in range(steps):
        if step % REFRESH == 0:
            prior = _prior(x, costs)
        optimizer.zero_grad()
        loss = _loss(costs, units, target, mask, prior)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        _set_rate(optimizer, rate, step, steps)
    _, weights, covariance = _prior(x, costs)
    return Fit(_array(costs), _array(weights), _array(covariance))


def log_times(costs: Array, features: Array) -> Array:
    """Log milliseconds: costs (runs, features), features (networks, features) -> (runs, networks)."""
    return np.asarray(np.log(np.exp(costs) @ features.T))


def _start(features: Array, times: Array) -> Array:
    """A first guess: every kind of work at a fixed multiple of the run's mean cost per MAC."""
    speed = np.nanmedian(features[:, COMPUTE].sum(axis=1)[None] / times, axis=1)
    overhead = np.log(np.nanmin(times, axis=1) / 1000)
    work = np.asarray(_START)[None] - np.log(speed)[:, None]
    return np.column_stack([work, overhead, overhead - 0.7])


def _loss(costs: Tensor, units: Tensor, target: Tensor, mask: Tensor, prior: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    mean, _, covariance = prior
    error = (torch.log(torch.exp(costs) @ units + 1e-9) - target) / SCALE
    likelihood = (error.abs() * mask).sum()
    away = costs - mean
    penalty: Tensor = 0.5 * (away * torch.linalg.solve(covariance, away.T).T).sum()
    return likelihood + penalty


def _prior(x: Tensor, costs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(mean per run, regression weights, covariance) of the current costs; not differentiated."""
    with torch.no_grad():
        ridge = torch.eye(x.shape[1])
        ridge[0, 0] = 1e-3  # the intercept is free
        weights = torch.linalg.solve(x.T @ x + ridge, x.T @ costs)
        mean = x @ weights
        rest = costs - mean
        spread = PRIOR_WEIGHT * PRIOR_SPREAD**2 * torch.eye(costs.shape[1])
        return mean, weights, (rest.T @ rest + spread) / (len(costs) + PRIOR_WEIGHT)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float, step: int, steps: int) -> None:
    warm = min(1.0, (step + 1) / REFRESH)
    for group in optimizer.param_groups:
        group["lr"] = rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-4


def _array(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()
