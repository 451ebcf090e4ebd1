"""Batch-norm statistics taken again from images: the degenerate case of recovery, a candidate among others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress_cli.recovery.trace import evaluation


def tracked_norms(module: nn.Module) -> list[Any]:
    """Batch norms with running statistics."""
    kinds = (nn.modules.batchnorm._BatchNorm,)
    return [part for part in module.modules() if isinstance(part, kinds) and part.running_mean is not None]


@torch.no_grad()
def reestimate_(module: nn.Module, batches: Sequence[tuple[Tensor, ...]], device: Any) -> None:
    """Replace running means and variances by their plain averages over batches; nothing else is in training mode."""
    norms = tracked_norms(module)
    momenta = [norm.momentum for norm in norms]
    with evaluation(module):
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None
                norm.train()
            for batch in batches:
                module(*(part.to(device) for part in batch))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
