"""What a user can ask of magnitude pruning, checked and turned into exact integers."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from math import floor as round_down
from typing import Literal

from pruners.errors import BadFloor, BadOptions, BadSparsity

Scope = Literal["global", "layer"]
Score = Literal["magnitude", "lamp", "erk"]
SCOPES: tuple[Scope, ...] = ("global", "layer")
SCORES: tuple[Score, ...] = ("magnitude", "lamp", "erk")


def _decimal(text: str) -> Decimal | None:
    try:
        value = Decimal(text.strip())
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def parse_sparsity(text: str) -> Fraction:
    """Read `0.9` or `90%` exactly.

    Raises:
        BadSparsity: not a number, or outside [0, 1).
    """
    stripped = text.strip()
    value = _decimal(stripped.removesuffix("%"))
    if value is None:
        raise BadSparsity(text, "is not a number")
    share = Fraction(value) / (100 if stripped.endswith("%") else 1)
    if share < 0:
        raise BadSparsity(text, "is negative")
    if share >= 1:
        raise BadSparsity(text, "would leave no weight")
    return share


def count_zeros_asked(sparsity: str, weights: int) -> int:
    """Return k = floor(s * N + 1/2).

    Example:
        >>> count_zeros_asked("0.9", 268_336)
        241502
    """
    return round_down(parse_sparsity(sparsity) * weights + Fraction(1, 2))


def parse_floor(text: str, weights: int) -> int:
    """Return how many weights each tensor keeps: a count as it is, a percentage of N rounded to the nearest.

    A percentage above 0 is at least one weight, so that the default protects the tensors of the smallest net too.

    Raises:
        BadFloor: neither a count nor a percentage, or negative.
    """
    stripped = text.strip()
    value = _decimal(stripped.removesuffix("%"))
    if value is None or value < 0:
        raise BadFloor(text, "is not a number" if value is None else "is negative")
    if stripped.endswith("%"):
        if value > 100:
            raise BadFloor(text, "is more than all weights")
        nearest = round_down(Fraction(value) * weights / 100 + Fraction(1, 2))
        return max(nearest, 1) if value else 0
    if value != value.to_integral_value():
        raise BadFloor(text, "is not a whole number")
    return int(value)


@dataclass(frozen=True, slots=True)
class MagnitudeOptions:
    """Options of magnitude pruning; checked on construction.

    Raises:
        BadSparsity, BadFloor: see `parse_sparsity`, `parse_floor`.
        BadOptions: unknown scope or score, or a score that decides the layers' shares itself with scope `layer`.
    """

    sparsity: str = field(metadata={"help": "share of exact zeros: 0.9 or 90%"})
    scope: Scope = field(
        default="global", metadata={"help": "global: one threshold; layer: the same sparsity in each tensor"}
    )
    score: Score = field(default="magnitude", metadata={"help": "magnitude; lamp or erk: other shares of the layers"})
    floor: str = field(
        default="0.02%", metadata={"help": "weights every tensor keeps: a count, or a percentage of all"}
    )
    ignore: tuple[str, ...] = field(default=(), metadata={"help": "patterns of tensors or modules left alone"})
    only: tuple[str, ...] = field(default=(), metadata={"help": "patterns of tensors or modules considered"})

    def __post_init__(self) -> None:
        parse_sparsity(self.sparsity)
        parse_floor(self.floor, 0)
        if self.scope not in SCOPES:
            raise BadOptions(f"scope must be one of {', '.join(SCOPES)}, not {self.scope!r}")
        if self.score not in SCORES:
            raise BadOptions(f"score must be one of {', '.join(SCORES)}, not {self.score!r}")
        if self.scope == "layer" and self.score != "magnitude":
            raise BadOptions(f"score {self.score} sets the sparsity of each layer itself; use it with scope global")
