"""Training modes: every module's own flag comes back, whatever happened in between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def modes_kept(*models: nn.Module) -> Iterator[None]:
    """Put the training flag of every module back afterwards."""
    flags = [(module, module.training) for model in models for module in model.modules()]
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """Eval mode inside, and every module's own flag afterwards; gradients are the caller's affair."""
    with modes_kept(*models):
        for model in models:
            model.eval()
        yield
