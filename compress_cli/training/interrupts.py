"""Ctrl-C and SIGTERM wait for the end of the training step, so that a saved state is never half a step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Pending:
    """Whether the user wants to stop."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def deferred_interrupts() -> Iterator[Pending]:
    """Inside, the first signal only sets `asked`; a second one interrupts at once. Signals are put back afterwards."""
    pending = Pending()

    def note(number: int, frame: FrameType | None) -> None:
        if pending.asked:
            raise KeyboardInterrupt
        pending.asked = True

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: signals are not ours to handle
        pass
    try:
        yield pending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
