"""`--compile`: the training network through `torch.compile`; where it cannot be compiled, training goes on without.

Compilers fail when the network first runs (no C++ compiler, no Triton, an operator they do not know), so one batch goes
forward and backward before the first step; the network is then put back as it was.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from compress_cli.training import distributed


def compiled_or_not(
    network: nn.Module, loss_of: Callable[[nn.Module], Tensor], warn: Callable[[str], None], device: torch.device
) -> tuple[nn.Module, bool]:
    """The compiled network, or `network` itself after a warning that says why; and which of the two it is.

    Args:
        loss_of: the loss of a batch of the usual size; it is differentiated once.
    """
    saved = {name: buffer.clone() for name, buffer in network.named_buffers()}
    reason = ""
    compiled: nn.Module = torch.compile(network)  # type: ignore[assignment]
    try:
        loss_of(compiled).backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # a compiler's failures have no common base
        cause = getattr(error, "inner_exception", error)  # Dynamo wraps what its backend raised
        reason = f"{type(cause).__name__}: {_first_line(cause)}"
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            buffer.copy_(saved[name])
    network.zero_grad(set_to_none=True)
    if not distributed.any_true(bool(reason), device):
        return compiled, True
    torch._dynamo.reset()
    warn(f"--compile: this network is trained without, as it cannot be compiled here ({reason or 'another process'})")
    return network, False


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else "no reason given"
