"""How much a network's outputs feel an error of each channel inside it; one backward pass on unlabelled images.

With outputs f and random v, the expected square of d(v.f)/dy, summed over positions, is the squared norm of their
derivative with respect to one channel of a layer's output y. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compress_cli.recovery.images import Batch
from compress_cli.recovery.trace import Traced, evaluation


def sensitivities(traced: Traced, batches: Sequence[Batch], seed: int = 0) -> dict[str, Tensor]:
    """Return how much the outputs feel an error of each layer's output channels.

    Args:
        traced: the network.
        batches: images, of the traced batch size.
        seed: of the random projections.

    Returns:
        weight name -> (groups, outputs per group): squared derivative of a random projection of the outputs (each
        scaled to unit spread), summed over positions, mean over images.
    """
    generator = torch.Generator().manual_seed(seed)
    calls = traced.calls()
    order = traced.needed(traced.outputs, traced.inputs)
    sums: dict[str, Tensor] = {}
    count = 0
    with evaluation(traced.module), torch.enable_grad():
        for batch in batches:
            known = {
                node: part.detach().clone().requires_grad_() if part.is_floating_point() else part
                for node, part in zip(traced.inputs, batch, strict=True)
            }
            reached = [call for call in calls if call.node in set(order)]
            keep = list(dict.fromkeys([*(call.node for call in reached), *traced.outputs]))
            values = traced.evaluate(order, known, keep)
            loss = sum(_projection(values[node], generator) for node in traced.outputs)
            gradients = torch.autograd.grad(loss, [values[call.node] for call in reached], allow_unused=True)  # type: ignore[arg-type]
            count += batch[0].shape[0]
            for call, gradient in zip(reached, gradients, strict=True):
                if gradient is not None:
                    axis = gradient.dim() + call.geometry.channel_axis
                    squares = gradient.double().square().sum([a for a in range(gradient.dim()) if a != axis])
                    sums[call.weight] = sums.get(call.weight, torch.zeros_like(squares)) + squares
    groups = {call.weight: call.geometry.groups for call in calls}
    return {name: (total / max(count, 1)).reshape(groups[name], -1) for name, total in sums.items()}


def _projection(output: Tensor, generator: torch.Generator) -> Tensor:
    spread = output.detach().std(0, unbiased=False).square().mean().sqrt().clamp(min=1e-12)
    weights = torch.randn(output.shape, generator=generator).to(output)
    return (output * weights).sum() / spread
