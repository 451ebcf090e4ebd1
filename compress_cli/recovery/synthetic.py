"""Images where there are none: noise brought to the statistics that the network's batch norms stored.

After Yin et al., "Dreaming to Distill" (arXiv 1912.08795), the batch-norm term alone: inputs x minimise, summed over
batch norms, |mean(z) - m|^2 / v + (sqrt(var(z) / v) - 1)^2 for the values z that reach them, with stored means m and
variances v. Only inputs are changed, by Adam; the network's weights are not. Start: smooth noise of unit spread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress_cli.recovery.errors import RecoveryError
from profilers.modes import eval_mode
from pruners.batchnorm import tracked_norms

IMAGES, BATCH, STEPS, RATE = 256, 64, 40, 0.05
SMOOTH = 3
"""Pixels over which the noise at the start is averaged."""
Step = Callable[[int, int, str], None]


class CannotSynthesise(RecoveryError):
    """Inputs that are not images, or no batch norm to take statistics from."""


def synthesise(
    dense: nn.Module,
    example: Sequence[Any],
    *,
    images: int = IMAGES,
    steps: int = STEPS,
    seed: int = 0,
    on_step: Step | None = None,
) -> list[Tensor]:
    """Return batches (images, channels, height, width) on the network's device.

    Args:
        dense: the original; not changed.
        example: its positional arguments; the sizes of the one image count.
        images: how many in all.
        steps: of the descent; 0 leaves the noise.
        seed: of the noise.
        on_step: called with (steps done, steps in all, what comes next).

    Raises:
        CannotSynthesise: see there.
    """
    norms = tracked_norms(dense)
    if len(example) != 1 or not isinstance(example[0], Tensor) or example[0].dim() != 4:
        raise CannotSynthesise("images can be made up for networks with one image as input only")
    if not norms:
        raise CannotSynthesise("images are made up from the statistics of batch norms, and the network has none")
    device = next(dense.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    found = []
    sizes = [min(BATCH, images - begin) for begin in range(0, images, BATCH)]
    for place, size in enumerate(sizes):
        start = _noise((size, *example[0].shape[1:]), generator).to(device)
        report = None if on_step is None else lambda step, p=place: on_step(p * steps + step, len(sizes) * steps, "")
        found.append(_fitted(dense, norms, start, steps, report))
    return found


def _noise(sizes: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Noise of several scales and zero mean, unit spread over all values, a random contrast for each image."""
    rough = torch.randn(sizes, generator=generator)
    scales = [rough]
    side = min(sizes[2:])
    while side > SMOOTH:
        side //= 2
        small = torch.randn((*sizes[:2], side, side), generator=generator)
        scales.append(F.interpolate(small, size=sizes[2:], mode="bilinear", align_corners=False) * len(scales) * 2)
    total = torch.stack(scales).sum(0)
    return total / total.std()


def _fitted(
    dense: nn.Module, norms: Sequence[Any], start: Tensor, steps: int, report: Callable[[int], None] | None
) -> Tensor:
    x = start.clone().requires_grad_()
    terms: list[Tensor] = []

    def notice(norm: Any, arguments: tuple[Tensor, ...]) -> None:
        values = arguments[0].transpose(0, 1).flatten(1)
        variance = norm.running_var + norm.eps
        mean = (values.mean(1) - norm.running_mean).square() / variance
        spread = ((values.var(1, unbiased=False) + norm.eps) / variance).sqrt() - 1
        terms.append((mean + spread.square()).mean())

    flags = [(parameter, parameter.requires_grad) for parameter in dense.parameters()]
    handles = [norm.register_forward_pre_hook(notice) for norm in norms]
    first, second = torch.zeros_like(start), torch.zeros_like(start)
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        with eval_mode(dense), torch.enable_grad():
            for step in range(1, steps + 1):
                if report is not None:
                    report(step - 1)
                terms.clear()
                dense(x)
                (gradient,) = torch.autograd.grad(torch.stack(terms).sum(), [x])
                with torch.no_grad():  # Adam with its usual constants
                    first.mul_(0.9).add_(gradient, alpha=0.1)
                    second.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
                    change = first / (1 - 0.9**step) / ((second / (1 - 0.99**step)).sqrt() + 1e-12)
                    x -= RATE * change
    finally:
        for handle in handles:
            handle.remove()
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    return x.detach()
