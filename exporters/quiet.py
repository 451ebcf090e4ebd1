"""Silence around code that prints: torch.onnx writes reports, graphs and warnings to both streams."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import TextIO


class _OwnThreadSink(io.TextIOBase):
    """Drops what the creating thread writes and passes on the rest (another thread may be drawing a progress bar)."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() == self._thread:
            return len(text)
        return self._stream.write(text)

    def flush(self) -> None:
        if threading.get_ident() != self._thread:
            self._stream.flush()


@contextlib.contextmanager
def quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Nothing printed, logged or warned by this thread inside; yields the list in which warnings are collected."""
    level = logging.root.manager.disable
    out, err = _OwnThreadSink(sys.stdout), _OwnThreadSink(sys.stderr)
    with (
        warnings.catch_warnings(record=True) as caught,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        warnings.simplefilter("always")
        logging.disable(logging.CRITICAL)
        try:
            yield caught
        finally:
            logging.disable(level)


@contextlib.contextmanager
def no_native_stdout() -> Iterator[None]:
    """Nothing from C++ on file descriptor 1 inside (the TorchScript exporter dumps graphs there when it fails)."""
    try:
        sys.stdout.flush()
        saved = os.dup(1)
    except (OSError, ValueError):  # no standard output at all: nothing to silence
        yield
        return
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 1)
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what C has buffered must not come out after the switch back
        os.dup2(saved, 1)
        os.close(saved)
        os.close(sink)
