"""What a user's model or request can do wrong in channel pruning; each class carries its data as attributes."""

from __future__ import annotations

from pruners.errors import BadOptions, NoMatch, PruningError

__all__ = [
    "BadChannelOptions",
    "BadChannelsPlan",
    "CannotTrace",
    "ChannelsMismatch",
    "InfeasibleBudget",
    "NoMatch",
    "NothingToRemove",
    "ProofFailed",
    "PruningError",
    "SurgeryFailed",
]


class BadChannelOptions(BadOptions):
    """Options of channel pruning that make no sense, alone or together."""


class CannotTrace(PruningError):
    """`torch.export` refuses the model.

    Attributes:
        mode: `eval` or `train`.
        reason: the first line of what it said.
    """

    def __init__(self, mode: str, reason: str) -> None:
        self.mode = mode
        self.reason = reason
        super().__init__(f"the {mode} forward cannot be traced: {reason}")


class NothingToRemove(PruningError):
    """No channel of the model may be removed.

    Attributes:
        reasons: why, most frequent first.
    """

    def __init__(self, reasons: tuple[str, ...]) -> None:
        self.reasons = reasons
        super().__init__("no channel can be removed: " + "; ".join(reasons[:5] or ("the model has no channels",)))


class InfeasibleBudget(PruningError):
    """The budget cannot be reached.

    Attributes:
        quantity: `macs` or `params`.
        asked: the largest value allowed.
        smallest: the smallest value that the floors allow.
        dense: the value before.
    """

    def __init__(self, quantity: str, asked: int, smallest: int, dense: int) -> None:
        self.quantity = quantity
        self.asked = asked
        self.smallest = smallest
        self.dense = dense
        super().__init__(
            f"{quantity} cannot be brought to {asked:,}: {smallest:,} ({smallest / max(dense, 1):.1%} of {dense:,})"
            " is the least with these floors, ignored layers and frozen channels"
        )


class ChannelsMismatch(PruningError):
    """A plan does not belong to this model.

    Attributes:
        problems: one line per difference.
    """

    def __init__(self, problems: tuple[str, ...]) -> None:
        self.problems = problems
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        super().__init__("the channels plan does not fit this model: " + "; ".join(problems[:5]) + more)


class BadChannelsPlan(PruningError):
    """A plan document cannot be read.

    Attributes:
        reason: what is wrong with it.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"not a channels plan: {reason}")


class SurgeryFailed(PruningError):
    """The cut model does not run; the caller's model was not changed.

    Attributes:
        tier: the last way that was tried.
        reason: what went wrong there.
    """

    def __init__(self, tier: int, reason: str) -> None:
        self.tier = tier
        self.reason = reason
        super().__init__(f"channels cannot be removed (tier {tier}): {reason}")


class ProofFailed(PruningError):
    """The small model is not the original with these channels masked.

    Attributes:
        name: which proof.
        reason: the figure or the difference.
    """

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"proof failed ({name}): {reason}")
