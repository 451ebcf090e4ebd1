"""What the fitted costs got wrong on networks of the table, carried over to networks that spend their time alike.

The log errors of a run are a smooth function of what a network spends its time on: a Gaussian process with a kernel of
squared distance between signatures (square roots of the shares of time), the noise as large as the signal. Far from
every network of the table the correction goes to zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LENGTH = 0.2
NOISE = 1.0
LARGEST = 0.5


def signature(features: Array, log_costs: Array) -> Array:
    """Square roots of the shares of time by feature: features (..., features) at the given log costs (features,)."""
    parts = features * np.exp(log_costs)
    return np.asarray(np.sqrt(parts / parts.sum(-1, keepdims=True)))


def correction(own: Array, others: Array, errors: Array) -> float:
    """Expected log error of a network.

    Args:
        own: its signature (features,).
        others: signatures of the networks of the table (networks, features).
        errors: log(predicted / measured) of one run on them (networks,), NaN where it lacks one.
    """
    known = ~np.isnan(errors)
    if not known.any():
        return 0.0
    places = others[known]
    clipped = np.clip(errors[known], -LARGEST, LARGEST)
    inner = _kernel(places, places) + NOISE * np.eye(len(places))
    return float((_kernel(own[None], places) @ np.linalg.solve(inner, clipped))[0])


def _kernel(left: Array, right: Array) -> Array:
    distance = ((left[:, None] - right[None]) ** 2).sum(-1)
    return np.asarray(np.exp(-distance / (2 * LENGTH**2)))
