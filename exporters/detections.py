"""Detections of two runs of one network, row by row.

A detector sorts its findings by score, cuts the list and suppresses overlaps. Where two scores, or a score and a
threshold, are equal up to rounding, PyTorch and ONNX Runtime may list two findings the other way round or keep another
one of the two. Rows are paired only when scores, labels and boxes agree; a few findings without partner are tolerated
and counted, more of them leave everything as it was, and the comparison fails as it should.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

TOLERATED = 0.02
"""Share of the findings that may have no partner."""


@dataclass(frozen=True, slots=True)
class Paired:
    """Outputs of both sides with the rows of detections in one order.

    Attributes:
        expected, got: the arrays; findings without partner are left out of both.
        moved: rows of `got` that changed their place.
        alone: findings of either side without partner; `findings`: of the expected side, all together.
    """

    expected: tuple[Array, ...]
    got: tuple[Array, ...]
    moved: int = 0
    alone: int = 0
    findings: int = 0

    def notes(self) -> list[str]:
        """What a reader of the comparison should know."""
        notes = []
        if self.moved:
            notes.append(
                f"{self.moved} of {self.findings} detections come in another order: equal scores but for rounding"
            )
        if self.alone:
            notes.append(
                f"{self.alone} of {self.findings} detections have no partner: top-k and suppression decide between "
                "candidates whose scores are equal but for rounding"
            )
        return notes


def paired(names: Sequence[str], expected: Sequence[Array], got: Sequence[Array], rtol: float) -> Paired:
    """Pair the rows of each group of detections.

    A group is what shares the name before the last dot, has a one-dimensional float output `scores`, and one row for
    each score in every output (as the results of torchvision's detectors).

    Args:
        names: of the outputs, such as `output_0.boxes`.
        expected, got: arrays in the order of `names`.
        rtol: largest difference of paired rows, relative to the output's largest value.
    """
    left, right = list(expected), list(got)
    moved = alone = findings = 0
    for scores in [place for place, name in enumerate(names) if name.rpartition(".")[2] == "scores"]:
        prefix = names[scores].rpartition(".")[0]
        group = [place for place, name in enumerate(names) if name.rpartition(".")[0] == prefix]
        partners = _pairing([expected[place] for place in group], [got[place] for place in group], rtol)
        if partners is None:
            continue
        here, there = np.flatnonzero(partners >= 0), partners[partners >= 0]
        moved += int((np.diff(there) < 0).sum())
        alone += max(len(expected[scores]), len(got[scores])) - len(here)
        findings += len(expected[scores])
        for place in group:
            left[place], right[place] = expected[place][here], got[place][there]
    return Paired(tuple(left), tuple(right), moved, alone, findings)


def _pairing(expected: Sequence[Array], got: Sequence[Array], rtol: float) -> Array | None:
    """For each expected row the row of `got` that is the same finding, -1 without; None where too few rows pair."""
    rows, others = len(expected[0]), len(got[0])
    if any(len(left) != rows or len(right) != others for left, right in zip(expected, got, strict=True)):
        return None
    if not rows or not others:  # nothing to pair: both are empty, or the comparison of shapes will tell
        return None
    possible = np.ones((rows, others), dtype=bool)
    for left, right in zip(expected, got, strict=True):
        if left.ndim > 2 or left[:1].size > 64:  # masks go along with their boxes
            continue
        allowed = rtol * float(np.abs(left).max(initial=0.0)) if left.dtype.kind == "f" else 0.0
        gap = np.abs(left.astype(np.float64).reshape(rows, 1, -1) - right.astype(np.float64).reshape(1, others, -1))
        possible &= gap.max(axis=-1, initial=0.0) <= allowed
    partners = np.full(rows, -1)
    free = np.ones(others, dtype=bool)
    for row in range(rows):
        candidates = np.flatnonzero(possible[row] & free)
        if len(candidates):
            partners[row] = row if row in candidates else candidates[0]
            free[partners[row]] = False
    alone = max(rows, others) - int((partners >= 0).sum())
    return partners if alone <= TOLERATED * max(rows, others) else None


__all__ = ["TOLERATED", "Paired", "paired"]
