"""Memory that is free but not given back: glibc keeps what ONNX Runtime frees after it has loaded a large model."""

from __future__ import annotations

import ctypes


def release() -> None:
    """Give free heap memory back to the system, where the C library can (glibc); elsewhere nothing happens.

    One load of a packed ViT-B/16 (346 MB dense) leaves 0.5 to 1.2 GB behind without this.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
