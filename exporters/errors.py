"""What can go wrong with a user's model or file in this package; the application translates these in one place."""

from __future__ import annotations


class ExportFailed(Exception):
    """No exporter could write the model as ONNX.

    Attributes:
        reason: one line saying why, without a traceback.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class BadOnnxFile(Exception):
    """An ONNX file that cannot be read, is damaged, or holds what this package cannot work on.

    Attributes:
        path: the file, as the caller named it ("" for a model in memory).
        reason: one line saying why.
    """

    def __init__(self, path: object, reason: str) -> None:
        self.path = str(path)
        self.reason = reason
        super().__init__(f"{self.path}: {reason}" if self.path else reason)


def first_line(error: BaseException) -> str:
    """The first meaningful line of the deepest cause, shortened to 240 characters: a reason for people."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    lines = [line.strip() for line in str(root).splitlines() if line.strip()]
    text = lines[0] if lines else type(root).__name__
    return text if len(text) <= 240 else text[:237] + "..."
