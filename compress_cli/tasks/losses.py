"""Built-in losses: one number per sample, the mean over everything but the batch.

Samples without any target (every position at `ignore_index`, or NaN targets of a regression) get NaN, which trainers
and evaluations leave out. The NaN is a constant: no gradient flows through it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compress_cli.errors import UsageError

IGNORED = -100
"""Class index that means "no target here", as in torch."""


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """Cross entropy of (batch, classes, ...) logits with (batch, ...) class indices."""

    ignore_index: int = IGNORED
    label_smoothing: float = 0.0

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """(batch,) mean over the positions that have a target."""
        losses = F.cross_entropy(
            output.float(),
            target.long(),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        return masked_mean(losses, target != self.ignore_index)


@dataclass(frozen=True, slots=True)
class BinaryCrossEntropy:
    """Binary cross entropy of logits with targets in 0..1 of the same shape (or (batch,) against (batch, 1))."""

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """(batch,) means."""
        output, target = aligned(output, target)
        known = ~torch.isnan(target)
        losses = F.binary_cross_entropy_with_logits(output, torch.nan_to_num(target), reduction="none")
        return masked_mean(losses, known)


@dataclass(frozen=True, slots=True)
class _Regression:
    """A distance per element; NaN targets are left out."""

    def distance(self, output: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """(batch,) means over everything but the batch."""
        output, target = aligned(output, target)
        known = ~torch.isnan(target)
        return masked_mean(self.distance(output, torch.where(known, target, output.detach())), known)


@dataclass(frozen=True, slots=True)
class MeanSquared(_Regression):
    """Squared error."""

    def distance(self, output: Tensor, target: Tensor) -> Tensor:
        """(output - target)^2 elementwise."""
        return F.mse_loss(output, target, reduction="none")


@dataclass(frozen=True, slots=True)
class L1(_Regression):
    """Absolute error."""

    def distance(self, output: Tensor, target: Tensor) -> Tensor:
        """|output - target| elementwise."""
        return F.l1_loss(output, target, reduction="none")


@dataclass(frozen=True, slots=True)
class SmoothL1(_Regression):
    """Huber-like error: quadratic below `beta`, linear above."""

    beta: float = 1.0

    def distance(self, output: Tensor, target: Tensor) -> Tensor:
        """Smooth L1 elementwise."""
        return F.smooth_l1_loss(output, target, reduction="none", beta=self.beta)


@dataclass(frozen=True, slots=True)
class Cosine:
    """1 - cosine similarity over dimension 1, as for surface normals (batch, 3, height, width)."""

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """(batch,) means; positions whose target is the zero vector or NaN are left out."""
        target = target.to(output.dtype)
        known = ~torch.isnan(target).any(1) & (torch.nan_to_num(target).abs().sum(1) > 0)
        losses = 1 - F.cosine_similarity(output.float(), torch.nan_to_num(target).float(), dim=1)
        return masked_mean(losses, known)


def aligned(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float32 of the same shape; a trailing dimension of 1 may be missing in one of them.

    Raises:
        ValueError: the shapes differ otherwise.
    """
    output, target = output.float(), target.float()
    if output.shape != target.shape and output.numel() == target.numel():
        target = target.reshape(output.shape)
    if output.shape != target.shape:
        raise ValueError(f"shapes {tuple(output.shape)} and {tuple(target.shape)} differ")
    return output, target


def masked_mean(losses: Tensor, known: Tensor) -> Tensor:
    """(batch, ...) -> (batch,) mean over the known positions; NaN where a sample has none, inf where a loss is NaN."""
    losses, known = losses.reshape(len(losses), -1), known.reshape(len(known), -1)
    counts = known.sum(1)
    losses = torch.where(torch.isnan(losses), torch.full_like(losses, torch.inf), losses)
    sums = torch.where(known, losses, torch.zeros_like(losses)).sum(1)
    return torch.where(counts > 0, sums / counts.clamp(min=1), torch.full_like(sums, torch.nan))


LOSSES: dict[str, Callable[[], Any]] = {
    "cross_entropy": CrossEntropy,
    "bce": BinaryCrossEntropy,
    "mse": MeanSquared,
    "l1": L1,
    "smooth_l1": SmoothL1,
    "cosine": Cosine,
}


def loss_named(name: str) -> Any:
    """A built-in loss with its defaults.

    Raises:
        UsageError: an unknown name.
    """
    if name not in LOSSES:
        raise UsageError(f"unknown loss {name!r}", f"built-in losses: {', '.join(LOSSES)}; or pass a function")
    return LOSSES[name]()
