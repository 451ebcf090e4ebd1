"""What can go wrong because of the world outside: one base class, subclasses by who can fix it.

Each error carries what happened (`message`), what to type (`fix`) and the exit code of design.md section 4.
"""

from __future__ import annotations

from collections.abc import Sequence

EXIT_OK = 0
EXIT_GATE = 1
EXIT_USAGE = 2
EXIT_INPUT = 3
EXIT_VERIFICATION = 4
EXIT_BUG = 70
EXIT_INTERRUPTED = 130

DAMAGED = "the checkpoint is damaged or training diverged: use an earlier one"
"""The fix for weights that are not finite, wherever they are found."""


class CompressError(Exception):
    """A failure that the user, their file or their machine caused; shown as `Error:` and `Fix:` lines."""

    exit_code = EXIT_BUG

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


class UsageError(CompressError):
    """The command line or a configuration file asks for something that does not exist or cannot be met."""

    exit_code = EXIT_USAGE


class InputError(CompressError):
    """A checkpoint, a data folder or an output place cannot be read, written or understood."""

    exit_code = EXIT_INPUT


def damaged(file: object, tensors: Sequence[str], what: str) -> InputError:
    """The error for a file some of whose tensors hold values that are no numbers, named by `what`."""
    more = f" and {len(tensors) - 3} more tensors" if len(tensors) > 3 else ""
    holds = "holds" if len(tensors) == 1 else "hold"
    return InputError(f"{file}: {', '.join(tensors[:3])}{more} {holds} {what}", DAMAGED)


class UnsupportedModelError(InputError):
    """The model was read, but a step that was asked for cannot be done with it."""


class VerificationError(CompressError):
    """A proof or a numeric check failed: the artifact is not written."""

    exit_code = EXIT_VERIFICATION
