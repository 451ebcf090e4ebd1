"""Batch-norm statistics anew from images (`pruners.batchnorm`), in the way that helps most, or not at all.

What helps is decided on other images than those that give the statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from compress_cli.recovery.correspondence import as_correspondence
from exporters.outputs import evaluating
from pruners.batchnorm import Original, candidates_, restore_, statistics, tracked_norms


def reestimate_if_better_(
    module: nn.Module,
    batches: Iterable[tuple[Tensor, ...]],
    losses: Callable[[], dict[str, float]],
    *,
    original: Original | None = None,
    removed: Any = None,
) -> dict[str, Any]:
    """Re-estimate in the ways there are, and keep the best one if it lowers the mean relative loss over the tasks.

    Args:
        batches: can be gone through again and again.
        losses: the held-out losses of the module as it is, by task.
        original: the network before it was compressed, on the same device: its statistics from the same images say
            how far those of the module have moved. None: plain averages only.
        removed: what was removed, as `compress_cli.recovery.Correspondence` or a plan of channels.

    Returns:
        the record for the report: kept, how, reason, images, losses before and after.
    """
    layers = tracked_norms(module)
    if not layers:
        return {"kept": False, "layers": 0, "reason": "the network has no batch norms with running statistics"}
    stored, before, seen = statistics(module), losses(), 0

    def run() -> None:
        nonlocal seen
        for batch in batches:
            module(*batch)
            seen += len(batch[0])

    with evaluating(module):  # full fp32 products, as those that judge
        tries = {
            name: (statistics(module), losses())
            for name in candidates_(module, run, original, as_correspondence(removed).keep)
        }
    how = min(tries, key=lambda name: mean_ratio(tries[name][1], before))
    chosen, after = tries[how]
    kept = mean_ratio(after, before) < 1
    restore_(module, chosen if kept else stored)
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
