"""LAMP scores (Lee et al., arXiv 2010.07611): how many weights each tensor loses under one global score threshold.

With the weights of a tensor sorted by (abs(w), index), score_u = w_u^2 / sum over v >= u of w_v^2. The score rises with
the rank inside a tensor, so a tensor loses a prefix of its order and its own k_l smallest magnitudes are the answer;
only the k_l need the scores. The largest weight of each tensor scores 1, which keeps tensors from being emptied.

Memory: one tensor at a time is sorted (about 24 bytes per weight of the largest tensor); of the others only quantiles
stay. A second sort collects the scores inside the bracket those quantiles give.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

QUANTILES = 4096
Scores = NDArray[np.float64]


def sorted_scores(tensor: Tensor) -> Scores:
    """Return the LAMP scores of one tensor in ascending order; zeros score 0, everything else more."""
    magnitudes = tensor.detach().cpu().to(torch.float64 if tensor.dtype is torch.float64 else torch.float32)
    flat = magnitudes.abs().reshape(-1).numpy()
    flat.sort()
    scores: Scores = flat.astype(np.float64)
    if tensor.dtype is torch.float64 and flat.size and flat[-1] > 0:
        scores /= flat[-1]  # the squares of doubles can overflow; the scores do not depend on the scale
    np.square(scores, out=scores)
    suffix = np.cumsum(scores[::-1])[::-1]
    zeros = int(np.searchsorted(flat, 0.0, side="right"))
    np.divide(scores, suffix, out=scores, where=suffix > 0)
    scores[:zeros] = 0.0
    np.maximum(scores[zeros:], np.finfo(np.float64).tiny, out=scores[zeros:])
    return scores


def lamp_counts(tensors: Sequence[Tensor], k: int, most: Sequence[int]) -> list[int]:
    """Return how many weights each tensor loses when the k smallest scores go, tensor l at most most[l].

    Ties between tensors go to the earlier tensor first. Needs 1 <= k <= sum(most).
    """
    low, high = _bracket(tensors, k, most)
    below: list[int] = []
    inside: list[Scores] = []
    for tensor, limit in zip(tensors, most, strict=True):
        scores = sorted_scores(tensor)[:limit]
        first, last = (int(place) for place in (np.searchsorted(scores, low), np.searchsorted(scores, high, "right")))
        below.append(first)
        inside.append(scores[first:last].copy())
    rank = k - sum(below)
    threshold = np.partition(np.concatenate(inside), rank - 1)[rank - 1]
    counts = [first + int(np.searchsorted(part, threshold)) for first, part in zip(below, inside, strict=True)]
    left = k - sum(counts)
    for index, part in enumerate(inside):
        ties = int(np.searchsorted(part, threshold, "right") - np.searchsorted(part, threshold))
        counts[index] += min(ties, left)
        left -= min(ties, left)
    return counts


def _bracket(tensors: Sequence[Tensor], k: int, most: Sequence[int]) -> tuple[float, float]:
    """Return scores low <= (k-th smallest) <= high from quantiles of each tensor.

    A quantile at position p stands for the scores after the previous one, p included: counting all of them gives at
    most the scores <= it, counting all after the next one gives at least those.
    """
    values, steps, heads = [], [], []
    for tensor, limit in zip(tensors, most, strict=True):
        scores = sorted_scores(tensor)[:limit]
        if not limit:
            continue
        places = np.unique(np.linspace(0, limit - 1, min(limit, QUANTILES)).astype(np.int64))
        values.append(scores[places])
        # scores at or below a quantile: certainly place + 1; certainly below the next quantile: its place
        steps.append(np.diff(places + 1, prepend=0))
        heads.append(np.diff(np.append(places[1:], limit), prepend=0))
    every = np.concatenate(values)
    order = np.argsort(every, kind="stable")
    surely = np.cumsum(np.concatenate(steps)[order])
    maybe = np.cumsum(np.concatenate(heads)[order])
    high = every[order][int(np.searchsorted(surely, k))]
    # with every score <= v counted as possible, fewer than k: the k-th smallest lies above v
    too_few = int(np.searchsorted(maybe, k)) - 1
    return float(every[order][too_few]) if too_few >= 0 else 0.0, float(high)
