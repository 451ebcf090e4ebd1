"""What can go wrong with a user's model, file or target in this package; the application translates these."""

from __future__ import annotations


class ProfilingFailed(RuntimeError):
    """A cost could not be counted or measured.

    Attributes:
        reason: one line saying why, without a traceback.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class CountingFailed(ProfilingFailed):
    """The model could not be run on its example inputs, not even on real tensors."""


class MeasurementFailed(ProfilingFailed):
    """A file could not be loaded or run by the runtime that was asked for."""


def first_line(error: BaseException) -> str:
    """The first meaningful line of an exception, shortened to 240 characters: a reason for people."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 240 else text[:237] + "..."
