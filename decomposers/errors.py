"""What a user's model, file or request can do wrong in decomposition; each class carries its data as attributes."""

from __future__ import annotations


class DecompositionError(Exception):
    """Base of everything this package raises about a user's model or request."""


class NoMatch(DecompositionError):
    """An ignore or only pattern fits no layer.

    Attributes:
        pattern: the pattern as given.
        close_matches: existing names that look like it, best first.
    """

    def __init__(self, pattern: str, close_matches: tuple[str, ...] = (), why: str = "matches no layer") -> None:
        self.pattern = pattern
        self.close_matches = close_matches
        hint = f"; close names: {', '.join(close_matches)}" if close_matches else ""
        super().__init__(f"pattern {pattern!r} {why}{hint}")


class NothingToDecompose(DecompositionError):
    """No layer of the model can be replaced by two thinner ones.

    Attributes:
        reasons: `layer: reason` of everything that was left alone.
    """

    def __init__(self, reasons: tuple[str, ...]) -> None:
        self.reasons = reasons
        first = "; ".join(reasons[:3]) or "it has no convolution and no linear layer"
        super().__init__(f"no layer can be decomposed: {first}")


class BadWeights(DecompositionError):
    """A weight holds values that cannot be factored.

    Attributes:
        layer: its name.
        reason: what is wrong with it.
    """

    def __init__(self, layer: str, reason: str) -> None:
        self.layer = layer
        self.reason = reason
        super().__init__(f"{layer}: {reason}")


class InfeasibleBudget(DecompositionError):
    """Even the smallest decomposition is over the budget.

    Attributes:
        budget: what was asked for the whole model.
        smallest: what the smallest decomposition of the whole model reaches.
        unit: what both count: params, MACs, bytes or ms.
        total: the same quantity of the original model.
    """

    def __init__(self, budget: float, smallest: float, unit: str, total: float) -> None:
        self.budget = budget
        self.smallest = smallest
        self.unit = unit
        self.total = total
        super().__init__(
            f"a budget of {budget:,.10g} {unit} cannot be met: the smallest decomposition of this model has"
            f" {smallest:,.10g} {unit} ({smallest / total:.1%} of {total:,.10g})"
        )


class PlanMismatch(DecompositionError):
    """A plan does not belong to this model.

    Attributes:
        problems: one line per difference.
    """

    def __init__(self, problems: tuple[str, ...]) -> None:
        self.problems = problems
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        super().__init__("the plan does not fit this model: " + "; ".join(problems[:5]) + more)


class BadPlan(DecompositionError):
    """A plan document cannot be read.

    Attributes:
        reason: what is wrong with it.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"not a decomposition plan: {reason}")


class ProofFailed(DecompositionError):
    """A factored layer does not compute what the dense layer with the reconstructed weight computes.

    Attributes:
        layer: its name; empty when it is the whole network that differs.
        difference: largest difference relative to the largest output.
        tolerance: what was allowed.
    """

    def __init__(self, layer: str, difference: float, tolerance: float) -> None:
        self.layer = layer
        self.difference = difference
        self.tolerance = tolerance
        what = layer or "the whole network"
        super().__init__(
            f"{what}: the factored form differs from the dense form with the reconstructed weight by {difference:.3g}"
            f" of the largest output (allowed {tolerance:.3g})"
        )
