"""Where a module runs: `--device`, and moving there and back."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from compress_cli.errors import UsageError


def choose_device(wanted: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device; under torchrun each process gets its own GPU.

    Raises:
        UsageError: no such device.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise UsageError(f"--device {wanted!r} is unknown", "valid: auto, cpu, cuda, cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {wanted!r} is not supported", "valid: auto, cpu, cuda, cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(f"--device {wanted}, but PyTorch finds no CUDA device here", "use --device cpu")
        index = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", "0"))
        if index >= torch.cuda.device_count():
            raise UsageError(
                f"--device cuda:{index}: there are {torch.cuda.device_count()} CUDA devices", "pass a smaller number"
            )
        device = torch.device("cuda", index)
    return device


@contextmanager
def placed(module: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """The module on a device inside, back where it was afterwards; nothing moves when it is there or has no tensors."""
    first = next(itertools.chain(module.parameters(), module.buffers()), None)
    before = device if first is None else first.device
    if before == device:
        yield module
        return
    module.to(device)
    try:
        yield module
    finally:
        module.to(before)
