"""Sharing one sparsity budget over tensors in fixed proportions, in exact integers.

Tensor l keeps clamp(c * a_l, low_l, high_l) weights with the one factor c that makes the total right. Uniform: a_l =
n_l. Erdos-Renyi-Kernel (Mocanu et al. 2018; Evci et al., arXiv 1911.11134): the density of a tensor is proportional to
(sum of its dimensions) / (product of its dimensions), so a_l = sum of its dimensions, and the clamp at high_l = n_l is
the cap of the density at 1. Fractions are handed out by largest remainder, so that the total is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


def allocate(shares: Sequence[int], low: Sequence[int], high: Sequence[int], total: int) -> list[int]:
    """Split `total` in proportion to `shares` with bounds per place.

    Args:
        shares: positive weights of the places.
        low: least a place gets, 0 <= low <= high.
        high: most a place gets.
        total: what to split, sum(low) <= total <= sum(high).

    Returns:
        Integers within the bounds whose sum is `total`.

    Raises:
        ValueError: the bounds exclude the total.

    Example:
        >>> allocate([1, 1, 2], [0, 0, 0], [10, 10, 3], 10)  # the third is full, the others share the rest
        [4, 3, 3]
    """
    if not sum(low) <= total <= sum(high):
        raise ValueError(f"cannot split {total} between {sum(low)} and {sum(high)}")
    exact = _clamped(_factor(shares, low, high, total), shares, low, high)
    counts = [int(value) for value in exact]
    order = sorted(range(len(exact)), key=lambda place: (counts[place] - exact[place], place))
    for place in order[: total - sum(counts)]:
        counts[place] += 1
    return counts


def _clamped(factor: Fraction, shares: Sequence[int], low: Sequence[int], high: Sequence[int]) -> list[Fraction]:
    bounds = zip(shares, low, high, strict=True)
    return [min(max(factor * share, Fraction(least)), Fraction(most)) for share, least, most in bounds]


def _factor(shares: Sequence[int], low: Sequence[int], high: Sequence[int], total: int) -> Fraction:
    """Find the factor c by bisection over the places where a bound starts or stops to bind, then linearly."""
    bounds = zip(shares, low, high, strict=True)
    kinks = sorted({Fraction(end, share) for share, *ends in bounds for end in ends})
    first, last = 0, len(kinks) - 1
    while last - first > 1:
        middle = (first + last) // 2
        if sum(_clamped(kinks[middle], shares, low, high)) <= total:
            first = middle
        else:
            last = middle
    left, right = (sum(_clamped(kinks[end], shares, low, high), Fraction(0)) for end in (first, last))
    if right == left:
        return kinks[first]
    return kinks[first] + (kinks[last] - kinks[first]) * (total - left) / (right - left)
