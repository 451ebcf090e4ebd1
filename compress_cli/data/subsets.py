"""Deterministic choices of samples: spread over the classes where there are labels, over the list where not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch


def choose(count: int, total: int, labels: Sequence[int] | None, seed: int) -> list[int]:
    """`count` positions of `total`, as evenly over the classes as they allow; the same for the same arguments.

    The order is shuffled, so that any piece of the result is mixed too; two calls with the same seed and different
    counts give prefixes of one order.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(total, generator=generator).tolist()
    if labels is None or len(labels) != total:
        return order[:count]
    queues: dict[int, list[int]] = {}
    for position in order:
        queues.setdefault(labels[position], []).append(position)
    turns: list[int] = []
    names = sorted(queues)
    for turn in range(max(map(len, queues.values()), default=0)):
        turns += [queues[name][turn] for name in names if turn < len(queues[name])]
    return turns[:count]


def chunks(positions: Sequence[int], size: int) -> list[list[int]]:
    """Pieces of at most about `size`, as equal as possible: an average over pieces weighs every sample alike."""
    pieces = max(1, round(len(positions) / size)) if positions else 0
    bounds = [len(positions) * i // pieces for i in range(pieces + 1)] if pieces else [0]
    return [list(positions[a:b]) for a, b in pairwise(bounds)]
