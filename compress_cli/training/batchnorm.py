"""Batch-norm statistics anew from images, as pruning has shifted what the layers see; kept only when that helps.

Reset, then the plain average of the statistics of a few large batches (specs/magnitude.md section 4: ResNet-56 at 80 %
sparsity, 49 -> 88 % top-1 without training), or, beside the original network, the stored statistics moved by the
difference (`shifted`), or what is half way. Whether it helps is decided on other images than those averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress_cli.recovery.correspondence import as_correspondence
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
    module: nn.Module,
    batches: Iterable[tuple[Tensor, ...]],
    losses: Callable[[], dict[str, float]],
    *,
    original: nn.Module | None = None,
    removed: Any = None,
) -> dict[str, Any]:
    """Re-estimate in the ways there are, and keep the best one if it lowers the mean relative loss over the tasks.

    Args:
        batches: can be gone through again and again.
        losses: the held-out losses of the module as it is, by task.
        original: the network before it was compressed, on the same device: its statistics from the same images say
            how far those of the module have moved (`shifted`); restored afterwards. None: plain averages only.
        removed: what was removed, as `compress_cli.recovery.Correspondence` or a plan of channels.

    Returns:
        the record for the report: kept, how, reason, images, losses before and after.
    """
    layers = batchnorm_layers(module)
    if not layers:
        return {"kept": False, "layers": 0, "reason": "the network has no batch norms with running statistics"}
    stored = _statistics(module)
    before = losses()
    seen = reestimate_(module, batches)
    averages = _statistics(module)
    tries = {"averages": (averages, losses())}
    baseline = None if original is None else _baseline(original, batches, stored, removed)
    if baseline is not None:
        moved = shifted(module, stored, averages, baseline)
        for name, share in (("shift", 1.0), ("half a shift", 0.5)):
            mixed = between(averages, moved, share)
            _restore_(module, mixed)
            tries[name] = (mixed, losses())
    how = min(tries, key=lambda name: mean_ratio(tries[name][1], before))
    chosen, after = tries[how]
    kept = mean_ratio(after, before) < 1
    _restore_(module, chosen if kept else stored)
    reason = "the held-out loss fell" if kept else "the held-out loss did not fall: the old statistics stay"
    return {
        "kept": kept,
        "how": how if kept else None,
        "layers": len(layers),
        "images": seen,
        "losses_before": before,
        "losses_after": after,
        "reason": reason,
    }


def shift_(
    module: nn.Module,
    batches: Iterable[tuple[Tensor, ...]],
    original: nn.Module,
    removed: Any = None,
    *,
    share: float = 1.0,
) -> bool:
    """Move the running statistics as far as the batches say (`shifted`); False, and no change, where layers differ.

    share: 1 is the shift, 0 the plain averages, see `between`.
    """
    stored = _statistics(module)
    reestimate_(module, batches)
    averages = _statistics(module)
    baseline = _baseline(original, batches, stored, removed)
    moved = stored if baseline is None else between(averages, shifted(module, stored, averages, baseline), share)
    _restore_(module, moved)
    return baseline is not None


Statistics = dict[str, dict[str, Tensor]]
"""Batch-norm layer -> its buffers by name."""


def shifted(module: nn.Module, stored: Statistics, now: Statistics, baseline: Statistics) -> Statistics:
    """The stored statistics, moved as far as compression moved those that the same images give.

    Averages over a few images without augmentation are not those of the training (a ResNet-56 on CIFAR-10 that was not
    even compressed falls from 93.4 to 91.7 %); the difference between two networks on the same images is free of that:
    mean + (now - baseline) sqrt(var / baseline var), var * now var / baseline var.

    Args:
        now, baseline: from the same images, of the module and of the original's channels that are left.
    """
    found: Statistics = {}
    for name, layer in _named_layers(module):
        old, new, base = stored[name], now[name], baseline[name]
        ratio = (old["running_var"] + layer.eps) / (base["running_var"] + layer.eps)
        moved = (new["running_mean"] - base["running_mean"]) * ratio.sqrt()
        found[name] = old | {
            "running_mean": old["running_mean"] + moved,
            "running_var": (new["running_var"] + layer.eps) * ratio - layer.eps,
        }
        found[name]["running_var"].clamp_(min=0.0)
    return found


def between(averages: Statistics, moved: Statistics, share: float) -> Statistics:
    """Means and logarithms of variances between both: a network that lost much is neither near its old statistics nor
    is it measured well (ResNet-56 at half its MACs: 86.2 with averages, 85.9 with the shift)."""
    found: Statistics = {}
    for name, new in averages.items():
        means = torch.lerp(new["running_mean"], moved[name]["running_mean"], share)
        old, far = (part["running_var"].clamp(min=1e-30) for part in (new, moved[name]))
        found[name] = moved[name] | {"running_mean": means, "running_var": old.pow(1 - share) * far.pow(share)}
    return found


def _named_layers(module: nn.Module) -> list[tuple[str, _BatchNorm]]:
    known = set(map(id, batchnorm_layers(module)))
    return [(name, layer) for name, layer in module.named_modules() if id(layer) in known]  # type: ignore[misc]


def _statistics(module: nn.Module) -> Statistics:
    return {
        name: {key: value.clone() for key, value in layer.named_buffers(recurse=False)}
        for name, layer in _named_layers(module)
    }


@torch.no_grad()
def _restore_(module: nn.Module, statistics: Statistics) -> None:
    for name, layer in _named_layers(module):
        for key, value in statistics[name].items():
            getattr(layer, key).copy_(value)


def _baseline(
    original: nn.Module, batches: Iterable[tuple[Tensor, ...]], wanted: Statistics, removed: Any
) -> Statistics | None:
    """What the images give in the original, for the channels that are left; None where layers do not correspond."""
    own = _statistics(original)
    if not own.keys() >= wanted.keys():
        return None
    reestimate_(original, batches)
    found = _statistics(original)
    _restore_(original, own)
    keep = as_correspondence(removed).keep
    left: Statistics = {}
    for name, buffers in wanted.items():
        kept = keep.get(f"{name}.running_mean", {}).get(0)
        mine = {key: found[name][key] for key in ("running_mean", "running_var")}
        left[name] = mine if kept is None else {key: value[list(kept)] for key, value in mine.items()}
        if left[name]["running_mean"].shape != buffers["running_mean"].shape:
            return None
    return left


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
