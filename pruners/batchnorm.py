"""Running statistics of batch norms anew from images, as pruning has shifted what the layers see.

Either the plain average of the statistics of a few large batches (specs/magnitude.md section 4: ResNet-56 at 80 %
sparsity, 49 -> 88 % top-1 without training), or, beside the original network, the stored statistics moved by the
difference (`shifted`), or what is half way. Which of them is best depends on the damage; callers try and judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from profilers.modes import eval_mode

Statistics = dict[str, dict[str, Tensor]]
"""Batch-norm layer -> its buffers by name."""
Keep = Mapping[str, Mapping[int, Sequence[int]]]
"""Tensor of the original -> dim -> indices that are left, as plans of channels have it."""
SMALLEST_BATCH = 32
"""Samples that a batch must have for its own statistics to stand for the data's."""
SHARES = {"shift": 1.0, "half a shift": 0.5}


def tracked_norms(module: nn.Module) -> list[_BatchNorm]:
    """The batch norms that keep running statistics."""
    return [layer for _, layer in _named(module)]


@contextmanager
def averaging(module: nn.Module) -> Iterator[None]:
    """Batches run inside replace the running statistics by their plain average.

    Everything but the batch norms is in eval mode (no dropout); modes and momenta come back. A layer that no batch
    reaches, or that a traced graph runs by itself, keeps what it had; so do all after an error.
    """
    layers, stored = tracked_norms(module), statistics(module)
    momenta = [layer.momentum for layer in layers]
    with eval_mode(module), torch.no_grad():
        try:
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # the cumulative average
                layer.train()
            yield
        except BaseException:
            restore_(module, stored)
            raise
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
        restore_(module, {name: stored[name] for name, layer in _named(module) if not layer.num_batches_tracked})


def reestimate_(module: nn.Module, batches: Iterable[tuple[Any, ...]]) -> int:
    """Replace the running statistics by their average over batches of positional arguments; returns samples seen."""
    seen = 0
    with averaging(module):
        for batch in batches:
            module(*batch)
            seen += len(batch[0])
    return seen


def statistics(module: nn.Module) -> Statistics:
    """A copy of what every batch norm has stored."""
    return {
        name: {key: value.clone() for key, value in layer.named_buffers(recurse=False)}
        for name, layer in _named(module)
    }


@torch.no_grad()
def restore_(module: nn.Module, stored: Statistics) -> None:
    """Write statistics back, of the layers that are named there."""
    for name, layer in _named(module):
        for key, value in stored.get(name, {}).items():
            getattr(layer, key).copy_(value)


class Original:
    """What the images give in the original network; taken once, when it is first asked for.

    Args:
        network: before it was compressed; its statistics are restored.
        batches: the same images as those for the compressed network; can be gone through again and again.
    """

    def __init__(self, network: nn.Module, batches: Iterable[tuple[Any, ...]]) -> None:
        self.network, self.batches = network, batches
        self._own = statistics(network)
        self._found: Statistics | None = None

    def of(self, wanted: Statistics, keep: Keep) -> tuple[Statistics, Statistics] | None:
        """What was stored, and what the images give, for the channels that are left in `wanted`.

        None where layers do not correspond.
        """
        if not self._own.keys() >= wanted.keys():
            return None
        parts = []
        for source in (self._own, self._taken()):
            left = Statistics()
            for name, buffers in wanted.items():
                kept = keep.get(f"{name}.running_mean", {}).get(0)
                rows = slice(None) if kept is None else list(kept)
                left[name] = {key: value[rows] if value.dim() else value for key, value in source[name].items()}
                if left[name]["running_mean"].shape != buffers["running_mean"].shape:
                    return None
            parts.append(left)
        return parts[0], parts[1]

    def _taken(self) -> Statistics:
        if self._found is None:
            reestimate_(self.network, self.batches)
            self._found = statistics(self.network)
            restore_(self.network, self._own)
        return self._found


def candidates_(
    module: nn.Module, run: Callable[[], object], original: Original | None = None, keep: Keep | None = None
) -> Iterator[str]:
    """Set the statistics in each way there is, one after the other: yields its name while it is set.

    Args:
        run: sends the images through the module.
        original, keep: what the same images gave before, and which channels of it are left; None: averages only.

    The statistics of the last way stay; `statistics` and `restore_` put back others.
    """
    if not tracked_norms(module):
        return
    with averaging(module):
        run()
    averages = statistics(module)
    yield "averages"
    baseline = None if original is None else original.of(averages, keep or {})
    if baseline is not None:
        moved = shifted(module, averages, *baseline)
        for name, share in SHARES.items():
            restore_(module, between(averages, moved, share))
            yield name


def shifted(module: nn.Module, now: Statistics, stored: Statistics, baseline: Statistics) -> Statistics:
    """The original's stored statistics, moved as far as compression moved those that the same images give.

    Averages over a few images without augmentation are not those of the training (a ResNet-56 on CIFAR-10 that was not
    even compressed falls from 93.4 to 91.7 %); the difference between two networks on the same images is free of that:
    mean + (now - baseline) sqrt(var / baseline var), var * now var / baseline var.

    Args:
        now: of the module, from the images.
        stored, baseline: of the original's channels that are left, as they were and from the same images.
    """
    found = Statistics()
    for name, layer in _named(module):
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
    is it measured well (ResNet-56 at half its MACs by price: 87.5 with averages, 87.6 with the shift, 88.0 here)."""
    found = Statistics()
    for name, new in averages.items():
        means = torch.lerp(new["running_mean"], moved[name]["running_mean"], share)
        old, far = (part["running_var"].clamp(min=1e-30) for part in (new, moved[name]))
        found[name] = moved[name] | {"running_mean": means, "running_var": old.pow(1 - share) * far.pow(share)}
    return found


def use_batch_statistics_(model: nn.Module) -> None:
    """Let batch norms normalise by the batch, without touching their running values; the rest stays in eval mode."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            module.train()
            module.momentum = 0.0


def _named(module: nn.Module) -> list[tuple[str, _BatchNorm]]:
    return [
        (name, layer)
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    ]
