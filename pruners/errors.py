"""What a user's model, file or request can do wrong in pruning; each class carries its data as attributes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


class PruningError(Exception):
    """Base of everything this package raises about a user's model or request."""


class BadOptions(ValueError):
    """Options that make no sense, alone or together."""


class BadSparsity(BadOptions):
    """The sparsity text is not a number in [0, 1)."""

    def __init__(self, text: str, why: str) -> None:
        self.text = text
        super().__init__(f"sparsity {text!r} {why}; give a fraction such as 0.9 or a percentage such as 90%")


class BadFloor(BadOptions):
    """The floor text is neither a count nor a percentage."""

    def __init__(self, text: str, why: str) -> None:
        self.text = text
        super().__init__(f"floor {text!r} {why}; give a count such as 500 or a percentage such as 0.02%")


class NoMatch(PruningError):
    """An ignore, only or include pattern fits no tensor.

    Attributes:
        pattern: the pattern as given.
        close_matches: existing names that look like it, best first.
    """

    def __init__(self, pattern: str, close_matches: tuple[str, ...] = (), why: str = "matches no tensor") -> None:
        self.pattern = pattern
        self.close_matches = close_matches
        hint = f"; close names: {', '.join(close_matches)}" if close_matches else ""
        super().__init__(f"pattern {pattern!r} {why}{hint}")


class NothingToPrune(PruningError):
    """No tensor is left to rank.

    Attributes:
        left_out: how many were looked at.
        reasons: why each of them was left out, as far as known.
    """

    def __init__(self, left_out: int, reasons: Sequence[str] = ()) -> None:
        self.left_out = left_out
        self.reasons = tuple(reasons)
        most = ", ".join(f"{count} x {reason}" for reason, count in Counter(self.reasons).most_common(3))
        super().__init__(
            f"no weight to prune: none of the {left_out} tensors feeds a convolution or a matrix product"
            f" and was allowed by the patterns{f' ({most})' if most else ''}"
        )


class BadWeights(PruningError):
    """A tensor holds values that cannot be ranked.

    Attributes:
        tensor: its name.
        reason: what is wrong with it.
    """

    def __init__(self, tensor: str, reason: str) -> None:
        self.tensor = tensor
        self.reason = reason
        super().__init__(f"{tensor}: {reason}")


class InfeasibleSparsity(PruningError):
    """The floor of the tensors forbids the sparsity asked for.

    Attributes:
        requested: the sparsity text as asked.
        largest: the largest sparsity that the floor allows, a fraction of the ranked weights.
        floor: weights that every tensor keeps.
    """

    def __init__(self, requested: str, largest: float, floor: int) -> None:
        self.requested = requested
        self.largest = largest
        self.floor = floor
        super().__init__(
            f"sparsity {requested} cannot be met while every tensor keeps {floor:,} weights:"
            f" the largest possible is {int(largest * 1e6) / 1e6:.6f}"
        )


class LayerCollapse(PruningError):
    """A tensor would lose its last non-zero weight.

    Attributes:
        tensors: the names of all such tensors.
    """

    def __init__(self, tensors: tuple[str, ...]) -> None:
        self.tensors = tensors
        named = ", ".join(tensors[:5]) + (f" and {len(tensors) - 5} more" if len(tensors) > 5 else "")
        super().__init__(f"no weight would be left in {named}; set a floor above 0 or ask for less sparsity")


class PlanMismatch(PruningError):
    """A plan does not belong to these tensors.

    Attributes:
        problems: one line per difference.
    """

    def __init__(self, problems: tuple[str, ...]) -> None:
        self.problems = problems
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        super().__init__("the plan does not fit this model: " + "; ".join(problems[:5]) + more)


class MaskMismatch(PruningError):
    """Saved masks do not belong to this model.

    Attributes:
        tensor: the name that differs.
        reason: how.
    """

    def __init__(self, tensor: str, reason: str) -> None:
        self.tensor = tensor
        self.reason = reason
        super().__init__(f"masks do not fit: {tensor} {reason}")


class BadPlan(PruningError):
    """A plan document cannot be read.

    Attributes:
        reason: what is wrong with it.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"not a magnitude plan: {reason}")
