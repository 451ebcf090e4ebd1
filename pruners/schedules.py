"""Sparsity over training steps: at once, or the cubic ramp of Zhu & Gupta (arXiv 1710.01878, eq. 1).

s(step) = final + (initial - final) * (1 - (step - begin) / (end - begin))^3 for begin <= step <= end, then constant.
Steps are optimiser steps. A schedule only says how sparse the weights are to be; `Masks.reselect_` makes them so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from pruners.errors import BadPlan


def _check(value: float, name: str) -> None:
    if not (isfinite(value) and 0 <= value < 1):
        raise ValueError(f"{name} must be at least 0 and below 1, not {value!r}")


@dataclass(frozen=True, slots=True)
class OneShot:
    """All of the sparsity from step `begin` on; 0 before."""

    final: float
    begin: int = 0

    def __post_init__(self) -> None:
        _check(self.final, "final")
        if self.begin < 0:
            raise ValueError(f"begin must not be negative, not {self.begin}")

    @property
    def end(self) -> int:
        """Step from which the sparsity is constant."""
        return self.begin

    def sparsity_at(self, step: int) -> float:
        """Return the share of zeros wanted after a step."""
        return self.final if step >= self.begin else 0.0

    def is_due(self, step: int) -> bool:
        """Tell whether the weights are to be selected anew at a step."""
        return step == self.begin

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able description."""
        return {"kind": "one-shot", "final": self.final, "begin": self.begin}


@dataclass(frozen=True, slots=True)
class CubicSchedule:
    """A ramp from `initial` at step `begin` to `final` at step `end`, fast at first, re-selected every `every` steps.

    Example:
        >>> CubicSchedule(0.0, 0.8, 0, 100).sparsity_at(50)  # 0.8 - 0.8 * 0.5**3
        0.7
    """

    initial: float
    final: float
    begin: int
    end: int
    every: int = 1

    def __post_init__(self) -> None:
        _check(self.initial, "initial")
        _check(self.final, "final")
        if self.final < self.initial:
            raise ValueError(f"final {self.final} is below initial {self.initial}: zeros are never revived")
        if not 0 <= self.begin < self.end:
            raise ValueError(f"needs 0 <= begin < end, not begin {self.begin} and end {self.end}")
        if self.every < 1:
            raise ValueError(f"every must be at least 1, not {self.every}")

    def sparsity_at(self, step: int) -> float:
        """Return the share of zeros wanted after a step; exactly `final` from `end` on."""
        if step >= self.end:
            return self.final
        left = min(1.0, (self.end - step) / (self.end - self.begin))
        return self.final + (self.initial - self.final) * left**3

    def is_due(self, step: int) -> bool:
        """Tell whether the weights are to be selected anew at a step."""
        return step == self.end or (self.begin <= step < self.end and (step - self.begin) % self.every == 0)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able description."""
        names = ("initial", "final", "begin", "end", "every")
        return {"kind": "cubic", **{name: getattr(self, name) for name in names}}


Schedule = OneShot | CubicSchedule


def schedule_from_dict(document: Mapping[str, Any]) -> Schedule:
    """Read what `to_dict` wrote.

    Raises:
        BadPlan: the description is not one of ours.
    """
    fields = dict(document)
    kind = fields.pop("kind", None)
    try:
        if kind == "one-shot":
            return OneShot(**fields)
        if kind == "cubic":
            return CubicSchedule(**fields)
    except (TypeError, ValueError) as error:
        raise BadPlan(f"schedule: {error}") from error
    raise BadPlan(f"unknown schedule {kind!r}")
