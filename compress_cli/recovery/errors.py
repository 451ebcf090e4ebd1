"""What can be wrong with what recovery is given."""

from __future__ import annotations


class RecoveryError(Exception):
    """Base of the errors of this package; nothing was changed when it is raised."""


class CannotTrace(RecoveryError):
    """The network cannot be turned into a graph of operators."""

    def __init__(self, which: str, reason: str) -> None:
        super().__init__(f"the {which} network cannot be traced: {reason}")
        self.which = which
        self.reason = reason


class NoImages(RecoveryError):
    """There are not enough images to fit on some and check on others."""

    def __init__(self, found: int, needed: int) -> None:
        images = f"{found} image{'s are' if found != 1 else ' is'}"
        super().__init__(f"{images} too few: at least {needed} are needed, some to fit and some to check")
        self.found = found
        self.needed = needed


class DoNotMatch(RecoveryError):
    """The two networks are not one network before and after compression."""
