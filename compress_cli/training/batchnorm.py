"""Batch-norm statistics anew from images, as pruning has shifted what the layers see; kept only when that helps.

Reset, then the plain average of the statistics of a few large batches (specs/magnitude.md section 4: ResNet-56 at 80 %
sparsity, 49 -> 88 % top-1 without training). Whether it helps is decided on other images than those averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from exporters.outputs import evaluating


def batchnorm_layers(module: nn.Module) -> list[_BatchNorm]:
    """The batch-norm layers that keep running statistics."""
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.running_mean is not None]


def reestimate_(module: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> int:
    """Replace the running statistics by their average over some batches; returns the number of images seen.

    Everything but the batch norms runs in eval mode (no dropout); modes and momenta are put back.
    """
    layers = batchnorm_layers(module)
    momenta = [layer.momentum for layer in layers]
    seen = 0
    with evaluating(module):
        try:
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # the cumulative average
                layer.train()
            for batch in batches:
                module(*batch)
                seen += len(batch[0])
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
    return seen


def reestimate_if_better_(
    module: nn.Module, batches: Iterable[tuple[Tensor, ...]], losses: Callable[[], dict[str, float]]
) -> dict[str, Any]:
    """Re-estimate, and take it back unless the mean relative loss over the tasks falls.

    Args:
        losses: the held-out losses of the module as it is, by task.

    Returns:
        the record for the report: kept, reason, images, losses before and after.
    """
    layers = batchnorm_layers(module)
    if not layers:
        return {"kept": False, "layers": 0, "reason": "the network has no batch norms with running statistics"}
    saved = [{name: value.clone() for name, value in layer.named_buffers(recurse=False)} for layer in layers]
    before = losses()
    seen = reestimate_(module, batches)
    after = losses()
    kept = mean_ratio(after, before) < 1
    if not kept:
        with torch.no_grad():
            for layer, values in zip(layers, saved, strict=True):
                for name, value in values.items():
                    getattr(layer, name).copy_(value)
    reason = "the held-out loss fell" if kept else "the held-out loss did not fall: the old statistics stay"
    return {
        "kept": kept,
        "layers": len(layers),
        "images": seen,
        "losses_before": before,
        "losses_after": after,
        "reason": reason,
    }


def mean_ratio(after: dict[str, float], before: dict[str, float]) -> float:
    """Mean over the tasks of loss after / loss before; infinite when a loss is not a number any more.

    Example: losses 1.0, 0.5 that become 0.8, 0.6 give (0.8 + 1.2) / 2 = 1.0.
    """
    ratios = []
    for name, old in before.items():
        new = after[name]
        if new != new:
            return float("inf")
        if old != old or old == float("inf"):
            ratios.append(0.0)
        else:
            ratios.append(new / old if old > 0 else (1.0 if new <= 0 else float("inf")))
    return sum(ratios) / len(ratios) if ratios else float("inf")
